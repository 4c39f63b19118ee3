#include "saved.h"

#include <ATen/WrapDimUtils.h>
#include <ATen/ops/ge.h>
#include <ATen/ops/isnan.h>
#include <ATen/ops/le.h>
#include <torch/csrc/autograd/functions/tensor.h>
#include <torch/csrc/autograd/generated/Functions.h>
#include <torch/headeronly/version.h>

#include <cmath>
#include <limits>
#include <typeindex>
#include <unordered_map>

#include "nodes/activation.h"
#include "nodes/arithmetic.h"
#include "nodes/complex.h"
#include "nodes/convolution.h"
#include "nodes/distance.h"
#include "nodes/dropout.h"
#include "nodes/functions.h"
#include "nodes/gate.h"
#include "nodes/glu.h"
#include "nodes/inplace.h"
#include "nodes/matmul.h"
#include "nodes/merge.h"
#include "nodes/normalize.h"
#include "nodes/overwrite.h"
#include "nodes/pool.h"
#include "nodes/product.h"
#include "nodes/reduce.h"
#include "nodes/resample.h"
#include "nodes/shape.h"
#include "nodes/softmax.h"
#include "nodes/spectral.h"
#include "nodes/trilinear.h"
#include "sharing.h"

namespace gpfast {
namespace {

using namespace torch::autograd::generated;
using torch::autograd::SavedVariable;
using Ints = std::vector<int64_t>;
using Made = std::unique_ptr<Rule>;
using Maker = Made (*)(Node&, const Place&);
using Table = std::unordered_map<std::type_index, Maker>;

// What an operation saved of its inputs, or of its own result. Raises as autograd does where it was written to since, or freed.
struct Reading {
  Versions* versions = nullptr;
  bool hooked = false;  // some of it is unpacked by a hook
};
thread_local Reading reading;

template <typename... Saver>
at::Tensor read(const SavedVariable& saved, Saver... saver) {
  const auto before = shared_unpacked();
  auto read = saved.unpack(saver...);
  if (reading.versions) reading.versions->note(read);
  reading.hooked |= saved.has_hooks() && shared_unpacked() == before;
  return read;
}
at::Tensor input(const SavedVariable& saved) { return read(saved); }
at::Tensor result(const SavedVariable& saved, Node& node) { return read(saved, node.getptr()); }
int64_t integer(const c10::SymInt& value) { return value.guard_int(__FILE__, __LINE__); }
Ints integers(const std::vector<c10::SymInt>& values) {
  Ints out;
  out.reserve(values.size());
  for (const auto& value : values) out.push_back(integer(value));
  return out;
}

// on<ReluBackward0>(table, [](auto& node, const Place& place) -> Made { ... });
template <typename T, typename F>
void on(Table& table, F) {
  table.emplace(typeid(T), [](Node& node, const Place& place) -> Made { return F{}(static_cast<T&>(node), place); });
}

// Linear maps, and with them attention: nodes/matmul.h, nodes/trilinear.h, nodes/distance.h

// Strided, of real numbers or of complex ones in single or double precision.
bool is_dense(const torch::autograd::InputMetadata& value) {
  return value.layout() == at::kStrided && c10::typeMetaToScalarType(value.dtype()) != at::kComplexHalf;
}
bool is_complex(const torch::autograd::InputMetadata& value) {
  return at::isComplexType(c10::typeMetaToScalarType(value.dtype()));
}

// Wherever something is to be computed: sparse products run alone.
bool dense(const Node& node, const Place& place) {
  for (size_t i = 0; i < place.inputs.size(); ++i) {
    if (!place.live(i) && !place.wanted(i)) continue;
    const auto& edge = node.next_edge(i);
    if (!is_dense(edge.function->input_metadata(edge.input_nr))) return false;
  }
  return is_dense(node.input_metadata(0));
}
// Real besides.
bool plain(const Node& node, const Place& place) {
  for (size_t i = 0; i < place.inputs.size(); ++i)
    if ((place.live(i) || place.wanted(i)) && at::isComplexType(place.dtype(i))) return false;
  return dense(node, place) && !is_complex(node.input_metadata(0));
}

Made product_of(Node& node, const Place& place, const SavedVariable& left, const SavedVariable& right, Product product) {
  if (!dense(node, place) || product.alpha.isComplex() || product.beta.isComplex()) return nullptr;
  product.left.value = input(left);
  product.right.value = input(right);
  const auto sparse = [](const at::Tensor& value) { return value.defined() && value.layout() != at::kStrided; };
  if (sparse(product.left.value) || sparse(product.right.value)) return nullptr;
  return matmul(place, std::move(product));
}

void linear_maps(Table& table) {
  on<MmBackward0>(table, [](auto& node, const Place& place) {
    return product_of(node, place, node.self_, node.mat2_, {{.input = 0}, {.input = 1}});
  });
  on<BmmBackward0>(table, [](auto& node, const Place& place) {
    return product_of(node, place, node.self_, node.mat2_, {{.input = 0}, {.input = 1}});
  });
  on<AddmmBackward0>(table, [](auto& node, const Place& place) {
    return product_of(node, place, node.mat1_, node.mat2_, {{.input = 1}, {.input = 2}, 0, node.alpha, node.beta});
  });
  on<BaddbmmBackward0>(table, [](auto& node, const Place& place) {
    return product_of(node, place, node.batch1_, node.batch2_, {{.input = 1}, {.input = 2}, 0, node.alpha, node.beta});
  });
  on<MvBackward0>(table, [](auto& node, const Place& place) {
    return product_of(node, place, node.self_, node.vec_, {{.input = 0}, {.input = 1, .vector = 1}});
  });
  on<AddmvBackward0>(table, [](auto& node, const Place& place) {
    return product_of(node, place, node.mat_, node.vec_, {{.input = 1}, {.input = 2, .vector = 1}, 0, node.alpha, node.beta});
  });
  on<DotBackward0>(table, [](auto& node, const Place& place) {
    return product_of(node, place, node.self_, node.tensor_, {{.input = 0, .vector = 0}, {.input = 1, .vector = 1}});
  });
  on<VdotBackward0>(table, [](auto& node, const Place& place) -> Made {
    if (!plain(node, place)) return nullptr;  // the conjugate of one of them
    return product_of(node, place, node.self_, node.other_, {{.input = 0, .vector = 0}, {.input = 1, .vector = 1}});
  });
  on<AddrBackward0>(table, [](auto& node, const Place& place) {
    Product product{{.input = 1, .vector = 1}, {.input = 2, .vector = 0}, 0, node.alpha, node.beta};
    return product_of(node, place, node.vec1_, node.vec2_, std::move(product));
  });
}

void bilinear_maps(Table& table) {
  on<TrilinearBackward0>(table, [](auto& node, const Place& place) -> Made {
    if (!plain(node, place)) return nullptr;
    return trilinear(place, {{input(node.i1_), input(node.i2_), input(node.i3_)},
                             {node.expand1, node.expand2, node.expand3},
                             node.sumdim});
  });
  on<EuclideanDistBackward0>(table, [](auto& node, const Place& place) -> Made {
    if (!plain(node, place)) return nullptr;
    return distances(place, input(node.x1_), input(node.x2_), result(node.result_, node));
  });
  on<CdistBackward0>(table, [](auto& node, const Place& place) -> Made {
    auto u = input(node.x1_), w = input(node.x2_);
    const auto y = result(node.result_, node);
    if (node.p != 2 || !plain(node, place) || !y.numel() || u.scalar_type() != w.scalar_type()) return nullptr;
    return distances(place, std::move(u), std::move(w), y);
  });
  on<LinalgCrossBackward0>(table, [](auto& node, const Place& place) -> Made {
    auto u = input(node.self_), w = input(node.other_);
    const bool alike = !u.defined() || !w.defined() || u.scalar_type() == w.scalar_type();
    return plain(node, place) && alike ? cross(place, std::move(u), std::move(w), node.dim) : nullptr;
  });
}

// Convolutions: nodes/convolution.h

template <typename T>
Made convolution_of(T& node, const Place& place) {
  ConvolutionOptions options{integers(node.stride), integers(node.padding), integers(node.dilation),
                             integers(node.output_padding), node.transposed, integer(node.groups)};
  return convolution(place, input(node.input_), input(node.weight_), std::move(options));
}

void convolutions(Table& table) {
  on<ConvolutionBackward0>(table, [](auto& node, const Place& place) { return convolution_of(node, place); });
  on<ConvolutionBackward1>(table, [](auto& node, const Place& place) { return convolution_of(node, place); });  // of traced code
}

// Activations: nodes/gate.h, nodes/activation.h, nodes/glu.h, nodes/softmax.h, nodes/dropout.h

// Whether clamp has a gradient at its ends: from PyTorch 2.14 on it has none.
constexpr bool kEndsPass = TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 14;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <typename T>
Made rrelu(T& node, const Place& place, at::Tensor h, bool is_result) {
  const double lower = node.lower.toDouble(), upper = node.upper.toDouble(), slope = (lower + upper) / 2;
  if (node.training && upper - lower > 1e-6) return noise_rule(place, input(node.noise_));
  return is_result && slope < 0 ? nullptr : gate_rule(place, std::move(h), {Test::kAbove, 0, 0, {1, slope}});
}

void slopes(Table& table) {
  on<ReluBackward0>(table, [](auto& node, const Place& place) -> Made {
    return gate_rule(place, result(node.result_, node), {Test::kWithin, -kInfinity, 0, {0, 1}});
  });
  on<LeakyReluBackward0>(table, [](auto& node, const Place& place) -> Made {
    return gate_rule(place, input(node.self_), {Test::kAbove, 0, 0, {1, node.negative_slope.toDouble()}});
  });
  on<LeakyReluBackward1>(table, [](auto& node, const Place& place) -> Made {
    // PyTorch refuses a negative slope: the result's sign would not be the input's.
    const double slope = node.negative_slope.toDouble();
    return slope < 0 ? nullptr : gate_rule(place, result(node.result_, node), {Test::kAbove, 0, 0, {1, slope}});
  });
  on<RreluWithNoiseBackward0>(table, [](auto& node, const Place& place) -> Made {
    return rrelu(node, place, input(node.self_), /*is_result=*/false);
  });
  on<RreluWithNoiseBackward1>(table, [](auto& node, const Place& place) -> Made {
    return rrelu(node, place, result(node.result_, node), /*is_result=*/true);
  });
  on<PreluKernelBackward0>(table, [](auto& node, const Place& place) -> Made {
    return prelu_rule(place, input(node.self_), input(node.weight_));
  });
  on<AbsBackward0>(table, [](auto& node, const Place& place) -> Made {
    if (plain(node, place)) return abs_rule(place, input(node.self_));
    return dense(node, place) && place.only(0b1) ? modulus(place, input(node.self_)) : nullptr;
  });
}

// Flat inside an interval, or outside.
void intervals(Table& table) {
  const auto threshold = [](auto& node, const Place& place) -> Made {
    return gate_rule(place, input(node.self_), {Test::kWithin, -kInfinity, node.threshold.toDouble(), {0, 1}});
  };
  on<ThresholdBackward0>(table, threshold);
  on<ThresholdBackward1>(table, threshold);
  on<HardtanhBackward0>(table, [](auto& node, const Place& place) -> Made {
    return gate_rule(place, input(node.self_), {Test::kBetween, node.min_val.toDouble(), node.max_val.toDouble(), {1, 0}});
  });
  on<HardsigmoidBackward0>(table, [](auto& node, const Place& place) -> Made {
    return gate_rule(place, input(node.self_), {Test::kBetween, -3, 3, {1.0 / 6, 0}});
  });
  on<ClampBackward1>(table, [](auto& node, const Place& place) -> Made {
    return clamp_rule(place, input(node.self_), node.min, node.max, kEndsPass);
  });
  on<ClampMinBackward0>(table, [](auto& node, const Place& place) -> Made {
    return clamp_rule(place, input(node.self_), node.min, std::nullopt, kEndsPass);
  });
  on<ClampMaxBackward0>(table, [](auto& node, const Place& place) -> Made {
    return clamp_rule(place, input(node.self_), std::nullopt, node.max, kEndsPass);
  });
  const auto shrink = [](auto& node, const Place& place) -> Made { return shrink_rule(place, input(node.self_), node.lambd); };
  on<SoftshrinkBackward0>(table, shrink);
  on<HardshrinkBackward0>(table, shrink);
}

template <typename T, Activation kind>
void of_input(Table& table) {
  on<T>(table, [](auto& node, const Place& place) -> Made { return activation_rule(place, input(node.self_), {kind}); });
}
template <typename T, Activation kind>
void of_result(Table& table) {
  on<T>(table, [](auto& node, const Place& place) -> Made { return activation_rule(place, result(node.result_, node), {kind}); });
}

void curves_without_parameters(Table& table) {
  of_result<TanhBackward0, Activation::kTanh>(table);
  of_result<SigmoidBackward0, Activation::kSigmoid>(table);
  of_input<SiluBackward0, Activation::kSilu>(table);
  of_input<MishBackward0, Activation::kMish>(table);
  of_input<HardswishBackward0, Activation::kHardswish>(table);
  of_result<SqrtBackward0, Activation::kSqrt>(table);
  of_result<RsqrtBackward0, Activation::kRsqrt>(table);
  of_result<ReciprocalBackward0, Activation::kReciprocal>(table);
  of_input<SinBackward0, Activation::kSin>(table);
  of_input<CosBackward0, Activation::kCos>(table);
  of_result<TanBackward0, Activation::kTan>(table);
  of_input<SinhBackward0, Activation::kSinh>(table);
  of_input<CoshBackward0, Activation::kCosh>(table);
  of_input<AtanBackward0, Activation::kAtan>(table);
  of_input<ErfBackward0, Activation::kErf>(table);
}

void linear_units(Table& table) {
  on<SoftplusBackward0>(table, [](auto& node, const Place& place) -> Made {
    return activation_rule(place, input(node.self_), {Activation::kSoftplus, node.beta.toDouble(), node.threshold.toDouble()});
  });
  on<LogSigmoidBackward0>(table, [](auto& node, const Place& place) -> Made {
    result(node.buffer_, node);
    return activation_rule(place, input(node.self_), {Activation::kSoftplus, -1, kInfinity});
  });
  on<EluBackward0>(table, [](auto& node, const Place& place) -> Made {
    return activation_rule(place, input(node.self_), elu(Activation::kElu, node.alpha, node.scale, node.input_scale));
  });
  on<EluBackward1>(table, [](auto& node, const Place& place) -> Made {
    at::Tensor y = result(node.result_, node);
    if (node.alpha.toDouble() < 0) return nullptr;  // PyTorch refuses it
    return activation_rule(place, std::move(y), elu(Activation::kEluOfResult, node.alpha, node.scale, node.input_scale));
  });
  on<CeluBackward0>(table, [](auto& node, const Place& place) -> Made {
    return activation_rule(place, input(node.self_), elu(Activation::kElu, node.alpha, 1, 1.0 / node.alpha.toFloat()));
  });
  on<CeluBackward1>(table, [](auto& node, const Place& place) -> Made {
    at::Tensor y = result(node.result_, node);
    if (node.alpha.toDouble() < 0) return nullptr;
    return activation_rule(place, std::move(y), elu(Activation::kEluOfResult, node.alpha, 1, 1.0 / node.alpha.toFloat()));
  });
  on<GeluBackward0>(table, [](auto& node, const Place& place) -> Made {
    return activation_rule(place, input(node.self_), {node.approximate == "tanh" ? Activation::kGeluTanh : Activation::kGelu});
  });
  on<GluBackward0>(table, [](auto& node, const Place& place) -> Made { return glu_rule(place, input(node.self_), node.dim); });
}

void exponentials_and_powers(Table& table) {
  on<ExpBackward0>(table, [](auto& node, const Place& place) -> Made {
    return activation_rule(place, result(node.result_, node), {Activation::kExponential, 1, 0});
  });
  on<Exp2Backward0>(table, [](auto& node, const Place& place) -> Made {
    return activation_rule(place, result(node.result_, node), {Activation::kExponential, std::log(2.0), 0});
  });
  on<Expm1Backward0>(table, [](auto& node, const Place& place) -> Made {
    return activation_rule(place, result(node.result_, node), {Activation::kExponential, 1, 1});
  });
  on<LogBackward0>(table, [](auto& node, const Place& place) -> Made {
    return activation_rule(place, input(node.self_), {Activation::kLogarithm, 1, 0});
  });
  on<Log2Backward0>(table, [](auto& node, const Place& place) -> Made {
    return activation_rule(place, input(node.self_), {Activation::kLogarithm, 1 / std::log(2.0), 0});
  });
  on<Log10Backward0>(table, [](auto& node, const Place& place) -> Made {
    return activation_rule(place, input(node.self_), {Activation::kLogarithm, 1 / std::log(10.0), 0});
  });
  on<Log1PBackward0>(table, [](auto& node, const Place& place) -> Made {
    return activation_rule(place, input(node.self_), {Activation::kLogarithm, 1, 1});
  });
  on<PowBackward0>(table, [](auto& node, const Place& place) -> Made {
    return power_rule(place, input(node.self_), node.exponent);
  });
  on<PowBackward2>(table, [](auto& node, const Place& place) -> Made {
    input(node.exponent_);
    at::Tensor y = result(node.result_, node);
    if (node.self.isComplex() || node.self.toDouble() <= 0) return nullptr;
    return activation_rule(place, std::move(y), {Activation::kExponential, std::log(node.self.toDouble()), 0});
  });
}

void softmaxes_and_dropout(Table& table) {
  on<SoftmaxBackward0>(table, [](auto& node, const Place& place) -> Made {
    return softmax_rule(place, result(node.result_, node), node.dim);
  });
  // Of attention: rows that are masked whole are zero, and so are their derivatives.
  on<SafeSoftmaxBackward0>(table, [](auto& node, const Place& place) -> Made {
    return softmax_rule(place, result(node.result_, node), node.dim);
  });
  on<LogSoftmaxBackward0>(table, [](auto& node, const Place& place) -> Made {
    return log_softmax_rule(place, result(node.result_, node), node.dim);
  });
  on<LogsumexpBackward0>(table, [](auto& node, const Place& place) -> Made {
    return logsumexp_rule(place, input(node.self_), result(node.result_, node), node.dim, node.keepdim);
  });
  on<NativeDropoutBackward0>(table, [](auto& node, const Place& place) -> Made {
    const bool drops = node.train.value_or(false);
    return dropout_rule(place, result(node.result1_, node), !drops ? 1 : node.p == 1 ? 0 : 1 / (1 - node.p));
  });
}

void activations(Table& table) {
  for (auto* add :
       {&slopes, &intervals, &curves_without_parameters, &linear_units, &exponentials_and_powers, &softmaxes_and_dropout})
    add(table);
}

// Normalisation: nodes/normalize.h

template <typename T>
Made training_batch_norm(T& node, const Place& place) {
  return batch_norm(place, {input(node.input_), result(node.result1_, node), result(node.result2_, node), input(node.weight_)});
}

template <typename T>
Made any_batch_norm(T& node, const Place& place, bool training, double eps) {
  auto mean = input(node.running_mean_), variance = input(node.running_var_);
  if (training) return training_batch_norm(node, place);
  return frozen_batch_norm(place, input(node.input_), std::move(mean), std::move(variance), input(node.weight_), eps);
}

void normalizations(Table& table) {
  on<NativeLayerNormBackward0>(table, [](auto& node, const Place& place) -> Made {
    SavedNorm saved{input(node.input_), result(node.result1_, node), result(node.result2_, node), input(node.weight_)};
    input(node.bias_);
    return layer_norm(place, std::move(saved), static_cast<int64_t>(node.normalized_shape.size()));
  });
  on<FusedRmsNormBackward0>(table, [](auto& node, const Place& place) -> Made {
    SavedNorm saved{input(node.input_), at::Tensor(), result(node.result1_, node), input(node.weight_)};
    return layer_norm(place, std::move(saved), static_cast<int64_t>(node.normalized_shape.size()));
  });
  on<NativeGroupNormBackward0>(table, [](auto& node, const Place& place) -> Made {
    SavedNorm saved{input(node.input_), result(node.result1_, node), result(node.result2_, node), input(node.weight_)};
    return group_norm(place, std::move(saved), node.group);
  });
  on<NativeBatchNormBackward0>(
      table, [](auto& node, const Place& place) { return any_batch_norm(node, place, node.training, node.eps); });
  on<CudnnBatchNormBackward0>(
      table, [](auto& node, const Place& place) { return any_batch_norm(node, place, node.training, node.epsilon); });
  on<MiopenBatchNormBackward0>(
      table, [](auto& node, const Place& place) { return any_batch_norm(node, place, node.training, node.epsilon); });
  on<NativeBatchNormLegitBackward0>(
      table, [](auto& node, const Place& place) { return any_batch_norm(node, place, node.training, node.eps); });
  on<NativeBatchNormLegitBackward1>(
      table, [](auto& node, const Place& place) { return node.training ? training_batch_norm(node, place) : nullptr; });
  on<NativeBatchNormLegitNoTrainingBackward0>(
      table, [](auto& node, const Place& place) { return any_batch_norm(node, place, false, node.eps); });
  on<BatchNormWithUpdateBackward0>(
      table, [](auto& node, const Place& place) { return any_batch_norm(node, place, true, node.eps); });
  on<BatchNormNoUpdateBackward0>(
      table, [](auto& node, const Place& place) { return any_batch_norm(node, place, false, node.eps); });
}

// Arithmetic and reductions: nodes/arithmetic.h, nodes/product.h, nodes/functions.h, nodes/reduce.h

bool asked(const Place& place, size_t i) { return place.live(i) || place.wanted(i); }

// Besides, all is on one device.
bool local(const Node& node, const Place& place) {
  const auto& out = node.input_metadata(0);
  for (size_t i = 0; i < place.inputs.size(); ++i) {
    if (!asked(place, i)) continue;
    const auto& edge = node.next_edge(i);
    if (edge.function->input_metadata(edge.input_nr).device() != out.device()) return false;
  }
  return dense(node, place);
}

// Of real or of complex values.
template <typename T, typename F>
void on_field(Table& table, F) {
  on<T>(table, [](auto& node, const Place& place) -> Made { return local(node, place) ? F{}(node, place) : nullptr; });
}
template <typename T, typename F>
void on_local(Table& table, F) {
  on<T>(table, [](auto& node, const Place& place) -> Made {
    return local(node, place) && plain(node, place) ? F{}(node, place) : nullptr;
  });
}

// Which adjoints meet the conjugate of.
bool is_imaginary(const at::Scalar& factor) { return factor.isComplex() && factor.toComplexDouble().imag() != 0; }
Made linear_of(const Place& place, const char* name, const at::Scalar& first, const at::Scalar& second) {
  if (is_imaginary(first) || is_imaginary(second)) return nullptr;
  return combination(place, name, {first.toDouble(), second.toDouble()});
}
Made scaling(const Place& place, const at::Scalar& factor) {
  if (is_imaginary(factor)) return rotation(place, factor.toComplexDouble());
  return combination(place, "scale", {factor.toDouble()});
}

// What the node reads for the gradients of these inputs.
at::Tensor read_for(std::initializer_list<size_t> inputs, const SavedVariable& saved, const Place& place) {
  for (size_t i : inputs)
    if (asked(place, i)) return input(saved);
  return at::Tensor();
}

template <typename T>
Made quotient_of(T& node, const Place& place) {
  auto self = read_for({1}, node.self_, place);
  return quotient(place, std::move(self), read_for({0, 1}, node.other_, place));
}

void linear_arithmetic(Table& table) {
  const auto pass = [](auto&, const Place& place) -> Made { return combination(place, "pass", {1}); };
  on_field<AliasBackward0>(table, pass);
  on_field<CloneBackward0>(table, pass);
  on_field<ToCopyBackward0>(table, pass);
  on_field<torch::autograd::CopyBackwards>(
      table, [](auto&, const Place& place) -> Made { return combination(place, "copy", {0, 1}); });
  on_field<AddBackward0>(table, [](auto& node, const Place& place) -> Made {
    return linear_of(place, "add", 1, node.alpha);
  });
  on_field<AddBackward1>(table, [](auto&, const Place& place) -> Made { return combination(place, "add", {1}); });
  on_field<SubBackward0>(table, [](auto& node, const Place& place) -> Made {
    return linear_of(place, "sub", 1, -node.alpha);
  });
  on_field<SubBackward1>(table, [](auto&, const Place& place) -> Made { return combination(place, "sub", {1}); });
  on_field<RsubBackward0>(table, [](auto& node, const Place& place) -> Made {
    return linear_of(place, "sub", -node.alpha, 1);
  });
  on_field<RsubBackward1>(table, [](auto& node, const Place& place) -> Made {
    return is_imaginary(node.alpha) ? nullptr : combination(place, "sub", {-node.alpha.toDouble()});
  });
  on_field<NegBackward0>(table, [](auto&, const Place& place) -> Made { return combination(place, "scale", {-1}); });
  on_field<MulBackward1>(table, [](auto& node, const Place& place) -> Made {
    return scaling(place, node.other);
  });
  on_field<DivBackward1>(table, [](auto& node, const Place& place) -> Made {
    return scaling(place, is_imaginary(node.other) ? at::Scalar(1. / node.other.toComplexDouble()) : 1 / node.other.toDouble());
  });
  on_field<LerpBackward0>(table, [](auto& node, const Place& place) -> Made {
    return is_imaginary(node.weight) ? nullptr
                                     : combination(place, "lerp", {1 - node.weight.toDouble(), node.weight.toDouble()});
  });
  const auto jumps = [](auto&, const Place& place) -> Made { return combination(place, "pass", {1}); };
  on_local<FracBackward0>(table, jumps);
  on_local<FmodBackward0>(table, jumps);
  on_local<RemainderBackward0>(table, jumps);
}

void products(Table& table) {
  on_field<MulBackward0>(table, [](auto& node, const Place& place) -> Made {
    auto self = read_for({1}, node.self_, place);
    auto other = read_for({0}, node.other_, place);
    if (place.only(0b11) && node.next_edge(0) == node.next_edge(1)) return square(place, std::move(self));
    return product(place, std::move(self), std::move(other));
  });
  on_field<DivBackward0>(table, [](auto& node, const Place& place) -> Made { return quotient_of(node, place); });
  on_field<DivBackward2>(table, [](auto& node, const Place& place) -> Made {
    return node.rounding_mode ? nullptr : quotient_of(node, place);
  });
}

// A loss that is part of a critic, say the error of an autoencoder.
template <typename T>
Made error_of(T& node, const Place& place, double width, double scale) {
  return error_rule(place, {input(node.self_), input(node.target_), width, scale}, node.reduction);
}

void inverses(Table& table) {
  on_local<AsinBackward0>(table, [](auto& node, const Place& place) -> Made {
    return inverse_rule(place, input(node.self_), {1, -1, -0.5});
  });
  on_local<AcosBackward0>(table, [](auto& node, const Place& place) -> Made {
    return inverse_rule(place, input(node.self_), {1, -1, -0.5, -1});
  });
  on_local<AsinhBackward0>(table, [](auto& node, const Place& place) -> Made {
    return inverse_rule(place, input(node.self_), {1, 1, -0.5});
  });
  on_local<AcoshBackward0>(table, [](auto& node, const Place& place) -> Made {
    return inverse_rule(place, input(node.self_), {-1, 1, -0.5});
  });
  on_local<AtanhBackward0>(table, [](auto& node, const Place& place) -> Made {
    return inverse_rule(place, input(node.self_), {1, -1, -1});
  });
}

void functions_of_several(Table& table) {
  on_local<AddcmulBackward0>(table, [](auto& node, const Place& place) -> Made {
    return addcmul_rule(place, input(node.tensor1_), input(node.tensor2_), node.value.toDouble());
  });
  on_local<AddcdivBackward0>(table, [](auto& node, const Place& place) -> Made {
    return addcdiv_rule(place, input(node.tensor1_), input(node.tensor2_), node.value.toDouble());
  });
  on_local<LerpBackward1>(table, [](auto& node, const Place& place) -> Made {
    return lerp_rule(place, input(node.self_), input(node.end_), input(node.weight_));
  });
  on_local<PowBackward1>(table, [](auto& node, const Place& place) -> Made {
    return powers_rule(place, input(node.self_), input(node.exponent_), result(node.result_, node));
  });
  on_local<Atan2Backward0>(table, [](auto& node, const Place& place) -> Made {
    return angle_rule(place, input(node.self_), input(node.other_));
  });
  on_local<HypotBackward0>(table, [](auto& node, const Place& place) -> Made {
    return hypotenuse_rule(place, input(node.self_), input(node.other_), result(node.result_, node));
  });
  on_local<LogaddexpBackward0>(table, [](auto& node, const Place& place) -> Made {
    return logaddexp_rule(place, input(node.self_), input(node.other_), 1);
  });
  on_local<Logaddexp2Backward0>(table, [](auto& node, const Place& place) -> Made {
    return logaddexp_rule(place, input(node.self_), input(node.other_), std::log(2.0));
  });
  on_local<MseLossBackward0>(table, [](auto& node, const Place& place) -> Made {
    return error_of(node, place, kInfinity, 2);
  });
  on_local<SmoothL1LossBackward0>(table, [](auto& node, const Place& place) -> Made {
    return node.beta > 0 ? error_of(node, place, node.beta, 1 / node.beta) : nullptr;
  });
  on_local<HuberLossBackward0>(table, [](auto& node, const Place& place) -> Made {
    return error_of(node, place, node.delta, 1);
  });
}

void selections(Table& table) {
  on_field<WhereBackward0>(table, [](auto& node, const Place& place) -> Made {
    return selection(place, "where", input(node.condition_).to(at::kBool), 0, 1);
  });
  on_field<MaskedFillBackward0>(table, [](auto& node, const Place& place) -> Made {
    return selection(place, "masked_fill", input(node.mask_).to(at::kBool), 1, 0);
  });
  on_field<MaskedFillBackward1>(table, [](auto& node, const Place& place) -> Made {
    return selection(place, "masked_fill", input(node.mask_).to(at::kBool), 1, 0);
  });
  on_local<MaximumBackward0>(table, [](auto& node, const Place& place) -> Made {
    return larger(place, input(node.self_), input(node.other_));
  });
  on_local<MinimumBackward0>(table, [](auto& node, const Place& place) -> Made {
    return smaller(place, input(node.self_), input(node.other_));
  });
  on_local<FmaxBackward0>(table, [](auto& node, const Place& place) -> Made {
    const auto u = input(node.self_), w = input(node.other_);
    return selection(place, "fmax", at::ge(u, w).logical_or_(at::isnan(w)), 0, 1);
  });
  on_local<FminBackward0>(table, [](auto& node, const Place& place) -> Made {
    const auto u = input(node.self_), w = input(node.other_);
    return selection(place, "fmin", at::le(u, w).logical_or_(at::isnan(w)), 0, 1);
  });
}

void linear_reductions(Table& table) {
  on_field<SumBackward0>(table, [](auto&, const Place& place) -> Made { return sum(place, {}); });
  on_field<SumBackward1>(table, [](auto& node, const Place& place) -> Made {
    return sum(place, {node.dim.list.value_or(Ints()), node.keepdim});
  });
  on_field<MeanBackward0>(table, [](auto&, const Place& place) -> Made { return mean(place, {}); });
  on_field<MeanBackward1>(table, [](auto& node, const Place& place) -> Made {
    return mean(place, {node.dim.list.value_or(Ints()), node.keepdim});
  });
  const auto by_value = [](auto& node, const Place& place) -> Made {
    return extreme(place, input(node.self_), result(node.result_, node), {node.dim, node.keepdim});
  };
  on_local<AmaxBackward0>(table, by_value);
  on_local<AminBackward0>(table, by_value);
  const auto of_all = [](auto& node, const Place& place) -> Made {
    return extreme(place, input(node.self_), result(node.result_, node), {});
  };
  on_local<MaxBackward1>(table, of_all);
  on_local<MinBackward1>(table, of_all);
  on_local<MedianBackward0>(table, of_all);
  on_local<NanmedianBackward0>(table, of_all);
  const auto by_index = [](auto& node, const Place& place) -> Made {
    return picked(place, result(node.indices_, node), node.dim, node.keepdim);
  };
  on_local<MaxBackward0>(table, by_index);
  on_local<MinBackward0>(table, by_index);
  on_local<MedianBackward1>(table, by_index);
  on_local<NanmedianBackward1>(table, by_index);
  on_local<KthvalueBackward0>(table, by_index);
  on_local<ModeBackward0>(table, by_index);
}

template <typename T>
Reduced over(T& node) {
  return {node.dim.list.value_or(Ints()), node.keepdim};
}
// dims that are given and empty mean all dimensions to the operation, and none to its derivative: such a one runs alone.
template <typename T>
bool ambiguous(const T& node) {
  return node.dim.list && node.dim.list->empty();
}
double correction(const std::optional<at::Scalar>& value) { return value ? value->toDouble() : 1; }
// The node computes in the dtype of its output where that is asked for: such a one runs alone.
template <typename T>
Made norm_of(T& node, const Place& place, const std::optional<at::Scalar>& p, Reduced over) {
  if ((p && p->isComplex()) || c10::typeMetaToScalarType(node.input_metadata(0).dtype()) != place.dtype(0)) return nullptr;
  const double order = p ? p->toDouble() : 2;
  const auto x = input(node.self_), y = result(node.result_, node);
  if (order == 2) return norm(place, x, y, std::move(over));
  if (order == 1) return sum_of_sizes(place, x, std::move(over));
  return std::isinf(order) ? extreme_size(place, x, y, std::move(over)) : nullptr;
}

void curved_reductions(Table& table) {
  on_local<VarBackward0>(table, [](auto& node, const Place& place) -> Made {
    if (ambiguous(node)) return nullptr;
    return variance(place, input(node.self_), over(node), correction(node.correction));
  });
  on_local<VarMeanBackward0>(table, [](auto& node, const Place& place) -> Made {
    if (ambiguous(node)) return nullptr;
    return variance(place, input(node.self_), over(node), correction(node.correction));
  });
  on_local<StdBackward0>(table, [](auto& node, const Place& place) -> Made {
    if (ambiguous(node)) return nullptr;
    return deviation(place, input(node.self_), result(node.result_, node), over(node), correction(node.correction));
  });
  on_local<StdMeanBackward0>(table, [](auto& node, const Place& place) -> Made {
    if (ambiguous(node)) return nullptr;
    return deviation(place, input(node.self_), result(node.result0_, node), over(node), correction(node.correction));
  });
  on_local<LinalgVectorNormBackward0>(table, [](auto& node, const Place& place) -> Made {
    return norm_of(node, place, node.ord, over(node));
  });
  on_local<NormBackward0>(table, [](auto& node, const Place& place) -> Made { return norm_of(node, place, node.p, {}); });
  on_local<NormBackward1>(table, [](auto& node, const Place& place) -> Made {
    return norm_of(node, place, node.p, {node.dim, node.keepdim});
  });
  on_local<ProdBackward0>(table, [](auto& node, const Place& place) -> Made {
    return product_over(place, input(node.self_), result(node.result_, node), {});
  });
  on_local<ProdBackward1>(table, [](auto& node, const Place& place) -> Made {
    return product_over(place, input(node.self_), result(node.result_, node), {{node.dim}, node.keepdim});
  });
}

void arithmetic_and_reductions(Table& table) {
  for (auto* add :
       {&linear_arithmetic, &products, &inverses, &functions_of_several, &selections, &linear_reductions, &curved_reductions})
    add(table);
}

// Shapes: nodes/shape.h, nodes/merge.h

// For strided values: not for sparse ones. All of them real, or all complex.
template <typename T, typename F>
void on_strided(Table& table, F) {
  on<T>(table, [](auto& node, const Place& place) -> Made {
    const auto& out = node.input_metadata(0);
    bool strided = is_dense(out);
    for (const auto& edge : node.next_edges()) {
      if (!edge.is_valid()) continue;
      const auto& value = edge.function->input_metadata(edge.input_nr);
      strided = strided && is_dense(value) && is_complex(value) == is_complex(out);
    }
    return strided ? F{}(node, place) : nullptr;
  });
}

std::optional<int64_t> maybe_integer(const std::optional<c10::SymInt>& value) {
  return value ? std::optional(integer(*value)) : std::nullopt;
}
int64_t size_at(const Ints& sizes, int64_t dim) { return sizes[at::maybe_wrap_dim(dim, static_cast<int64_t>(sizes.size()))]; }

// The view has all elements of the base, one after the other.
bool is_reshaped(const at::TensorGeometry& base, const at::TensorGeometry& view) {
  return base.is_contiguous() && view.is_contiguous() && base.numel() == view.numel() && base.storage_offset() == view.storage_offset();
}

void views(Table& table) {
  const auto same_order = [](auto&, const Place& place) -> Made { return reshape(place); };
  on_strided<ViewBackward0>(table, same_order);
  on_strided<UnsafeViewBackward0>(table, same_order);
  on_strided<ReshapeAliasBackward0>(table, same_order);
  on_strided<SqueezeBackward0>(table, same_order);
  on_strided<SqueezeBackward1>(table, same_order);
  on_strided<SqueezeBackward2>(table, same_order);
  on_strided<SqueezeBackward3>(table, same_order);
  on_strided<SqueezeBackward4>(table, same_order);
  on_strided<SqueezeBackward5>(table, same_order);
  on_strided<UnsqueezeBackward0>(table, same_order);
  on_strided<UnsqueezeBackward1>(table, same_order);
  on_strided<AsStridedBackward0>(table, [](auto& node, const Place& place) -> Made {
    const auto& base = node.self_geometry;
    const at::TensorGeometry view(node.size, node.stride,
                                  node.storage_offset.value_or(base.sym_storage_offset()));
    if (is_reshaped(base, view)) return reshape(place);
    if (const auto part = Part::of(base, view)) return strided(place, *part);
    if (!base.is_contiguous()) return nullptr;
    return as_strided(place, integers(node.size), integers(node.stride), view.storage_offset() - base.storage_offset());
  });
  const auto swapped = [](auto& node, const Place& place) -> Made { return transpose(place, node.dim0, node.dim1); };
  on_strided<TransposeBackward0>(table, swapped);
  on_strided<TransposeBackward1>(table, swapped);
  const auto matrix = [](auto&, const Place& place) -> Made { return matrix_transpose(place); };
  on_strided<TBackward0>(table, matrix);
  on_strided<TBackward1>(table, matrix);
  on_strided<PermuteBackward0>(table, [](auto& node, const Place& place) -> Made { return permute(place, node.dims); });
}

void slices(Table& table) {
  on_strided<SliceBackward0>(table, [](auto& node, const Place& place) -> Made {
    return slice(place, node.dim, maybe_integer(node.start), maybe_integer(node.end), integer(node.step));
  });
  on_strided<SelectBackward0>(table, [](auto& node, const Place& place) -> Made {
    return select(place, node.dim, integer(node.index));
  });
  const auto diagonals = [](auto& node, const Place& place) -> Made {
    return diagonal(place, node.offset, node.dim1, node.dim2);
  };
  on_strided<DiagonalBackward0>(table, diagonals);
  on_strided<DiagonalBackward0_copy>(table, diagonals);
  on_strided<DiagEmbedBackward0>(table, [](auto& node, const Place& place) -> Made {
    return diag_embed(place, node.offset, node.dim1, node.dim2);
  });
  on_strided<TraceBackward0>(table, [](auto&, const Place& place) -> Made { return trace(place); });
  on_strided<UnfoldBackward0>(table, [](auto& node, const Place& place) -> Made {
    return unfold(place, node.dimension, node.size, node.step);
  });
  on_strided<UnfoldBackwardBackward0>(table, [](auto& node, const Place& place) -> Made {
    return overlap_add(place, node.dim, node.size, node.step);
  });
  on_strided<ConstantPadNdBackward0>(table, [](auto& node, const Place& place) -> Made {
    return constant_pad(place, integers(node.pad));
  });
  on_strided<TrilBackward0>(table, [](auto& node, const Place& place) -> Made {
    return triangle(place, integer(node.diagonal), /*upper=*/false);
  });
  on_strided<TriuBackward0>(table, [](auto& node, const Place& place) -> Made {
    return triangle(place, integer(node.diagonal), /*upper=*/true);
  });
}

void rearrangements(Table& table) {
  on_strided<ExpandBackward0>(table, [](auto&, const Place& place) -> Made { return expand(place); });
  on_strided<RepeatBackward0>(table, [](auto& node, const Place& place) -> Made {
    return repeat(place, integers(node.repeats));
  });
  on_strided<FlipBackward0>(table, [](auto& node, const Place& place) -> Made { return flip(place, node.dims); });
  on_strided<RollBackward0>(table, [](auto& node, const Place& place) -> Made {
    return roll(place, integers(node.shifts), node.dims);
  });
  on_strided<Rot90Backward0>(table, [](auto& node, const Place& place) -> Made { return rot90(place, node.k, node.dims); });
  on_strided<CumsumBackward0>(table, [](auto& node, const Place& place) -> Made {
    const auto dtype = c10::typeMetaToScalarType(node.input_metadata(0).dtype());
    return dtype == place.dtype(0) ? cumsum(place, node.dim) : nullptr;
  });
}

void indexings(Table& table) {
  const auto advanced = [](auto& node, const Place& place) -> Made {
    if (node.indices_released_) return nullptr;
    std::vector<at::Tensor> indices;
    for (const auto& saved : node.indices_) indices.push_back(input(saved));
    return index(place, std::move(indices));
  };
  on_strided<IndexBackward0>(table, advanced);
  on_strided<UnsafeIndexBackward0>(table, advanced);
  on_strided<IndexSelectBackward0>(table, [](auto& node, const Place& place) -> Made {
    return index_select(place, node.dim, input(node.index_));
  });
  on_strided<GatherBackward0>(table, [](auto& node, const Place& place) -> Made {
    if (node.sparse_grad) return nullptr;
    input(node.self_);
    return gather(place, node.dim, input(node.index_));
  });
  // Which element went where is what they saved.
  const auto moved = [](auto& node, const Place& place) -> Made {
    return gather(place, node.dim, result(node.indices_, node));
  };
  on_strided<SortBackward0>(table, moved);
  on_strided<SortBackward1>(table, moved);
  on_strided<TopkBackward0>(table, moved);
  const auto running = [](auto& node, const Place& place) -> Made {
    input(node.self_);
    return gather(place, node.dim, result(node.indices_, node));
  };
  on_strided<CummaxBackward0>(table, running);
  on_strided<CumminBackward0>(table, running);
  on_strided<TakeBackward0>(table, [](auto& node, const Place& place) -> Made {
    input(node.self_);
    return take(place, input(node.index_));
  });
}

const Table& table();

// The view of a fake tensor, or of another one that Python dispatches, is replayed by a function, which no geometry describes in
// full: a negative view has that of its base. So it is tried on a tensor without data, which nothing watches.
bool only_moves(const torch::autograd::CopySlices& node) {
  if (!node.view_fn) return true;
  if (node.base.storage_offset() != 0) return false;
  const c10::impl::ExcludeDispatchKeyGuard unwatched(c10::python_ks);
  const at::AutoDispatchBelowADInplaceOrView without_graph;
  const auto options = at::TensorOptions().dtype(node.input_metadata(0).dtype()).device(at::kMeta);
  const auto base = at::empty_strided(node.base.sizes(), node.base.strides(), options);
  const auto view = (*node.view_fn)(base);
  return view.scalar_type() == base.scalar_type() && !view.is_neg() && !view.is_conj();
}

template <typename... T>
bool is_any(const Node& node) {
  return ((typeid(node) == typeid(T)) || ...);
}

// Zeros, numbers and copies read nothing of the view; other operations have their own rules.
Made overwritten_part(torch::autograd::CopySlices& node, const Place& place, const Part& part) {
  const auto inner = place_on_view(place, *node.fn);
  if (asked(place, 0) && !node.fn->next_edge(0).is_valid()) return nullptr;
  const bool copies = is_any<torch::autograd::CopyBackwards>(*node.fn);
  if (copies || is_any<FillBackward0, FillBackward1, FillBackward2, FillBackward3, ZeroBackward0>(*node.fn))
    return local(*node.fn, inner) ? overwrite(place, of_part(copies ? "copy" : "fill", part)) : nullptr;
  const auto found = table().find(typeid(*node.fn));
  if (found == table().end()) return nullptr;
  auto rule = found->second(*node.fn, inner);
  return rule ? on_part(place, node.fn, std::move(rule), part) : nullptr;
}

void overwritten_views(Table& made) {
  on_strided<torch::autograd::CopySlices>(made, [](auto& node, const Place& place) -> Made {
    if (!node.fn || !only_moves(node)) return nullptr;
    if (!is_reshaped(node.base, node.view)) {
      const auto part = Part::of(node.base, node.view);
      return part ? overwritten_part(node, place, *part) : nullptr;
    }
    const auto found = table().find(typeid(*node.fn));
    if (found == table().end()) return nullptr;
    auto inner = found->second(*node.fn, place_on_view(place, *node.fn));
    return inner ? on_view(place, node.fn, std::move(inner)) : nullptr;
  });
}

// A tensor written into another, out of place or in it: nodes/overwrite.h

template <typename T>
Made index_put_of(T& node, const Place& place) {
  if (node.indices_released_) return nullptr;
  std::vector<at::Tensor> indices;
  for (const auto& saved : node.indices_) indices.push_back(input(saved));
  auto how = of_indices(place, indices, node.accumulate);
  return how ? overwrite(place, std::move(*how)) : nullptr;
}

// Rows along a dimension; an index that is a number runs alone, and so does what has no dimension.
bool is_row_index(const Node& node, const at::Tensor& index) {
  return index.dim() == 1 && !node.input_metadata(0).shape_as_dim_vector().empty();
}

void indexed_writes(Table& table) {
  const auto put = [](auto& node, const Place& place) -> Made { return index_put_of(node, place); };
  on_strided<IndexPutBackward0>(table, put);
  on_strided<UnsafeIndexPutBackward0>(table, put);
  on_strided<IndexPutImplBackward0>(table, put);
  on_strided<IndexCopyBackward0>(table, [](auto& node, const Place& place) -> Made {
    const auto index = input(node.index_);
    input(node.source_);
    return is_row_index(node, index) ? overwrite(place, of_index_copy(node.dim, index)) : nullptr;
  });
  on_strided<IndexAddBackward0>(table, [](auto& node, const Place& place) -> Made {
    const auto index = input(node.index_);
    input(node.source_);
    return is_row_index(node, index) ? overwrite(place, of_index_add(node.dim, index, node.alpha.toDouble())) : nullptr;
  });
  on_strided<IndexFillBackward0>(table, [](auto& node, const Place& place) -> Made {
    const auto index = input(node.index_);
    return is_row_index(node, index) ? overwrite(place, of_index_fill(node.dim, index)) : nullptr;
  });
  on_strided<IndexFillBackward1>(table, [](auto& node, const Place& place) -> Made {
    const auto index = input(node.index_);
    return is_row_index(node, index) && !asked(place, 1) ? overwrite(place, of_index_fill(node.dim, index)) : nullptr;
  });
}

// PyTorch, too, has a derivative only for a source of the index's sizes.
template <typename T>
Made scatter_of(T& node, const Place& place, const at::Tensor& index, bool add) {
  const bool has_source = place.inputs.size() > 1 && asked(place, 1);
  const bool whole_source = !has_source || index.sizes() == at::IntArrayRef(place.sizes(1));
  const bool has_dims = index.dim() && !node.input_metadata(0).shape_as_dim_vector().empty();
  return has_dims && whole_source ? overwrite(place, of_scatter(node.dim, index, add)) : nullptr;
}

void scatters(Table& table) {
  const auto over = [](auto& node, const Place& place) -> Made {
    return scatter_of(node, place, input(node.index_), /*add=*/false);
  };
  on_strided<ScatterBackward0>(table, over);
  on_strided<ScatterBackward1>(table, over);
  on_strided<ScatterAddBackward0>(table, [](auto& node, const Place& place) -> Made {
    return scatter_of(node, place, input(node.index_), /*add=*/true);
  });
  on_strided<ScatterReduceBackward0>(table, [](auto& node, const Place& place) -> Made {
    input(node.self_);
    input(node.src_);
    result(node.result_, node);
    return node.reduce == "sum" ? scatter_of(node, place, input(node.index_), node.include_self) : nullptr;
  });
  on_strided<MaskedScatterBackward0>(table, [](auto& node, const Place& place) -> Made {
    const auto source = integers(node.source_sym_sizes);
    return overwrite(place, of_mask(input(node.mask_), Sizes(source.begin(), source.end())));
  });
  on_strided<SliceScatterBackward0>(table, [](auto& node, const Place& place) -> Made {
    return overwrite(place, of_slice(node.dim, maybe_integer(node.start), maybe_integer(node.end), integer(node.step)));
  });
  on_strided<SelectScatterBackward0>(table, [](auto& node, const Place& place) -> Made {
    return overwrite(place, of_select(node.dim, integer(node.index)));
  });
  on_strided<DiagonalScatterBackward0>(table, [](auto& node, const Place& place) -> Made {
    return overwrite(place, of_diagonal(node.offset, node.dim1, node.dim2));
  });
}

void merges(Table& table) {
  on_strided<CatBackward0>(table, [](auto& node, const Place& place) -> Made {
    Ints lengths;
    for (const auto& symbolic : node.tensors_args_sizes_symint) {
      const auto sizes = integers(symbolic);
      const bool overlooked = sizes.size() == 1 && sizes[0] == 0;
      lengths.push_back(overlooked ? 0 : size_at(sizes, node.dim));
    }
    return cat(place, node.dim, std::move(lengths), node.tensors_args_scalartypes);
  });
  on_strided<StackBackward0>(table, [](auto& node, const Place& place) -> Made {
    return stack(place, node.dim, node.tensors_args_scalartypes);
  });
  const auto even = [](auto& node, const Place& place) -> Made {
    const auto sizes = integers(node.self_sym_sizes);
    const int64_t length = integer(node.split_size), total = size_at(sizes, node.dim);
    Ints lengths;
    for (size_t k = 0; k < place.outputs; ++k) lengths.push_back(std::min(length, total - static_cast<int64_t>(k) * length));
    return split(place, node.dim, std::move(lengths));
  };
  on_strided<SplitBackward0>(table, even);
  on_strided<UnsafeSplitBackward0>(table, even);
  const auto uneven = [](auto& node, const Place& place) -> Made { return split(place, node.dim, integers(node.split_sizes)); };
  on_strided<SplitWithSizesBackward0>(table, uneven);
  on_strided<UnsafeSplitWithSizesBackward0>(table, uneven);
  on_strided<UnbindBackward0>(table, [](auto& node, const Place& place) -> Made { return unbind(place, node.dim); });
}

void shapes(Table& table) {
  for (auto* add : {&views, &slices, &rearrangements, &indexings, &merges}) add(table);
  for (auto* add : {&overwritten_views, &indexed_writes, &scatters}) add(table);
}

// Pooling and resampling: nodes/pool.h, nodes/resample.h

// The last `dimensions` of a node's result.
Ints plane_of(const Node& node, size_t dimensions) {
  const auto shape = sizes_of(node.input_metadata(0));
  return Ints(shape.end() - static_cast<int64_t>(dimensions), shape.end());
}

template <size_t spatial, typename T>
Made average_pool_of(T& node, const Place& place) {
  AveragePool pool{node.kernel_size, node.stride, node.padding, node.ceil_mode, node.count_include_pad, node.divisor_override};
  return average_pool(place, input(node.self_), spatial, pool);
}

template <size_t spatial, typename T>
Made max_pool_of(T& node, const Place& place) {
  return max_pool(place, input(node.self_), result(node.result1_, node), spatial,
                  {node.kernel_size, node.stride, node.padding, node.dilation, node.ceil_mode});
}

template <typename T>
void fractional(Table& table) {
  on<T>(table, [](auto& node, const Place& place) -> Made {
    return fractional_max_pool(place, input(node.self_), result(node.result1_, node), node.kernel_size, node.output_size);
  });
}

void average_and_max_pools(Table& table) {
  on<AvgPool2DBackward0>(table, [](auto& node, const Place& place) -> Made { return average_pool_of<2>(node, place); });
  on<AvgPool3DBackward0>(table, [](auto& node, const Place& place) -> Made { return average_pool_of<3>(node, place); });
  on<AdaptiveAvgPool2DBackward0>(table, [](auto& node, const Place& place) -> Made {
    return adaptive_average_pool(place, input(node.self_), plane_of(node, 2));
  });
  on<AdaptiveAvgPool3DBackward0>(table, [](auto& node, const Place& place) -> Made {
    return adaptive_average_pool(place, input(node.self_), plane_of(node, 3));
  });
  on<MaxPool2DWithIndicesBackward0>(table, [](auto& node, const Place& place) -> Made { return max_pool_of<2>(node, place); });
  on<MaxPool3DWithIndicesBackward0>(table, [](auto& node, const Place& place) -> Made { return max_pool_of<3>(node, place); });
  on<AdaptiveMaxPool2DBackward0>(table, [](auto& node, const Place& place) -> Made {
    return adaptive_max_pool(place, input(node.self_), result(node.result1_, node), 2);
  });
  on<AdaptiveMaxPool3DBackward0>(table, [](auto& node, const Place& place) -> Made {
    return adaptive_max_pool(place, input(node.self_), result(node.result1_, node), 3);
  });
  fractional<FractionalMaxPool2DBackward0>(table);
  fractional<FractionalMaxPool3DBackward0>(table);
}

// The generated nodes of one filter, in one, two and three dimensions.
template <Filter filter, typename One, typename Two, typename Three>
void nearest_filters(Table& table) {
  on<One>(table, [](auto& node, const Place& place) -> Made {
    return upsample(place, filter, {integers(node.output_size), {node.scales}});
  });
  on<Two>(table, [](auto& node, const Place& place) -> Made {
    return upsample(place, filter, {integers(node.output_size), {node.scales_h, node.scales_w}});
  });
  on<Three>(table, [](auto& node, const Place& place) -> Made {
    return upsample(place, filter, {integers(node.output_size), {node.scales_d, node.scales_h, node.scales_w}});
  });
}

template <Filter filter, typename T>
void plane_filter(Table& table) {
  on<T>(table, [](auto& node, const Place& place) -> Made {
    return upsample(place, filter, {integers(node.output_size), {node.scales_h, node.scales_w}, node.align_corners});
  });
}

template <typename T>
void reflection(Table& table) {
  on<T>(table, [](auto& node, const Place& place) -> Made {
    return reflection_pad(place, input(node.self_), integers(node.padding));
  });
}

template <typename T>
void replication(Table& table) {
  on<T>(table, [](auto& node, const Place& place) -> Made {
    return replication_pad(place, input(node.self_), integers(node.padding));
  });
}

template <typename T>
void grid_sampler(Table& table) {
  on<T>(table, [](auto& node, const Place& place) -> Made {
    return grid_sample(place, input(node.input_), input(node.grid_),
                       {node.interpolation_mode, node.padding_mode, node.align_corners});
  });
}

void resampling(Table& table) {
  nearest_filters<Filter::kNearest, UpsampleNearest1DBackward0, UpsampleNearest2DBackward0, UpsampleNearest3DBackward0>(table);
  nearest_filters<Filter::kNearestExact, UpsampleNearestExact1DBackward0, UpsampleNearestExact2DBackward0,
                  UpsampleNearestExact3DBackward0>(table);
  on<UpsampleLinear1DBackward0>(table, [](auto& node, const Place& place) -> Made {
    return upsample(place, Filter::kLinear, {integers(node.output_size), {node.scales}, node.align_corners});
  });
  on<UpsampleTrilinear3DBackward0>(table, [](auto& node, const Place& place) -> Made {
    return upsample(place, Filter::kLinear,
                    {integers(node.output_size), {node.scales_d, node.scales_h, node.scales_w}, node.align_corners});
  });
  plane_filter<Filter::kLinear, UpsampleBilinear2DBackward0>(table);
  plane_filter<Filter::kCubic, UpsampleBicubic2DBackward0>(table);
  plane_filter<Filter::kLinearAntialias, UpsampleBilinear2DAaBackward0>(table);
  plane_filter<Filter::kCubicAntialias, UpsampleBicubic2DAaBackward0>(table);
  grid_sampler<GridSampler2DBackward0>(table);
  grid_sampler<GridSampler3DBackward0>(table);
}

void rearranging(Table& table) {
  on<PixelShuffleBackward0>(table, [](auto& node, const Place& place) -> Made {
    return pixel_shuffle(place, node.upscale_factor);
  });
  on<PixelUnshuffleBackward0>(table, [](auto& node, const Place& place) -> Made {
    return pixel_unshuffle(place, node.downscale_factor);
  });
  on<ChannelShuffleBackward0>(table, [](auto& node, const Place& place) -> Made {
    return channel_shuffle(place, integer(node.groups));
  });
  reflection<ReflectionPad1DBackward0>(table);
  reflection<ReflectionPad2DBackward0>(table);
  reflection<ReflectionPad3DBackward0>(table);
  replication<ReplicationPad1DBackward0>(table);
  replication<ReplicationPad2DBackward0>(table);
  replication<ReplicationPad3DBackward0>(table);
  on<Im2ColBackward0>(table, [](auto& node, const Place& place) -> Made {
    return unfold_windows(place, {integer(node.self_sym_argsize_minus_2), integer(node.self_sym_argsize_minus_1)},
                          {node.kernel_size, node.dilation, node.padding, node.stride});
  });
  on<Col2ImBackward0>(table, [](auto& node, const Place& place) -> Made {
    return fold_windows(place, plane_of(node, 2), {node.kernel_size, node.dilation, node.padding, node.stride});
  });
}

void pools(Table& table) {
  average_and_max_pools(table);
  resampling(table);
  rearranging(table);
}

// Complex values and spectra: nodes/complex.h, nodes/spectral.h

template <typename T>
void conjugating(Table& table) {
  on_field<T>(table, [](auto&, const Place& place) -> Made {
    return is_complex(place.node->input_metadata(0)) ? conjugation(place) : combination(place, "pass", {1});
  });
}

void complex_values(Table& table) {
  on_field<ViewAsRealBackward0>(table, [](auto&, const Place& place) -> Made { return view_as_real(place); });
  on_field<ViewAsComplexBackward0>(table, [](auto&, const Place& place) -> Made { return view_as_complex(place); });
  on_field<ComplexBackward0>(table, [](auto& node, const Place& place) -> Made {
    read_for({0, 1}, node.real_, place);
    read_for({0, 1}, node.imag_, place);
    return complex_of_parts(place);
  });
  conjugating<ConjBackward0>(table);
  conjugating<ConjPhysicalBackward0>(table);
  conjugating<ConjPhysicalBackward1>(table);
  on_field<NegViewBackward0>(table, [](auto&, const Place& place) -> Made { return combination(place, "scale", {-1}); });
  on_field<AngleBackward0>(table, [](auto& node, const Place& place) -> Made {
    return plain(node, place) ? nullptr : angle(place, input(node.self_));
  });
}

void spectra(Table& table) {
  on_field<FftR2CBackward0>(table, [](auto& node, const Place& place) -> Made {
    input(node.self_);
    return real_to_complex(place, {node.dim, node.normalization}, node.onesided);
  });
  on_field<FftC2RBackward0>(table, [](auto& node, const Place& place) -> Made {
    return complex_to_real(place, {node.dim, node.normalization});
  });
  on_field<FftC2CBackward0>(table, [](auto& node, const Place& place) -> Made {
    return complex_to_complex(place, {integers(node.dim), node.normalization}, node.forward);
  });
}

const Table& table() {
  static const Table made = [] {
    Table all;
    for (auto* add : {&linear_maps, &bilinear_maps, &convolutions, &activations, &normalizations, &arithmetic_and_reductions,
                      &shapes, &pools, &complex_values, &spectra})
      add(all);
    return all;
  }();
  return made;
}

thread_local bool enabled = true;

// What is linear sample by sample

using Condition = bool (*)(const Node&, const Place&);
using Conditions = std::unordered_map<std::type_index, Condition>;

template <typename... Nodes, typename F>
void each(Conditions& conditions, F) {
  const auto add = [&]<typename T>(const T*) {
    conditions.emplace(typeid(T), [](const Node& node, const Place& place) { return F{}(static_cast<const T&>(node), place); });
  };
  (add(static_cast<const Nodes*>(nullptr)), ...);
}

int64_t dims_of(const torch::autograd::InputMetadata& value) { return static_cast<int64_t>(value.shape_as_dim_vector().size()); }

// Live inputs have the dimensions of the result: none is broadcast along those before its own.
bool same_dims(const Node& node, const Place& place) {
  for (size_t i = 0; i < place.inputs.size(); ++i)
    if (place.live(i) && static_cast<int64_t>(place.sizes(i).size()) != dims_of(node.input_metadata(0))) return false;
  return true;
}
bool beside_samples(int64_t dim, int64_t dims) { return at::maybe_wrap_dim(dim, dims) != 0; }
template <typename Dims>
bool all_beside_samples(const Dims& over, int64_t dims) {
  return !over.empty() && std::all_of(over.begin(), over.end(), [dims](int64_t dim) { return beside_samples(dim, dims); });
}
int64_t dims_of_live(const Place& place) { return static_cast<int64_t>(place.sizes(place.live(0) ? 0 : 1).size()); }

const Conditions& conditions() {
  static const Conditions all = [] {
    Conditions conditions;
    each<ConvolutionBackward0>(conditions, [](const auto& node, const Place& place) {
      const auto dims = dims_of(node.input_metadata(0));
      const bool cut = std::any_of(node.output_padding.begin(), node.output_padding.end(), [](const auto& n) { return n != 0; });
      return place.only(0b001) && dims >= 3 && dims <= 5 && !cut;
    });
    each<MmBackward0>(conditions, [](const auto&, const Place& place) { return place.only(0b01); });
    each<AddmmBackward0>(conditions, [](const auto& node, const Place& place) {
      return place.only(0b010) && !node.alpha.isComplex() && !node.beta.isComplex();
    });
    each<ReluBackward0, LeakyReluBackward0, LeakyReluBackward1, HardtanhBackward0, ClampBackward1, ClampMinBackward0,
         ClampMaxBackward0, AbsBackward0, AliasBackward0, CloneBackward0, ToCopyBackward0, NegBackward0, NativeDropoutBackward0,
         ViewBackward0, UnsafeViewBackward0, ReshapeAliasBackward0, SqueezeBackward0, SqueezeBackward1, SqueezeBackward2,
         UnsqueezeBackward0, AvgPool2DBackward0, AvgPool3DBackward0, AdaptiveAvgPool2DBackward0, AdaptiveAvgPool3DBackward0,
         MaxPool2DWithIndicesBackward0, MaxPool3DWithIndicesBackward0, UpsampleNearest2DBackward0, UpsampleBilinear2DBackward0,
         PixelShuffleBackward0, ReflectionPad1DBackward0, ReflectionPad2DBackward0, ReflectionPad3DBackward0,
         ReplicationPad1DBackward0, ReplicationPad2DBackward0, ReplicationPad3DBackward0>(
        conditions, [](const auto&, const Place& place) { return !place.parameters_wanted(); });
    each<AddBackward0, SubBackward0, ExpandBackward0>(
        conditions, [](const auto& node, const Place& place) { return same_dims(node, place); });
    each<MulBackward0>(conditions, [](const auto& node, const Place& place) {
      return !place.only(0b11) && same_dims(node, place);
    });
    each<DivBackward0, PreluKernelBackward0>(conditions, [](const auto& node, const Place& place) {
      return place.only(0b01) && same_dims(node, place);
    });
    each<NativeBatchNormBackward0>(conditions, [](const auto& node, const Place& place) {
      return !node.training && place.only(0b001);
    });
    each<SumBackward1, MeanBackward1>(conditions, [](const auto& node, const Place& place) {
      return all_beside_samples(node.dim.list.value_or(Ints()), dims_of_live(place));
    });
    each<FlipBackward0, RollBackward0>(conditions, [](const auto& node, const Place& place) {
      return all_beside_samples(node.dims, dims_of_live(place));
    });
    each<MaxBackward0, SliceBackward0, SelectBackward0, SplitBackward0, IndexSelectBackward0>(
        conditions, [](const auto& node, const Place& place) {
          return !place.parameters_wanted() && beside_samples(node.dim, dims_of_live(place));
        });
    each<TransposeBackward0>(conditions, [](const auto& node, const Place&) {
      const auto dims = dims_of(node.input_metadata(0));
      return dims > 0 && beside_samples(node.dim0, dims) && beside_samples(node.dim1, dims);
    });
    each<ConstantPadNdBackward0>(conditions, [](const auto& node, const Place& place) {
      return node.pad.size() < 2 * place.sizes(0).size();
    });
    each<PermuteBackward0>(conditions, [](const auto& node, const Place&) { return !node.dims.empty() && node.dims[0] == 0; });
    each<CatBackward0, StackBackward0>(conditions, [](const auto& node, const Place&) {
      return beside_samples(node.dim, dims_of(node.input_metadata(0)));
    });
    return conditions;
  }();
  return all;
}

// What is held twice: sharing.h

// The tensor that an operation saved, where it is the whole result of another; of a view, what it is a view of.
at::Tensor saved_result(const SavedVariable& saved) {
  if (saved.has_hooks()) return {};
  auto tensor = saved.get_raw_data().value_or(at::Tensor());
  return tensor.defined() && tensor.is_view() ? at::Tensor(tensor._base()) : tensor;
}

// Activations whose slope can be told from the result: wherever the input is above zero, or within the limits, so is the result.
SavedVariable* replaceable(Node& node) {
  if (typeid(node) == typeid(LeakyReluBackward0)) {
    auto& leaky = static_cast<LeakyReluBackward0&>(node);
    return leaky.negative_slope.toDouble() >= 0 ? &leaky.self_ : nullptr;
  }
  return typeid(node) == typeid(HardtanhBackward0) ? &static_cast<HardtanhBackward0&>(node).self_ : nullptr;
}

// Not a result that was written to since it was made, unseen by autograd: as it is now it may say something else.
void share_below(const SavedVariable& saved, size_t least) {
  const auto result = saved_result(saved);
  const bool plain = result.defined() && result.layout() == at::kStrided && !result.is_nested() && !result.is_inference();
  if (!plain || result._version() != 0 || result.nbytes() < least) return;
  const auto* meta = torch::autograd::impl::get_autograd_meta(result);
  auto* held = meta && meta->grad_fn_ ? replaceable(*meta->grad_fn_) : nullptr;
  if (!held || held->has_hooks()) return;
  const auto input = held->get_raw_data().value_or(at::Tensor());
  const bool alike = input.defined() && input.grad_fn() && input.scalar_type() == result.scalar_type() && input.sizes() == result.sizes();
  if (alike && !input.is_alias_of(result)) share(*held, result);
}

bool regroups(const Node& node) {
  const auto& type = typeid(node);
  return type == typeid(ViewBackward0) || type == typeid(UnsafeViewBackward0) || type == typeid(ReshapeAliasBackward0);
}

}  // namespace

bool passes_ratio(const Node& node, const Place& place, int64_t samples) {
  const auto condition = conditions().find(typeid(node));
  const auto& output = node.input_metadata(0);
  if (!enabled || condition == conditions().end() || output.was_default_constructed()) return false;
  const auto result = sizes_of(output);
  const auto whole = [&](const torch::autograd::InputMetadata& value) {
    const auto dtype = c10::typeMetaToScalarType(value.dtype());
    const bool is_double = dtype == at::kDouble, was_double = c10::typeMetaToScalarType(output.dtype()) == at::kDouble;
    return is_dense(value) && value.device() == output.device() && is_double == was_double &&
           (is_double || dtype == at::kFloat || dtype == at::kBFloat16);
  };
  const auto in_shares = [&](const Sizes& sizes) {
    return !sizes.empty() && sizes[0] % samples == 0 && (regroups(node) || sizes[0] == result[0]);
  };
  if (!whole(output) || !in_shares(result)) return false;
  for (size_t i = 0; i < place.inputs.size(); ++i) {
    if (!place.live(i) && !place.wanted(i)) continue;
    const auto& edge = node.next_edge(i);
    if (!whole(edge.function->input_metadata(edge.input_nr)) || (place.live(i) && !in_shares(place.sizes(i)))) return false;
  }
  return condition->second(node, place);
}

bool knows_ratio(const Node& node) {
  const auto& type = typeid(node);
  return type == typeid(ConvolutionBackward0) || type == typeid(MmBackward0) || type == typeid(AddmmBackward0);
}

void share_inputs(const Node& made, size_t least) {
  const auto& type = typeid(made);
  if (type == typeid(ConvolutionBackward0)) share_below(static_cast<const ConvolutionBackward0&>(made).input_, least);
  else if (type == typeid(AddmmBackward0)) share_below(static_cast<const AddmmBackward0&>(made).mat1_, least);
  else if (type == typeid(MmBackward0)) share_below(static_cast<const MmBackward0&>(made).self_, least);
}

bool has_rule(const Node& node) { return enabled && table().count(typeid(node)); }

bool is_transpose(const Node& node) { return typeid(node) == typeid(TBackward0); }

void Versions::note(const at::Tensor& read) {
  if (!read.defined() || read.is_inference()) return;
  const auto& version = read.unsafeGetTensorImpl()->version_counter();
  read_.emplace_back(version, version.current_version());
}

void Versions::check() const {
  for (const auto& [version, then] : read_)
    TORCH_CHECK(version.current_version() == then, "one of the variables needed for gradient computation has been modified by an"
                " inplace operation: it is at version ", version.current_version(), "; expected version ", then, " instead.");
}

std::unique_ptr<Rule> rule_for(Node& node, const Place& place, Versions* versions, bool& hooked) {
  if (!enabled) return nullptr;
  const auto found = table().find(typeid(node));
  if (found == table().end()) return nullptr;
  struct While {  // a hook that unpacks may call gpfast itself
    explicit While(Versions* versions) : outer(std::exchange(reading, {versions})) {}
    ~While() { reading = outer; }
    Reading outer;
  } made(versions);
  auto rule = found->second(node, place);
  hooked = reading.hooked;
  return rule;
}

void set_rules_enabled(bool value) { enabled = value; }
bool rules_enabled() { return enabled; }

}  // namespace gpfast

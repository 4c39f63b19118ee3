// The schemas of the normalisation kernels, and their plain formula for every device that has no kernel.
#include "ops/normalize.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <initializer_list>

namespace gpfast {
namespace {

using at::Tensor;
using Optional = const std::optional<Tensor>&;
using AdjointKernel = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const NormTensors&, const Tensor&,
                                                 const NormBlock&, bool, bool, const GateOfBits&);
using TangentKernel = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const NormTensors&, const NormBlock&,
                             bool, const GateOfBits&);

Tensor or_undefined(Optional tensor) { return tensor.value_or(Tensor()); }
std::optional<Tensor> or_none(const Tensor& tensor) { return tensor.defined() ? std::optional(tensor) : std::nullopt; }

NormBlock checked_block(const Tensor& input, at::IntArrayRef sizes, int64_t order, std::initializer_list<Tensor> others) {
  const NormBlock block{sizes[0], sizes[1], sizes[2], sizes[3], static_cast<BlockOrder>(order)};
  TORCH_CHECK(block.numel() == input.numel() && input.is_non_overlapping_and_dense(), "normalize: the input is not the block");
  for (const auto& other : others) {
    if (!other.defined()) continue;
    TORCH_CHECK(other.sizes() == input.sizes(), "normalize: sizes differ");
    TORCH_CHECK(other.scalar_type() == input.scalar_type(), "normalize: dtypes differ");
    for (int64_t d = 0; d < input.dim(); ++d)
      TORCH_CHECK(input.size(d) == 1 || input.stride(d) == other.stride(d), "normalize: layouts differ");
  }
  return block;
}

GateOfBits checked_gate(Optional bits, double on, double off, const NormBlock& block) {
  if (!bits || !bits->defined()) return {};
  TORCH_CHECK(bits->scalar_type() == at::kByte && bits->numel() == bytes_of_bits(block.numel()) && bits->is_contiguous(),
              "normalize: the bits are ", bits->scalar_type(), " ", bits->sizes(), " for ", block.numel(), " elements");
  return {*bits, {on, off}};
}

template <AdjointKernel* kernel>
std::tuple<Tensor, Tensor> adjoint(Optional out, const Tensor& z, Optional add, const Tensor& input, Optional mean,
                                   const Tensor& rstd, Optional weight, Optional weight_gradient, at::IntArrayRef sizes,
                                   int64_t order, bool want_weight, bool want_bias, Optional bits, double on, double off) {
  const auto to = or_undefined(out), more = or_undefined(add);
  const auto block = checked_block(input, sizes, order, {to, z, more});
  return kernel(to, z, more, {input, or_undefined(mean), rstd, or_undefined(weight)}, or_undefined(weight_gradient), block,
                want_weight, want_bias, checked_gate(bits, on, off, block));
}

template <TangentKernel* kernel>
Tensor tangent(Optional out, Optional bent, const Tensor& t, Optional a, const Tensor& input, Optional mean, const Tensor& rstd,
               Optional weight, at::IntArrayRef sizes, int64_t order, bool want_weight, Optional bits, double on, double off) {
  const auto to = or_undefined(out), bent_to = or_undefined(bent), adjoint = or_undefined(a);
  const auto block = checked_block(input, sizes, order, {to, bent_to, t, adjoint});
  TORCH_CHECK(adjoint.defined() || !(bent_to.defined() || want_weight), "normalize_tangent: needs a");
  return kernel(to, bent_to, t, adjoint, {input, or_undefined(mean), rstd, or_undefined(weight)}, block, want_weight,
                checked_gate(bits, on, off, block));
}

// The norm's tensors in four dimensions, in the dtype that is computed in.
struct Plain {
  NormBlock block;
  at::ScalarType dtype;
  std::array<int64_t, 4> sizes;
  at::DimVector group, others;  // the dimensions of a group, and those that are not the channels'
  Tensor d, rstd, weight;
  bool centered;

  Plain(const NormTensors& norm, const NormBlock& block)
      : block(block), dtype(norm.input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat), centered(norm.mean.defined()) {
    const auto& b = block;
    std::array<int64_t, 4> statistics, weights;
    if (b.order == BlockOrder::planes) {
      sizes = {b.samples, b.groups, b.depth, b.length}, group = {2, 3}, others = {0, 3};
      statistics = {b.samples, b.groups, 1, 1}, weights = {1, b.groups, b.depth, 1};
    } else if (b.order == BlockOrder::pixels) {
      sizes = {b.samples, b.length, b.groups, b.depth}, group = {1, 3}, others = {0, 1};
      statistics = {b.samples, 1, b.groups, 1}, weights = {1, 1, b.groups, b.depth};
    } else {
      sizes = {b.samples, b.groups, 1, b.length}, group = others = {0, 3};
      statistics = weights = {1, b.groups, 1, 1};
    }
    const auto small = [&](const Tensor& x, at::IntArrayRef shape) { return x.defined() ? x.to(dtype).reshape(shape) : x; };
    d = wide(norm.input);
    if (centered) d = d - small(norm.mean, statistics);
    rstd = small(norm.rstd, statistics);
    weight = small(norm.weight, weights);
  }

  Tensor view(const Tensor& x) const {
    return x.as_strided(sizes, {sizes[1] * sizes[2] * sizes[3], sizes[2] * sizes[3], sizes[3], 1});
  }
  Tensor wide(const Tensor& x) const { return view(x).to(dtype); }
  Tensor gated(const Tensor& x, const GateOfBits& gate) const {
    return gate.bits.defined() ? gpfast::gated(x, gate.bits, {}, gate.slopes, /*in_place=*/false) : x;
  }
  Tensor weighted(const Tensor& x) const { return weight.defined() ? x * weight : x; }
  Tensor mean(const Tensor& x) const { return x.mean(group, true); }
  Tensor without_mean(const Tensor& x) const { return centered ? x - mean(x) : x; }
  Tensor projection(const Tensor& x) const { return mean(x * d) * rstd; }
  Tensor jacobian(const Tensor& x) const { return rstd * (without_mean(x) - d * (rstd * projection(x))); }
  Tensor for_channels(const Tensor& x) const { return x.sum(others).reshape(block.channels()); }
};

std::tuple<Tensor, Tensor> plain_adjoint(const Tensor& out, const Tensor& z, const Tensor& add, const NormTensors& norm,
                                         const Tensor& weight_gradient, const NormBlock& block, bool want_weight,
                                         bool want_bias, const GateOfBits& gate) {
  const Plain plain(norm, block);
  const auto x = plain.gated(plain.wide(z), gate);
  Tensor of_weight, of_bias;
  if (want_weight) of_weight = plain.for_channels(x * plain.d * plain.rstd);
  if (want_weight && weight_gradient.defined()) of_weight = of_weight + weight_gradient;
  if (want_bias) of_bias = plain.for_channels(x);
  if (out.defined()) {
    const auto result = plain.jacobian(plain.weighted(x));
    plain.view(out).copy_(add.defined() ? result + plain.wide(add) : result);
  }
  return {of_weight, of_bias};
}

Tensor plain_tangent(const Tensor& out, const Tensor& bent, const Tensor& t, const Tensor& a, const NormTensors& norm,
                     const NormBlock& block, bool want_weight, const GateOfBits& gate) {
  const Plain plain(norm, block);
  const auto x = plain.wide(t), line = plain.jacobian(x), y = a.defined() ? plain.wide(a) : a;
  Tensor of_weight, of_input;
  if (want_weight) of_weight = plain.for_channels(y * line);
  if (bent.defined()) {
    const auto u = plain.weighted(y), v = plain.without_mean(x), p = plain.projection(u), q = plain.projection(x);
    const auto s = plain.mean(plain.without_mean(u) * v);
    of_input = -(plain.rstd * plain.rstd) * (q * plain.without_mean(u) + p * v + (s - 3 * p * q) * plain.rstd * plain.d);
  }
  if (out.defined()) plain.view(out).copy_(plain.gated(plain.weighted(line), gate));
  if (bent.defined()) plain.view(bent).copy_(of_input);
  return of_weight;
}

template <typename Op>
auto handle(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Op>();
}

}  // namespace

std::tuple<Tensor, Tensor> normalize_adjoint(const Tensor& out, const Tensor& z, const Tensor& add, const NormTensors& norm,
                                             const Tensor& weight_gradient, const NormBlock& block, bool want_weight,
                                             bool want_bias, const GateOfBits& gate) {
  static const auto op = handle<decltype(adjoint<&plain_adjoint>)>("gpfast::normalize_adjoint");
  return op.call(or_none(out), z, or_none(add), norm.input, or_none(norm.mean), norm.rstd, or_none(norm.weight),
                 or_none(weight_gradient), {block.samples, block.groups, block.depth, block.length},
                 static_cast<int64_t>(block.order), want_weight, want_bias, or_none(gate.bits), gate.slopes.on, gate.slopes.off);
}

Tensor normalize_tangent(const Tensor& out, const Tensor& bent, const Tensor& t, const Tensor& a, const NormTensors& norm,
                         const NormBlock& block, bool want_weight, const GateOfBits& gate) {
  static const auto op = handle<decltype(tangent<&plain_tangent>)>("gpfast::normalize_tangent");
  return op.call(or_none(out), or_none(bent), t, or_none(a), norm.input, or_none(norm.mean), norm.rstd, or_none(norm.weight),
                 {block.samples, block.groups, block.depth, block.length}, static_cast<int64_t>(block.order), want_weight, or_none(gate.bits),
                 gate.slopes.on, gate.slopes.off);
}

TORCH_LIBRARY_FRAGMENT(gpfast, m) {
  m.def(
      "normalize_adjoint(Tensor(a!)? out, Tensor z, Tensor? add, Tensor input, Tensor? mean, Tensor rstd, Tensor? weight,"
      " Tensor? weight_gradient, int[] block, int order, bool want_weight, bool want_bias,"
      " Tensor? bits=None, float on=1, float off=1) -> (Tensor weight_gradient, Tensor bias_gradient)");
  m.def(
      "normalize_tangent(Tensor(a!)? out, Tensor(b!)? bent, Tensor t, Tensor? a, Tensor input, Tensor? mean, Tensor rstd,"
      " Tensor? weight, int[] block, int order, bool want_weight, Tensor? bits=None, float on=1, float off=1)"
      " -> Tensor weight_gradient");
}
TORCH_LIBRARY_IMPL(gpfast, CompositeExplicitAutograd, m) {
  m.impl("normalize_adjoint", &adjoint<&plain_adjoint>);
  m.impl("normalize_tangent", &tangent<&plain_tangent>);
}
TORCH_LIBRARY_IMPL(gpfast, CPU, m) {
  m.impl("normalize_adjoint", &adjoint<&normalize_adjoint_cpu>);
  m.impl("normalize_tangent", &tangent<&normalize_tangent_cpu>);
}
#ifdef GPFAST_WITH_CUDA
TORCH_LIBRARY_IMPL(gpfast, CUDA, m) {
  m.impl("normalize_adjoint", &adjoint<&normalize_adjoint_cuda>);
  m.impl("normalize_tangent", &tangent<&normalize_tangent_cuda>);
}
#endif

}  // namespace gpfast

// Rules for elementwise functions of several tensors, and rare ones of one.
#include "nodes/functions.h"

#include <ATen/ExpandUtils.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Reduction.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/log.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/reciprocal.h>
#include <ATen/ops/sigmoid.h>
#include <torch/csrc/autograd/function.h>

#include <cmath>
#include <limits>

#include "nodes/elementwise.h"

namespace gpfast {
namespace {

using at::Tensor;

// factor * tensor, or the factor alone.
struct Derivative {
  Tensor tensor = {};
  double factor = 1;
};

// y = f(h_0, h_1, ..): a_i = a f_i; t_y = sum of f_i t_i; b_i = b f_i + a * sum of f_ij t_j, where f_i is formula.slope(i), and
// f_ij formula.curve(i, j), which is zero unless Formula::curved(i, j). Derivatives are made anew in each sweep: what is held is
// what the forward saved, and a. The second terms are made in the tangent sweep, so that no tangent is held.
template <typename Formula>
class Function final : public Elementwise {
 public:
  Function(const Place& place, const char* name, Formula formula, Values saved)
      : Elementwise(place), name_(name), formula_(formula), saved_(std::move(saved)), parts_(place.inputs.size()) {}

  // y is the sum of f times `factor`, over these sizes.
  void total(double factor, at::IntArrayRef sizes) {
    total_ = factor;
    sizes_ = Sizes(sizes.begin(), sizes.end());
  }

  const char* name() const override { return name_; }
  bool bends() const override {
    for (size_t i = 0; i < inputs(); ++i)
      if (place.live(i) && meets_tangent(i)) return true;
    return false;
  }
  int64_t kept() const override {
    int64_t bytes = bytes_of({a_});
    for (const auto& tensor : saved_) bytes += bytes_of({tensor});
    for (const auto& part : parts_) bytes += bytes_of({part});
    return bytes;
  }

  Values adjoint(Values a) override {
    const Tensor z = arriving(std::move(a[0]));
    bool mixed = false;
    for (size_t i = 0; i < inputs(); ++i) mixed = mixed || (place.wanted(i) && meets_tangent(i));
    if (mixed) a_ = z;
    if (!total_) see(z);
    Values out = back(z, &Input::live);
    if (!place.tangent && !place.any_wanted()) saved_.clear();
    return out;
  }

  Values tangent(Values t) override {
    Values out(place.outputs);
    const Tensor a = take(a_);
    Tensor sum;
    for (size_t j = 0; j < inputs() && place.tangent; ++j)
      if (place.live(j) && t[j].defined()) sum = added(std::move(sum), by(t[j], formula_.slope(saved_, j)));
    if (sum.defined()) out[0] = leaving(std::move(sum));
    for (size_t i = 0; i < inputs(); ++i) {
      Tensor part;
      for (size_t j = 0; j < inputs() && place.wanted(i); ++j) {
        if (!place.live(j) || !t[j].defined() || !Formula::curved(i, j)) continue;
        part = added(std::move(part), by(t[j], formula_.curve(saved_, i, j)));
      }
      parts_[i] = part.defined() ? to_input(times(std::move(part), a), i) : Tensor();
    }
    if (!keep && !(place.bent && place.any_wanted())) saved_.clear();
    return out;
  }

  Values second(Values b) override {
    Values out = b[0].defined() ? back(arriving(std::move(b[0])), &Input::wanted) : Values(inputs());
    for (size_t i = 0; i < inputs(); ++i)
      if (place.wanted(i)) accumulate(out[i], std::move(parts_[i]));
    if (!keep) saved_.clear();
    return out;
  }

 private:
  size_t inputs() const { return place.inputs.size(); }
  bool meets_tangent(size_t i) const {
    for (size_t j = 0; j < inputs(); ++j)
      if (place.live(j) && Formula::curved(i, j)) return true;
    return false;
  }
  Tensor arriving(Tensor z) const { return total_ ? expanded(scaled(std::move(z), *total_), sizes_) : z; }
  Tensor leaving(Tensor z) const {
    return total_ ? scaled(expanded(std::move(z), sizes_).sum(), *total_) : to_output(std::move(z));
  }
  Values back(const Tensor& z, bool Input::* asked) const {
    Values out(inputs());
    for (size_t i = 0; i < inputs(); ++i)
      if (place.inputs[i].*asked) out[i] = to_input(by(z, formula_.slope(saved_, i)), i);
    return out;
  }
  Tensor by(Tensor z, const Derivative& derivative) const {
    if (derivative.tensor.defined()) z = at::mul(z, derivative.tensor);
    return scaled(std::move(z), derivative.factor);
  }
  Tensor added(Tensor sum, Tensor z) const {
    if (!sum.defined()) return z;
    if (fits(sum)) return sum.add_(z);
    return fits(z) ? z.add_(sum) : at::add(sum, z);
  }

  const char* name_;
  Formula formula_;
  Values saved_;  // what the forward saved, in the order of the formula's
  std::optional<double> total_;
  Tensor a_;
  Values parts_;
};

// Inputs: addend, u, w; saved: u, w.
struct Addcmul {
  double value;
  static bool curved(size_t i, size_t j) { return i + j == 3 && i * j == 2; }
  Derivative slope(const Values& saved, size_t i) const {
    return i == 0 ? Derivative{} : Derivative{saved[2 - i], value};
  }
  Derivative curve(const Values&, size_t, size_t) const { return {{}, value}; }
};

struct Addcdiv {
  double value;
  static bool curved(size_t i, size_t j) { return i > 0 && j > 0 && i + j > 2; }
  Derivative slope(const Values& saved, size_t i) const {
    const auto &u = saved[0], &w = saved[1];
    if (i == 0) return {};
    return i == 1 ? Derivative{at::reciprocal(w), value} : Derivative{u / (w * w), -value};
  }
  Derivative curve(const Values& saved, size_t i, size_t j) const {
    const auto &u = saved[0], &w = saved[1];
    return i == j ? Derivative{u / (w * w * w), 2 * value} : Derivative{at::reciprocal(w * w), -value};
  }
};

// Inputs and saved: start, end, weight.
struct Lerp {
  static bool curved(size_t i, size_t j) { return (i == 2) != (j == 2); }
  Derivative slope(const Values& saved, size_t i) const {
    const auto &start = saved[0], &end = saved[1], &weight = saved[2];
    return {i == 0 ? 1 - weight : i == 1 ? weight : end - start};
  }
  Derivative curve(const Values&, size_t i, size_t j) const { return {{}, i == 0 || j == 0 ? -1. : 1.}; }
};

// Inputs: u, w; saved: u, w, y. Where a power is 0, or u is and its power not negative, autograd takes the derivative to be 0.
struct Power {
  static bool curved(size_t, size_t) { return true; }
  static Tensor of_base(const Tensor& u, const Tensor& w) { return (w * at::pow(u, w - 1)).masked_fill(w == 0, 0); }
  static Tensor log(const Tensor& u, const Tensor& w) { return at::log(u).masked_fill((u == 0).logical_and(w >= 0), 0); }
  Derivative slope(const Values& saved, size_t i) const {
    const auto &u = saved[0], &w = saved[1], &y = saved[2];
    return {i == 0 ? of_base(u, w) : y * log(u, w)};
  }
  Derivative curve(const Values& saved, size_t i, size_t j) const {
    const auto &u = saved[0], &w = saved[1], &y = saved[2];
    if (i == 0 && j == 0) return {w * of_base(u, w - 1)};
    if (i == 1 && j == 1) return {y * log(u, w).square()};
    return {at::pow(u, w - 1) * (1 + w * log(u, w))};
  }
};

struct Angle {
  static bool curved(size_t, size_t) { return true; }
  static Tensor recip(const Tensor& u, const Tensor& w) { return (u * u + w * w).reciprocal_(); }
  Derivative slope(const Values& saved, size_t i) const {
    const auto &u = saved[0], &w = saved[1];
    return {(i == 0 ? w : u) * recip(u, w), i == 0 ? 1. : -1.};
  }
  Derivative curve(const Values& saved, size_t i, size_t j) const {
    const auto &u = saved[0], &w = saved[1];
    const Tensor r = recip(u, w).square();
    if (i == j) return {u * w * r, i == 0 ? -2. : 2.};
    return {(u - w) * (u + w) * r};
  }
};

// Saved: u, w, y.
struct Hypotenuse {
  static bool curved(size_t, size_t) { return true; }
  Derivative slope(const Values& saved, size_t i) const { return {saved[i] / saved[2]}; }
  Derivative curve(const Values& saved, size_t i, size_t j) const {
    const auto& y = saved[2];
    const Tensor sine = saved[i] / y;
    return {(i == j ? (1 - sine) * (1 + sine) : sine * (saved[j] / y)) / y, i == j ? 1. : -1.};
  }
};

struct Logaddexp {
  double rate;
  static bool curved(size_t, size_t) { return true; }
  Tensor share(const Values& saved, size_t i) const { return at::sigmoid((saved[i] - saved[1 - i]) * rate); }
  Derivative slope(const Values& saved, size_t i) const { return {share(saved, i)}; }
  Derivative curve(const Values& saved, size_t i, size_t j) const {
    return {share(saved, 0) * share(saved, 1), i == j ? rate : -rate};
  }
};

struct InverseOf {
  Inverse of;
  static bool curved(size_t, size_t) { return true; }
  Tensor inner(const Tensor& h) const { return h * h * of.square + of.one; }
  Derivative slope(const Values& saved, size_t) const { return {at::pow(inner(saved[0]), of.power), of.factor}; }
  Derivative curve(const Values& saved, size_t, size_t) const {
    return {at::pow(inner(saved[0]), of.power - 1) * saved[0], 2 * of.factor * of.power * of.square};
  }
};

struct Error {
  double width, scale;
  static bool curved(size_t, size_t) { return true; }
  bool bounded() const { return width < std::numeric_limits<double>::infinity(); }
  Derivative slope(const Values& saved, size_t i) const {
    const Tensor d = saved[0] - saved[1];
    return {bounded() ? at::clamp(d, -width, width) : d, i == 0 ? scale : -scale};
  }
  Derivative curve(const Values& saved, size_t i, size_t j) const {
    const double sign = i == j ? scale : -scale;
    if (!bounded()) return {{}, sign};
    const Tensor d = saved[0] - saved[1];
    return {(d.abs() < width).to(d.scalar_type()), sign};
  }
};

template <typename Formula>
std::unique_ptr<Function<Formula>> made(const Place& place, const char* name, Formula formula, Values saved) {
  const auto dtype = c10::typeMetaToScalarType(place.node->input_metadata(0).dtype());
  for (size_t i = 0; i < place.inputs.size(); ++i)
    if ((place.live(i) || place.wanted(i)) && place.dtype(i) != dtype) return nullptr;
  for (const auto& tensor : saved)
    if (tensor.defined() && at::isFloatingType(tensor.scalar_type()) && tensor.scalar_type() != dtype) return nullptr;
  return std::make_unique<Function<Formula>>(place, name, formula, std::move(saved));
}

}  // namespace

std::unique_ptr<Rule> addcmul_rule(const Place& place, Tensor u, Tensor w, double value) {
  return made(place, "addcmul", Addcmul{value}, {std::move(u), std::move(w)});
}
std::unique_ptr<Rule> addcdiv_rule(const Place& place, Tensor u, Tensor w, double value) {
  return made(place, "addcdiv", Addcdiv{value}, {std::move(u), std::move(w)});
}
std::unique_ptr<Rule> lerp_rule(const Place& place, Tensor start, Tensor end, Tensor weight) {
  return made(place, "lerp", Lerp{}, {std::move(start), std::move(end), std::move(weight)});
}
std::unique_ptr<Rule> powers_rule(const Place& place, Tensor u, Tensor w, Tensor y) {
  return made(place, "power", Power{}, {std::move(u), std::move(w), std::move(y)});
}
std::unique_ptr<Rule> angle_rule(const Place& place, Tensor u, Tensor w) {
  return made(place, "angle", Angle{}, {std::move(u), std::move(w)});
}
std::unique_ptr<Rule> hypotenuse_rule(const Place& place, Tensor u, Tensor w, Tensor y) {
  return made(place, "hypotenuse", Hypotenuse{}, {std::move(u), std::move(w), std::move(y)});
}
std::unique_ptr<Rule> logaddexp_rule(const Place& place, Tensor u, Tensor w, double rate) {
  return made(place, "logaddexp", Logaddexp{rate}, {std::move(u), std::move(w)});
}

std::unique_ptr<Rule> inverse_rule(const Place& place, Tensor h, const Inverse& of) {
  return made(place, "inverse", InverseOf{of}, {std::move(h)});
}

std::unique_ptr<Rule> error_rule(const Place& place, ErrorOf error, int64_t reduction) {
  const auto sizes = at::infer_size_dimvector(error.u.sizes(), error.w.sizes());
  auto rule = made(place, "error", Error{error.width, error.scale}, {std::move(error.u), std::move(error.w)});
  const double mean = 1. / static_cast<double>(c10::multiply_integers(sizes));
  if (rule && reduction != at::Reduction::None) rule->total(reduction == at::Reduction::Mean ? mean : 1, sizes);
  return rule;
}

}  // namespace gpfast

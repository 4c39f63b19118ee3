#include "nodes/activation.h"

#include "nodes/layout.h"

namespace gpfast {
namespace {

using at::Tensor;

// With s and c the first and second derivative: s a; s t; s b + c a t. The last term is made in the tangent sweep, in a's memory,
// so that t need not be kept, nor what the activation saved where b is absent.
class ActivationRule : public Rule {
 public:
  ActivationRule(const Place& place, Tensor saved, const Curve& curve) : Rule(place), saved_(std::move(saved)), curve_(curve) {}
  const char* name() const override { return "activation"; }
  bool bends() const override { return true; }
  int64_t kept() const override { return bytes_of({saved_, a_, bend_}); }
  bool repeats_adjoint(size_t /*input*/) const override { return a_.defined() || repeats_; }
  Tensor adjoint_again(size_t /*input*/) const override {
    Tensor a = repeats_ ? adjoint_repeated() : a_;
    const bool in_place = ours(a);
    return slope(a, saved_, curve_, in_place);
  }

  OfRows of_rows() const override {
    if (!vectorised(curve_.kind)) return {};
    return {.saved = saved_, .curve = curve_};
  }

  Values adjoint(Values a) override {
    Tensor z = dense(std::move(a[0]), saved_);
    order_ = order_of(z);
    saved_ = relaid_saved(saved_, order_);
    Values out(1);
    repeats_ = place.wanted(0) ? repeats(z) : Reader{};
    if (place.wanted(0) && !repeats_) a_ = z;
    const bool in_place = ours(z);
    out[0] = slope(z, saved_, curve_, in_place);
    if (!place.wanted(0) && !place.tangent) saved_ = Tensor();
    return out;
  }

  Values tangent(Values t) override {
    Values out(1);
    bend_ = Tensor();
    if (t[0].defined() && place.wanted(0)) {
      Tensor a = repeats_ ? adjoint_repeated() : take(a_), z = relaid(std::move(t[0]), order_);
      const bool in_t = ours(z), in_a = ours(a);
      std::tie(out[0], bend_) = slope_and_curve(z, a, saved_, curve_, in_t, in_a);
    } else if (t[0].defined() && place.tangent) {
      Tensor z = relaid(std::move(t[0]), order_);
      const bool in_place = ours(z);
      out[0] = slope(z, saved_, curve_, in_place);
    }
    if (!place.bent) take(saved_);
    return out;
  }

  bool absorb(const Tensor& b) override {
    if (!bend_.defined() || !saved_.defined()) return false;
    add_slope(bend_, relaid(b, order_), saved_, curve_);
    return true;
  }

  Values second(Values b) override {
    Values out(1);
    if (place.wanted(0) && b[0].defined() && !absorb(b[0])) {
      Tensor z = relaid(std::move(b[0]), order_);
      const bool in_place = ours(z);
      bend_ = slope(z, saved_, curve_, in_place);
    }
    take(saved_);
    take(a_);
    out[0] = std::move(bend_);
    return out;
  }

 private:
  Tensor adjoint_repeated() const { return relaid(repeats_.adjoint_again(), order_); }

  Tensor saved_;
  Curve curve_;
  Order order_;  // of every tensor here: the adjoint's
  Tensor a_, bend_;  // the adjoint, until it becomes c a t
  Reader repeats_;   // the adjoint
};

}  // namespace

std::unique_ptr<Rule> activation_rule(const Place& place, Tensor saved, const Curve& curve) {
  if (!real(saved) || !place.only(0b1)) return nullptr;
  return std::make_unique<ActivationRule>(place, std::move(saved), curve);
}

std::unique_ptr<Rule> power_rule(const Place& place, Tensor h, const at::Scalar& exponent) {
  if (exponent.isComplex()) return nullptr;
  const double p = exponent.toDouble();
  if (p == 0 || p == 1) return nullptr;
  const auto kind = p == 2 ? Activation::kSquare : p == 3 ? Activation::kCube : Activation::kPower;
  return activation_rule(place, std::move(h), {kind, p});
}

}  // namespace gpfast

#include "nodes/gate.h"

#include <ATen/ops/mul.h>
#include <ATen/ops/sgn.h>

#include <limits>

#include "nodes/layout.h"
#include "nodes/map.h"

namespace gpfast {
namespace {

using at::Tensor;

// What is kept of the activation is a bit an element, in the memory order of the adjoint that came first.
class GateRule : public Rule {
 public:
  GateRule(const Place& place, Tensor h, const Gate& gate) : Rule(place), h_(std::move(h)), gate_(gate) {}
  const char* name() const override { return "gate"; }
  int64_t kept() const override { return bytes_of({h_, bits_}); }

  Values adjoint(Values a) override {
    Tensor z = dense(std::move(a[0]), h_);
    Values out(1);
    out[0] = pack(std::move(z), h_);
    h_ = Tensor();
    if (!place.tangent && !place.bent) bits_ = Tensor();
    return out;
  }

  Values tangent(Values t) override {
    Values out(1);
    if (place.tangent && t[0].defined()) out[0] = lent_ ? std::move(t[0]) : pass(std::move(t[0]));
    if (!place.bent) take(bits_);
    return out;
  }

  Values second(Values b) override {
    Values out(1);
    if (place.wanted(0) && b[0].defined()) out[0] = lent_ ? std::move(b[0]) : pass(std::move(b[0]));
    take(bits_);
    return out;
  }

  OfRows of_rows() const override {
    if (weight_.defined()) return {};
    return {.decider = h_, .gate = gate_};
  }

  GateOfBits lend(const Order& order) override {
    lent_ = bits_.defined() && !weight_.defined() && order == order_;
    return lent_ ? GateOfBits{bits_, gate_.slopes} : GateOfBits{};
  }

 protected:
  Tensor pack(Tensor z, const Tensor& h) {
    order_ = order_of(z);
    const bool in_place = ours(z);
    auto [out, bits] = gate(z, h, weight_, gate_, in_place);
    bits_ = std::move(bits);
    return std::move(out);
  }

  Tensor pass(Tensor z) const {
    z = relaid(z, order_);
    const bool in_place = ours(z);
    return gated(z, bits_, weight_, gate_.slopes, in_place);
  }

  Tensor h_, weight_, bits_;
  Gate gate_;
  Order order_;
  bool lent_ = false;
};

// The slope's gradient is the sum of a t + b h over the elements that it multiplied.
class PreluRule : public GateRule {
 public:
  PreluRule(const Place& place, Tensor h, Tensor weight) : GateRule(place, std::move(h), {Test::kAbove, 0, 0, {1, 0}}) {
    weight_ = std::move(weight);
  }
  const char* name() const override { return "prelu"; }
  int64_t kept() const override { return bytes_of({bits_, a_, h_, product_, gradient_}); }

  Values adjoint(Values a) override {
    Values out(2);
    Tensor z = dense(std::move(a[0]), h_);
    if (place.wanted(1)) a_ = z;
    out[0] = pack(std::move(z), h_);
    if (!place.wanted(1) || !place.bent) h_ = Tensor();
    return out;
  }

  Values tangent(Values t) override {
    Values out(1);
    if (!t[0].defined()) {
      product_ = gradient_ = Tensor();
      return out;
    }
    Tensor z = relaid(std::move(t[0]), order_);
    if (place.wanted(1)) {
      product_ = times(take(a_), z);
      if (!place.bent) gradient_ = summed(std::move(product_));
    }
    if (place.tangent) out[0] = pass(std::move(z));
    return out;
  }

  Values second(Values b) override {
    Values out(2);
    out[1] = std::move(gradient_);
    if (place.wanted(1) && place.bent) {
      Tensor product = std::move(product_);
      if (b[0].defined()) product = product.defined() ? product.addcmul_(b[0], h_) : relaid(at::mul(b[0], h_), order_);
      if (product.defined()) out[1] = summed(std::move(product));
    }
    if (place.wanted(0) && b[0].defined()) out[0] = pass(std::move(b[0]));
    take(h_);
    take(bits_);
    return out;
  }

 private:
  Tensor times(Tensor a, const Tensor& t) const { return ours(a) ? a.mul_(t) : at::mul(a, t); }
  Tensor summed(Tensor product) const {
    const bool in_place = ours(product);
    return reduced_to(gated(product, bits_, {}, {0, 1}, in_place), place.sizes(1), place.dtype(1));
  }

  Tensor a_, product_, gradient_;
};

// Multiplied by a tensor of slopes.
std::unique_ptr<Rule> slopes_rule(const Place& place, const char* name, const Tensor& slopes) {
  const auto times = [slopes](const Tensor& z) { return at::mul(z, slopes); };
  return map(place, name, times, times, bytes_of({slopes}));
}

double rounded(const at::Scalar& number, at::ScalarType dtype) {
  if (dtype == at::kHalf) return number.to<at::Half>();
  return dtype == at::kBFloat16 ? double{number.to<at::BFloat16>()} : number.toDouble();
}

}  // namespace

std::unique_ptr<Rule> gate_rule(const Place& place, Tensor h, const Gate& gate) {
  if (!real(h) || !place.only(0b1)) return nullptr;
  return std::make_unique<GateRule>(place, std::move(h), gate);
}

std::unique_ptr<Rule> clamp_rule(const Place& place, Tensor h, const Limit& lower, const Limit& upper, bool ends) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const double low = lower ? rounded(*lower, h.scalar_type()) : -kInfinity;
  const double high = upper ? rounded(*upper, h.scalar_type()) : kInfinity;
  const auto test = ends ? Test::kWithin : !lower ? Test::kBelow : !upper ? Test::kAbove : Test::kBetween;
  return gate_rule(place, std::move(h), {test, low, high, {1, 0}});
}

std::unique_ptr<Rule> shrink_rule(const Place& place, Tensor h, const at::Scalar& limit) {
  const double high = rounded(limit, h.scalar_type());
  return gate_rule(place, std::move(h), {Test::kWithin, -high, high, {0, 1}});
}

std::unique_ptr<Rule> prelu_rule(const Place& place, Tensor h, Tensor weight) {
  if (!real(h) || !place.only(0b1) || weight.dim() != h.dim() || weight.scalar_type() != h.scalar_type()) return nullptr;
  for (int64_t d = 0; d < h.dim(); ++d)
    if (weight.size(d) != 1 && (weight.size(d) != weight.numel() || weight.size(d) != h.size(d))) return nullptr;
  return std::make_unique<PreluRule>(place, std::move(h), std::move(weight));
}

std::unique_ptr<Rule> abs_rule(const Place& place, const Tensor& h) {
  if (!real(h) || !place.only(0b1)) return nullptr;
  // A byte an element: there are three slopes, as |h| is flat at zero.
  return slopes_rule(place, "abs", at::sgn(h).to(at::kChar));
}

std::unique_ptr<Rule> noise_rule(const Place& place, const Tensor& noise) {
  if (!real(noise) || !place.only(0b1)) return nullptr;
  return slopes_rule(place, "rrelu", noise);
}

}  // namespace gpfast

#include "nodes/trilinear.h"

#include <ATen/ops/_trilinear.h>
#include <ATen/ops/linalg_cross.h>

namespace gpfast {
namespace {

using at::Tensor;
using Ints = std::vector<int64_t>;

// T(f_0, f_1, f_2), linear in each: what a factor gets of z is such a product too, with z in its place and the factor where the
// result was. t_y is the sum of T with one factor's tangent; b_i is of b with the other factors, and of a with either's tangent.
class Triple final : public Rule {
 public:
  Triple(const Place& place, Trilinear product)
      : Rule(place), factors_(std::move(product.factors)), expand_(std::move(product.expand)), summed_(std::move(product.summed)) {}
  const char* name() const override { return "trilinear"; }
  bool bends() const override { return place.live(0) + place.live(1) + place.live(2) > 1; }
  int64_t kept() const override {
    return bytes_of({factors_[0], factors_[1], factors_[2], a_, parts_[0], parts_[1], parts_[2]});
  }

  Values adjoint(Values a) override {
    Values out(3);
    for (size_t i = 0; i < 3; ++i) {
      if (place.live(i)) out[i] = pulled(i, a[0], factors_);
      if (place.wanted(i) && (place.live((i + 1) % 3) || place.live((i + 2) % 3))) a_ = a[0];
    }
    return out;
  }

  Values tangent(Values t) override {
    Values out(place.outputs);
    const Tensor a = take(a_);
    for (auto& part : parts_) part = Tensor();
    for (size_t j = 0; j < 3; ++j) {
      if (!place.live(j) || !t[j].defined()) continue;
      auto moved = factors_;
      moved[j] = t[j];
      if (place.tangent) accumulate(out[0], pushed(moved));
      for (size_t i = 0; i < 3; ++i)
        if (i != j && place.wanted(i)) accumulate(parts_[i], pulled(i, a, moved));
    }
    if (!keep && !place.bent) factors_ = {};
    return out;
  }

  Values second(Values b) override {
    Values out(3);
    for (size_t i = 0; i < 3; ++i) {
      if (!place.wanted(i)) continue;
      out[i] = std::move(parts_[i]);
      if (b[0].defined()) accumulate(out[i], pulled(i, b[0], factors_));
    }
    if (!keep) factors_ = {};
    return out;
  }

 private:
  Tensor pushed(const std::array<Tensor, 3>& factors) const {
    return at::_trilinear(factors[0], factors[1], factors[2], expand_[0], expand_[1], expand_[2], summed_);
  }
  Tensor pulled(size_t i, const Tensor& z, const std::array<Tensor, 3>& factors) const {
    const size_t j = (i + 1) % 3, k = (i + 2) % 3;
    return at::_trilinear(z, factors[j], factors[k], summed_, expand_[j], expand_[k], expand_[i]);
  }

  std::array<Tensor, 3> factors_;
  std::array<Ints, 3> expand_;
  Ints summed_;
  Tensor a_;
  std::array<Tensor, 3> parts_;
};

// y = u x w: a_u = w x a, a_w = a x u, t_y = t_u x w + u x t_w; b_u is of b likewise, and t_w x a besides.
class Cross final : public Rule {
 public:
  Cross(const Place& place, Tensor u, Tensor w, int64_t dim) : Rule(place), factors_{std::move(u), std::move(w)}, dim_(dim) {}
  const char* name() const override { return "cross"; }
  bool bends() const override { return place.only(0b11); }
  int64_t kept() const override { return bytes_of({factors_[0], factors_[1], a_, parts_[0], parts_[1]}); }

  Values adjoint(Values a) override {
    Values out(2);
    for (size_t i : {0, 1}) {
      if (place.live(i)) out[i] = pulled(i, a[0], factors_[1 - i]);
      if (place.wanted(i) && place.live(1 - i)) a_ = a[0];
    }
    return out;
  }

  Values tangent(Values t) override {
    Values out(place.outputs);
    const Tensor a = take(a_);
    for (size_t i : {0, 1}) {
      const bool moved = place.live(i) && t[i].defined();
      parts_[1 - i] = moved && place.wanted(1 - i) ? pulled(1 - i, a, t[i]) : Tensor();
      if (moved && place.tangent) accumulate(out[0], i == 0 ? product(t[0], factors_[1]) : product(factors_[0], t[1]));
    }
    if (!keep && !place.bent) factors_[0] = factors_[1] = Tensor();
    return out;
  }

  Values second(Values b) override {
    Values out(2);
    for (size_t i : {0, 1}) {
      if (!place.wanted(i)) continue;
      out[i] = std::move(parts_[i]);
      if (b[0].defined()) accumulate(out[i], pulled(i, b[0], factors_[1 - i]));
    }
    if (!keep) factors_[0] = factors_[1] = Tensor();
    return out;
  }

 private:
  Tensor product(const Tensor& u, const Tensor& w) const { return at::linalg_cross(u, w, dim_); }
  Tensor pulled(size_t i, const Tensor& z, const Tensor& other) const {
    return reduced_to(i == 0 ? product(other, z) : product(z, other), place.sizes(i), place.dtype(i));
  }

  Tensor factors_[2];
  int64_t dim_;
  Tensor a_, parts_[2];
};

}  // namespace

std::unique_ptr<Rule> cross(const Place& place, Tensor u, Tensor w, int64_t dim) {
  return std::make_unique<Cross>(place, std::move(u), std::move(w), dim);
}

std::unique_ptr<Rule> trilinear(const Place& place, Trilinear product) {
  return std::make_unique<Triple>(place, std::move(product));
}

}  // namespace gpfast

#include "nodes/distance.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/reciprocal.h>
#include <ATen/ops/sum.h>

namespace gpfast {
namespace {

using at::Tensor;

// With r = a / y: a_u = sum_j r_ij (u_i - w_j), t_y = <u_i - w_j, t_u_i - t_w_j> / y, and b_u is the same as a_u of
// (b - a t_y / y) / y in place of r, and that of r with the tangents in place of u and w. Zero where y is, as autograd has it.
class Distances final : public Rule {
 public:
  Distances(const Place& place, Tensor u, Tensor w, const Tensor& y) : Rule(place), u_(std::move(u)), w_(std::move(w)) {
    over_ = at::reciprocal(y).masked_fill_(at::eq(y, 0), 0);
    // Only differences count: of rows near zero they round least.
    const Tensor center = at::mean(w_, {-2}, true);
    u_ = u_ - center;
    w_ = w_ - center;
  }
  const char* name() const override { return "distances"; }
  bool bends() const override { return true; }
  int64_t kept() const override { return bytes_of({u_, w_, over_, r_, change_, parts_[0], parts_[1]}); }

  Values adjoint(Values a) override {
    Values out(2);
    Tensor r = a[0] * over_;
    for (size_t i : {0, 1})
      if (place.live(i)) out[i] = to_input(apart(i, r, u_, w_), i);
    if (place.any_wanted()) r_ = std::move(r);
    return out;
  }

  Values tangent(Values t) override {
    Values out(1);
    const Tensor r = take(r_), t_u = place.live(0) ? t[0] : Tensor(), t_w = place.live(1) ? t[1] : Tensor();
    Tensor change;
    if (t_u.defined()) change = at::sum(u_ * t_u, {-1}, true) - at::matmul(t_u, transposed(w_));
    if (t_w.defined()) accumulate(change, transposed(at::sum(w_ * t_w, {-1}, true)) - at::matmul(u_, transposed(t_w)));
    change.mul_(over_);
    for (size_t i : {0, 1}) parts_[i] = place.wanted(i) ? to_input(apart(i, r, t_u, t_w), i) : Tensor();
    change_ = place.any_wanted() ? change * r : Tensor();
    if (place.tangent) out[0] = std::move(change);
    return out;
  }

  Values second(Values b) override {
    Values out(2);
    Tensor r = change_.defined() ? std::move(change_).neg_() : Tensor();
    if (b[0].defined()) accumulate(r, std::move(b[0]));
    if (r.defined()) r = r * over_;
    for (size_t i : {0, 1}) {
      if (!place.wanted(i)) continue;
      out[i] = std::move(parts_[i]);
      if (r.defined()) accumulate(out[i], to_input(apart(i, r, u_, w_), i));
    }
    if (!keep) u_ = w_ = over_ = Tensor();
    return out;
  }

 private:
  Tensor to_input(Tensor z, size_t i) const { return reduced_to(std::move(z), place.sizes(i), place.dtype(i)); }
  // The sum over the other's rows of r times a row's difference from them; of what is absent, zero.
  static Tensor apart(size_t i, Tensor r, const Tensor& u, const Tensor& w) {
    if (i == 1) r = transposed(r);
    const auto &mine = i == 0 ? u : w, &other = i == 0 ? w : u;
    Tensor out;
    if (mine.defined()) out = mine * at::sum(r, {-1}, true);
    if (other.defined()) accumulate(out, at::matmul(r, other).neg_());
    return out;
  }

  Tensor u_, w_;
  Tensor over_;  // 1 / y, 0 where y is
  Tensor r_, change_;
  Tensor parts_[2];
};

}  // namespace

std::unique_ptr<Rule> distances(const Place& place, Tensor u, Tensor w, const Tensor& y) {
  return std::make_unique<Distances>(place, std::move(u), std::move(w), y);
}

}  // namespace gpfast

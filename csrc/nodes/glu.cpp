#include "nodes/glu.h"

#include <ATen/TensorOperators.h>
#include <ATen/WrapDimUtils.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/glu_backward.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sigmoid.h>

#include "nodes/layout.h"

namespace gpfast {
namespace {

using at::Tensor;

// y = u s, where h is u beside w and s = sigmoid(w). With s' = s (1 - s) and the tangent q = s' t_w of s: t_y = t_u s + u q, and
// what meets the tangent is a q for u, and a (s' t_u + (1 - 2 s) u q) for w.
class Glu final : public Rule {
 public:
  Glu(const Place& place, Tensor h, int64_t dim) : Rule(place), h_(std::move(h)), dim_(dim) {}
  const char* name() const override { return "glu"; }
  bool bends() const override { return true; }
  int64_t kept() const override { return bytes_of({h_, a_, bend_}); }

  Values adjoint(Values a) override {
    Values out(1);
    out[0] = at::glu_backward(a[0], h_, dim_);
    if (place.wanted(0)) a_ = std::move(a[0]);
    return out;
  }

  Values tangent(Values t) override {
    Values out(1);
    const Tensor a = take(a_), u = half(h_, 0), t_u = half(t[0], 0), s = at::sigmoid(half(h_, 1));
    const Tensor steepness = s * (1 - s), q = steepness * half(t[0], 1);
    const Tensor uq = at::mul(u, q);
    if (place.wanted(0)) {
      bend_ = at::empty(h_.sizes(), h_.options());
      half(bend_, 0).copy_(q).mul_(a);
      half(bend_, 1).copy_(steepness).mul_(t_u).addcmul_(1 - 2 * s, uq).mul_(a);
    }
    if (place.tangent) out[0] = uq.add(t_u * s);
    if (!keep && !place.bent) h_ = Tensor();
    return out;
  }

  Values second(Values b) override {
    Values out(1);
    out[0] = std::move(bend_);
    if (place.wanted(0) && b[0].defined()) accumulate(out[0], at::glu_backward(b[0], h_, dim_));
    if (!keep) h_ = Tensor();
    return out;
  }

 private:
  Tensor half(const Tensor& z, int64_t which) const {
    const int64_t length = z.size(dim_) / 2;
    return z.narrow(dim_, which * length, length);
  }

  Tensor h_, a_, bend_;
  int64_t dim_;
};

}  // namespace

std::unique_ptr<Rule> glu_rule(const Place& place, Tensor h, int64_t dim) {
  if (!gpfast::real(h) || !place.only(0b1)) return nullptr;
  dim = at::maybe_wrap_dim(dim, h.dim());
  return std::make_unique<Glu>(place, std::move(h), dim);
}

}  // namespace gpfast

#include "nodes/softmax.h"

#include <ATen/WrapDimUtils.h>
#include <ATen/ops/_log_softmax_backward_data.h>
#include <ATen/ops/_softmax_backward_data.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/sum.h>

#include <algorithm>
#include <utility>

#include "nodes/layout.h"
#include "ops/softmax.h"

namespace gpfast {
namespace {

using at::Tensor;

// J is symmetric: J z = y (z - <y, z>) with <u, v> summed along dim. d/dh <a, J t> = J ((a - <y, a>)(t - <y, t>)).
class SoftmaxRule : public Rule {
 public:
  SoftmaxRule(const Place& place, Tensor y, int64_t dim) : Rule(place), y_(std::move(y)), dim_(dim) {}
  const char* name() const override { return "softmax"; }
  bool bends() const override { return true; }
  int64_t kept() const override { return bytes_of({y_, a_, bend_}); }

  Values adjoint(Values a) override {
    Values out(1);
    order_ = order_of(y_);
    y_ = relaid_saved(y_, order_);
    Tensor z = relaid(std::move(a[0]), order_);
    out[0] = times(z);
    if (place.wanted(0)) a_ = std::move(z);
    return out;
  }

  Values tangent(Values t) override {
    Values out(1);
    bend_ = Tensor();
    if (place.wanted(0)) {
      Tensor a = take(a_), z = relaid(std::move(t[0]), order_);
      const bool in_a = ours(a);
      std::tie(out[0], bend_) = softmax_tangent(z, a, y_, dim_, in_a);
      if (!place.bent) bend_ = times(bend_);
    } else if (place.tangent) {
      out[0] = times(t[0]);
    }
    if (!place.bent) take(y_);
    return out;
  }

  Values second(Values b) override {
    Values out(1);
    Tensor bend = std::move(bend_);
    if (place.wanted(0)) {
      if (place.bent) accumulate(bend, std::move(b[0]));
      out[0] = place.bent && bend.defined() ? times(bend) : std::move(bend);
    }
    take(y_);
    take(a_);
    return out;
  }

 private:
  Tensor times(const Tensor& z) const { return at::_softmax_backward_data(z, y_, dim_, y_.scalar_type()); }

  Tensor y_;
  int64_t dim_;
  Order order_;
  Tensor a_, bend_;  // the adjoint, until it becomes the product in the second term (where b is absent: the term)
};

// With p = exp(y): J^T a = a - p sum(a), J t = t - <p, t>, and d/dh <a, J t> = -sum(a) p (t - <p, t>).
class LogSoftmaxRule : public Rule {
 public:
  LogSoftmaxRule(const Place& place, Tensor y, int64_t dim) : Rule(place), y_(std::move(y)), dim_(dim) {}
  const char* name() const override { return "log_softmax"; }
  bool bends() const override { return true; }
  int64_t kept() const override { return bytes_of({y_, sum_, bend_}); }

  Values adjoint(Values a) override {
    Values out(1);
    if (place.wanted(0)) sum_ = a[0].sum(dim_, /*keepdim=*/true);
    out[0] = transposed(a[0]);
    return out;
  }

  Values tangent(Values t) override {
    Values out(1);
    Tensor p = at::exp(y_);
    out[0] = at::sub(t[0], p.mul(t[0]).sum(dim_, /*keepdim=*/true));
    if (place.wanted(0)) bend_ = p.mul_(out[0]).mul_(take(sum_)).neg_();
    if (!place.bent) take(y_);
    return out;
  }

  Values second(Values b) override {
    Values out(1);
    Tensor bend = std::move(bend_);
    if (place.wanted(0) && b[0].defined()) accumulate(bend, transposed(b[0]));
    take(y_);
    out[0] = std::move(bend);
    return out;
  }

 private:
  Tensor transposed(const Tensor& z) const { return at::_log_softmax_backward_data(z, y_, dim_, y_.scalar_type()); }

  Tensor y_;
  int64_t dim_;
  Tensor sum_, bend_;
};

// With the weights p = exp(h - y): J^T a = p a, J t = <p, t>, and d/dh <a, J t> = p a (t - <p, t>).
class LogsumexpRule : public Rule {
 public:
  LogsumexpRule(const Place& place, Tensor h, Tensor y, std::vector<int64_t> dims, bool keepdim)
      : Rule(place), h_(std::move(h)), y_(std::move(y)), dims_(std::move(dims)), keepdim_(keepdim) {}
  const char* name() const override { return "logsumexp"; }
  bool bends() const override { return true; }
  int64_t kept() const override { return bytes_of({p_, a_, bend_}); }

  Values adjoint(Values a) override {
    Values out(1);
    p_ = at::sub(std::exchange(h_, {}), expanded(std::exchange(y_, {}))).exp_();
    Tensor z = expanded(std::move(a[0]));
    out[0] = p_.mul(z);
    if (place.wanted(0)) a_ = std::move(z);
    return out;
  }

  Values tangent(Values t) override {
    Values out(1);
    const Tensor mean = p_.mul(t[0]).sum(dims_, /*keepdim=*/true);
    if (place.wanted(0)) bend_ = t[0].sub(mean).mul_(p_).mul_(take(a_));
    out[0] = keepdim_ ? mean : mean.squeeze(dims_);
    if (!place.bent) take(p_);
    return out;
  }

  Values second(Values b) override {
    Values out(1);
    Tensor bend = std::move(bend_);
    if (place.wanted(0) && b[0].defined()) accumulate(bend, p_.mul(expanded(std::move(b[0]))));
    take(p_);
    out[0] = std::move(bend);
    return out;
  }

 private:
  Tensor expanded(Tensor z) const {
    if (!keepdim_)
      for (const int64_t dim : dims_) z = z.unsqueeze(dim);
    return z;
  }

  Tensor h_, y_, p_;
  std::vector<int64_t> dims_;
  bool keepdim_;
  Tensor a_, bend_;
};

}  // namespace

std::unique_ptr<Rule> softmax_rule(const Place& place, Tensor result, int64_t dim) {
  if (!real(result) || !place.only(0b1) || place.dtype(0) != result.scalar_type()) return nullptr;
  return std::make_unique<SoftmaxRule>(place, result, at::maybe_wrap_dim(dim, result.dim()));
}

std::unique_ptr<Rule> log_softmax_rule(const Place& place, Tensor result, int64_t dim) {
  if (!real(result) || !place.only(0b1) || place.dtype(0) != result.scalar_type()) return nullptr;
  return std::make_unique<LogSoftmaxRule>(place, result, at::maybe_wrap_dim(dim, result.dim()));
}

std::unique_ptr<Rule> logsumexp_rule(const Place& place, Tensor h, Tensor result, at::IntArrayRef dims, bool keepdim) {
  if (!real(h) || !place.only(0b1) || h.scalar_type() != result.scalar_type() || h.dim() == 0 || dims.empty()) return nullptr;
  std::vector<int64_t> wrapped;
  for (const int64_t dim : dims) wrapped.push_back(at::maybe_wrap_dim(dim, h.dim()));
  std::sort(wrapped.begin(), wrapped.end());
  return std::make_unique<LogsumexpRule>(place, std::move(h), std::move(result), std::move(wrapped), keepdim);
}

}  // namespace gpfast

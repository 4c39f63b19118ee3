// Rules for reductions.
#include "nodes/reduce.h"

#include <ATen/WrapDimUtils.h>
#include <ATen/ops/div.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/reciprocal.h>
#include <ATen/ops/sgn.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/value_selecting_reduction_backward.h>

#include <cmath>

#include "nodes/values.h"

namespace gpfast {
namespace {

using at::Tensor;

// One input, some of whose dimensions are reduced; inside, what is small keeps them, of size one.
class Reduction : public Rule {
 protected:
  Reduction(Place place, Reduced over) : Rule(std::move(place)), dims_(std::move(over.dims)) {
    sizes_ = this->place.sizes(0);
    const auto rank = static_cast<int64_t>(sizes_.size());
    Sizes gone(sizes_.size(), dims_.empty() ? 1 : 0);
    if (rank > 0)
      for (auto dim : dims_) gone[at::maybe_wrap_dim(dim, rank)] = 1;
    for (size_t i = 0; i < sizes_.size(); ++i) {
      if (gone[i]) count_ *= sizes_[i];
      small_.push_back(gone[i] ? 1 : sizes_[i]);
      if (over.keepdim || !gone[i]) out_.push_back(small_.back());
    }
  }

  Tensor small(const Tensor& output) const { return output.view(small_); }
  Tensor output(const Tensor& small) const { return small.view(out_); }
  // A small tensor as an adjoint of the input: nothing is written.
  Tensor spread(Tensor small) const { return cast(std::move(small), place.dtype(0)).expand(sizes_); }
  Tensor summed(const Tensor& z) const { return at::sum(z, dims_, true); }
  Tensor averaged(const Tensor& z) const { return at::mean(z, dims_, true); }

  std::vector<int64_t> dims_;
  Sizes sizes_, small_, out_;
  int64_t count_ = 1;  // entries that become one
};

class Total final : public Reduction {
 public:
  Total(Place place, Reduced over, bool mean)
      : Reduction(std::move(place), std::move(over)), factor_(mean ? 1. / static_cast<double>(count_) : 1.), mean_(mean) {}

  const char* name() const override { return mean_ ? "mean" : "sum"; }
  Values adjoint(Values a) override {
    dtype_ = a[0].scalar_type();
    return back(std::move(a[0]));
  }
  Values tangent(Values t) override {
    Values out(place.outputs);
    if (!place.tangent || !t[0].defined()) return out;
    const bool keepdim = out_.size() == sizes_.size();
    out[0] = mean_ ? at::mean(t[0], dims_, keepdim, dtype_) : at::sum(t[0], dims_, keepdim, dtype_);
    return out;
  }
  Values second(Values b) override { return back(std::move(b[0])); }
  int64_t kept() const override { return 0; }

 private:
  Values back(Tensor z) const {
    Values out(1);
    if (z.defined()) out[0] = spread(small(scaled(std::move(z), factor_)));
    return out;
  }

  double factor_;
  bool mean_;
  at::ScalarType dtype_ = at::kFloat;
};

// With d = x - mean(x), or x itself for a norm, and q = sum d^2: dy/dx = g d, where a variance y = gain q has g = 2 gain, and a
// root y = sqrt(gain q) has g = gain / y. a_x = a g d, t_y = g sum(d t), b_x = (b g - a g t_y / y) d + a g (t - mean(t)), the
// term with 1 / y for a root only.
class Moments final : public Reduction {
 public:
  enum Kind { kVariance, kDeviation, kNorm };

  Moments(Place place, Kind kind, Tensor x, const Tensor& result, Reduced over, double correction)
      : Reduction(std::move(place), std::move(over)), kind_(kind), x_(std::move(x)) {
    const double rest = static_cast<double>(count_) - correction;
    gain_ = kind == kNorm ? 1 : (kind == kDeviation ? 1 : 2) / rest;
    // Where the root is 0, autograd takes its gradient to be 0.
    if (rooted()) slope_ = scaled(at::reciprocal(small(result)).masked_fill_(at::eq(small(result), 0), 0), gain_);
    if (centered()) mean_ = averaged(x_);
  }

  double gain() const { return gain_; }
  const char* name() const override { return kind_ == kNorm ? "norm" : kind_ == kDeviation ? "deviation" : "variance"; }
  bool bends() const override { return true; }
  Values adjoint(Values a) override {
    Tensor z;
    reached_ = a[0].defined();
    if (reached_) {
      const Tensor slope = sloped(small(a[0]));
      if (place.wanted(0)) a_ = slope;
      z = deviations(slope);
    }
    Values out(1);
    out[0] = with_mean(std::move(z), a);
    if (!reached_) x_ = Tensor();
    return out;
  }
  Values tangent(Values t) override {
    Values out(place.outputs);
    Tensor z = std::move(t[0]);
    t = Values();
    if (reached_ && (place.tangent || (place.wanted(0) && rooted()))) {
      Tensor change = sloped(summed(deviations(z)));
      if (place.tangent) out[0] = output(change);
      if (place.wanted(0) && rooted()) change_ = std::move(change);
    }
    if (place.tangent && place.outputs > 1) out[1] = output(averaged(z));
    if (reached_ && place.wanted(0)) t_ = std::move(z);
    z = Tensor();
    if (!place.bent) part_ = finish(Values(place.outputs));
    if (!keep && !(place.bent && place.wanted(0))) x_ = Tensor();
    return out;
  }
  Values second(Values b) override {
    Values out(1);
    out[0] = place.bent ? finish(std::move(b)) : std::move(part_);
    if (!keep) x_ = mean_ = slope_ = Tensor();
    return out;
  }
  int64_t kept() const override { return bytes_of({x_, mean_, slope_, a_, t_, change_, part_}); }

 private:
  bool rooted() const { return kind_ != kVariance; }
  bool centered() const { return kind_ != kNorm; }
  Tensor deviations(const Tensor& factor) const {
    return centered() ? at::sub(x_, mean_).mul_(factor) : at::mul(x_, factor);
  }
  Tensor sloped(const Tensor& z) const { return rooted() ? at::mul(z, slope_) : at::mul(z, gain_); }
  Tensor with_mean(Tensor z, const Values& outputs) const {
    if (outputs.size() < 2 || !outputs[1].defined()) return z;
    const Tensor mean = at::div(small(outputs[1]), count_);
    return z.defined() ? z.add_(mean) : spread(mean);
  }
  Tensor finish(Values b) {
    Tensor a = take(a_), t = std::move(t_), change = std::move(change_), p, z;
    if (b[0].defined()) p = sloped(small(b[0]));
    if (change.defined()) {
      change = at::mul(a, change);
      p = p.defined() ? p.addcmul_(change, slope_, -1 / gain_) : scaled(change.mul_(slope_), -1 / gain_);
    }
    if (p.defined()) z = deviations(p);
    if (t.defined()) {
      const Tensor shift = centered() ? at::mul(a, averaged(t)) : Tensor();
      if (z.defined()) {
        z.addcmul_(t, a);
      } else {
        z = ours(t) ? t.mul_(a) : at::mul(t, a);
      }
      if (shift.defined()) z.sub_(shift);
    }
    return with_mean(std::move(z), b);
  }

  Kind kind_;
  double gain_ = 1;
  bool reached_ = false;  // by an adjoint of the first output
  Tensor x_, mean_;
  Tensor slope_;  // gain / y of a root, 0 where y is
  Tensor a_;      // times the slope
  Tensor t_, change_, part_;
};

// Linear in pieces: y = sum(weight x) / count. Of the entries that are, or whose size is, as large as y; or of all, by their sign.
class Pieces final : public Reduction {
 public:
  enum Kind { kExtreme, kExtremeSize, kSizes };

  Pieces(Place place, Kind kind, const Tensor& x, const Tensor& result, Reduced over)
      : Reduction(std::move(place), std::move(over)), kind_(kind) {
    if (kind != kSizes) {
      weight_ = at::eq(kind == kExtreme ? x : x.abs(), small(result));
      equal_ = summed(weight_);
    }
    if (kind == kSizes) weight_ = at::sgn(x).to(at::kChar);
    if (kind == kExtremeSize) weight_ = at::sgn(x).to(at::kChar).mul_(weight_);
  }

  const char* name() const override { return kind_ == kExtreme ? "extreme" : "norm"; }
  Values adjoint(Values a) override { return back(a[0]); }
  Values tangent(Values t) override {
    Values out(place.outputs);
    if (place.tangent) {
      Tensor z = std::move(t[0]);
      z = summed(ours(z) ? z.mul_(weight_) : at::mul(z, weight_));
      out[0] = output(equal_.defined() ? z.div_(equal_) : z);
    }
    if (!keep && !place.bent) weight_ = Tensor();
    return out;
  }
  Values second(Values b) override {
    Values out = b[0].defined() ? back(b[0]) : Values(1);
    if (!keep) weight_ = Tensor();
    return out;
  }
  int64_t kept() const override { return bytes_of({weight_, equal_}); }

 private:
  Values back(const Tensor& z) const {
    return {at::mul(weight_, equal_.defined() ? at::div(small(z), equal_) : small(z))};
  }

  Kind kind_;
  Tensor weight_;
  Tensor equal_;  // how many are
};

// With z = a y: a_x = z / x, t_y = y s with s = sum(t / x), and b_x = (b y + z (s - t / x)) / x.
class ProductOver final : public Reduction {
 public:
  ProductOver(Place place, Tensor x, const Tensor& result, Reduced over)
      : Reduction(std::move(place), std::move(over)), x_(std::move(x)), y_(small(result)) {}

  const char* name() const override { return "prod"; }
  bool bends() const override { return true; }
  Values adjoint(Values a) override {
    a_ = at::mul(small(a[0]), y_);
    Values out = {at::div(a_, x_)};
    if (!place.wanted(0)) a_ = Tensor();
    return out;
  }
  Values tangent(Values t) override {
    Values out(place.outputs);
    const Tensor shares = at::div(t[0], x_), sum = summed(shares), a = take(a_);
    if (place.wanted(0)) part_ = at::sub(sum, shares).mul_(a).div_(x_);
    if (place.tangent) out[0] = output(at::mul(sum, y_));
    if (!keep && !place.bent) x_ = Tensor();
    return out;
  }
  Values second(Values b) override {
    Values out = {std::move(part_)};
    if (place.wanted(0) && b[0].defined()) accumulate(out[0], at::mul(small(b[0]), y_).div(x_));
    if (!keep) x_ = Tensor();
    return out;
  }
  int64_t kept() const override { return bytes_of({x_, y_, a_, part_}); }

 private:
  Tensor x_, y_, a_, part_;
};

class Picked final : public Reduction {
 public:
  Picked(Place place, Tensor indices, int64_t dim, bool keepdim)
      : Reduction(std::move(place), {{dim}, keepdim}), indices_(std::move(indices)), dim_(dim), keepdim_(keepdim) {}

  const char* name() const override { return "picked"; }
  Values adjoint(Values a) override { return back(a[0]); }
  Values tangent(Values t) override {
    Values out(place.outputs);
    if (place.tangent) out[0] = output(t[0].gather(dim_, small(indices_)));
    return out;
  }
  Values second(Values b) override { return b[0].defined() ? back(b[0]) : Values(1); }
  int64_t kept() const override { return bytes_of({indices_}); }

 private:
  Values back(const Tensor& z) const {
    return {at::value_selecting_reduction_backward(z, dim_, indices_, sizes_, keepdim_)};
  }

  Tensor indices_;
  int64_t dim_;
  bool keepdim_;
};

std::unique_ptr<Rule> moments(Place place, Moments::Kind kind, Tensor x, const Tensor& result, Reduced over, double correction) {
  auto made = std::make_unique<Moments>(std::move(place), kind, std::move(x), result, std::move(over), correction);
  return made->gain() > 0 && std::isfinite(made->gain()) ? std::move(made) : nullptr;
}

}  // namespace

std::unique_ptr<Rule> sum(Place place, Reduced over) {
  return std::make_unique<Total>(std::move(place), std::move(over), false);
}
std::unique_ptr<Rule> mean(Place place, Reduced over) {
  return std::make_unique<Total>(std::move(place), std::move(over), true);
}
std::unique_ptr<Rule> variance(Place place, Tensor x, Reduced over, double correction) {
  return moments(std::move(place), Moments::kVariance, std::move(x), Tensor(), std::move(over), correction);
}
std::unique_ptr<Rule> deviation(Place place, Tensor x, const Tensor& result, Reduced over, double correction) {
  return moments(std::move(place), Moments::kDeviation, std::move(x), result, std::move(over), correction);
}
std::unique_ptr<Rule> norm(Place place, Tensor x, const Tensor& result, Reduced over) {
  return moments(std::move(place), Moments::kNorm, std::move(x), result, std::move(over), 0);
}
std::unique_ptr<Rule> extreme(Place place, const Tensor& x, const Tensor& result, Reduced over) {
  return std::make_unique<Pieces>(std::move(place), Pieces::kExtreme, x, result, std::move(over));
}
std::unique_ptr<Rule> sum_of_sizes(Place place, const Tensor& x, Reduced over) {
  return std::make_unique<Pieces>(std::move(place), Pieces::kSizes, x, Tensor(), std::move(over));
}
std::unique_ptr<Rule> extreme_size(Place place, const Tensor& x, const Tensor& result, Reduced over) {
  return std::make_unique<Pieces>(std::move(place), Pieces::kExtremeSize, x, result, std::move(over));
}
std::unique_ptr<Rule> product_over(Place place, Tensor x, const Tensor& result, Reduced over) {
  if (x.is_meta() || x.key_set().has(c10::DispatchKey::Python) || x.scalar_type() != result.scalar_type()) return nullptr;
  if (at::eq(x, 0).any().item<bool>()) return nullptr;
  return std::make_unique<ProductOver>(std::move(place), std::move(x), result, std::move(over));
}
std::unique_ptr<Rule> picked(Place place, Tensor indices, int64_t dim, bool keepdim) {
  return std::make_unique<Picked>(std::move(place), std::move(indices), dim, keepdim);
}

}  // namespace gpfast

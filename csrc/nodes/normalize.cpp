#include "nodes/normalize.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/native_batch_norm_backward.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/accumulate.h>

#include "nodes/values.h"
#include "ops/normalize.h"
#include "ops/relayout.h"

namespace gpfast {
namespace {

using at::Tensor;

constexpr size_t kInput = 0, kWeight = 1, kBias = 2;

bool wants(const Place& place, size_t i) { return i < place.inputs.size() && place.wanted(i); }
bool is_known(at::ScalarType dtype) {
  return dtype == at::kDouble || dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf;
}
bool has_rule(const Place& place, const SavedNorm& saved) {
  return place.only(0b1) && saved.input.numel() > 0 && is_known(saved.input.scalar_type());
}
// The statistics of a norm are results of their own, which only code that calls the operator itself sees.
void check_alone(const Values& a, const char* name) {
  for (size_t i = 1; i < a.size(); ++i)
    TORCH_CHECK(!a[i].defined(), "the statistics of ", name,
                " are differentiated: gpfast's tape has no rule for that; call it with engine=\"autograd\".");
}

// A norm by the input's own statistics. The adjoint settles the layout that the input is brought into, and all that comes later.
class Normalize : public Rule {
 public:
  Normalize(const Place& place, SavedNorm saved) : Rule(place), held_(std::move(saved)) {}

  bool bends() const override { return true; }

  Values adjoint(Values values) override {
    check_alone(values, name());
    Values out(place.inputs.size());
    Tensor a = std::move(values[0]);
    if (!a.defined()) return out;
    settle(a);
    const auto tensors = norm();
    const bool bends = place.wanted(kInput), later = bends || wants(place, kWeight);
    repeats_ = later ? repeats(a) : Reader{};
    if (later && !repeats_) a_ = a;
    out[kInput] = ours(a) ? a : at::empty_like(a);
    normalize_adjoint(out[kInput], a, {}, tensors, {}, block_, false, false, {});
    return out;
  }

  Values tangent(Values values) override {
    Values out(place.outputs);
    Tensor t = std::move(values[kInput]), a;
    if (!t.defined()) {
      take(a_);
      return out;
    }
    t = relaid(t, order_);
    if (place.wanted(kInput) || wants(place, kWeight)) a = adjoint_here();
    const bool bends = a.defined() && place.wanted(kInput), weighs = a.defined() && wants(place, kWeight);
    if (place.tangent) out[0] = ours(t) ? t : at::empty_like(t);
    if (bends) bent_ = ours(a) ? a : at::empty_like(a);
    if (place.tangent || bends || weighs)
      of_weight_ = normalize_tangent(out[0], bent_, t, a, norm(), block_, weighs, gate_);
    if (!keep && !place.bent) held_ = {}, gate_ = {};
    return out;
  }

  Values second(Values values) override {
    Values out(place.inputs.size());
    Tensor b = std::move(values[0]), bent = std::move(bent_), of_weight = std::move(of_weight_), of_bias;
    if (b.defined()) {
      b = relaid(b, order_);
      Tensor to;
      if (place.wanted(kInput)) to = ours(b) ? b : ours(bent) ? bent : at::empty_like(b);
      std::tie(of_weight, of_bias) =
          normalize_adjoint(to, b, bent, norm(), of_weight, block_, wants(place, kWeight), wants(place, kBias), gate_);
      bent = std::move(to);
    }
    if (!keep) held_ = {}, gate_ = {};
    if (place.wanted(kInput)) out[kInput] = std::move(bent);
    if (wants(place, kWeight)) out[kWeight] = as_parameter(of_weight, kWeight);
    if (wants(place, kBias)) out[kBias] = as_parameter(of_bias, kBias);
    return out;
  }

  void borrow() override { gate_ = reader ? reader.rule->lend(order_) : GateOfBits{}; }

  bool repeats_adjoint(size_t /*input*/) const override { return a_.defined() || repeats_; }
  Tensor adjoint_again(size_t /*input*/) const override {
    const Tensor a = repeats_ ? relaid(repeats_.adjoint_again(), order_) : a_, out = ours(a) ? a : at::empty_like(a);
    normalize_adjoint(out, a, {}, norm(), {}, block_, false, false, {});
    return out;
  }

  int64_t kept() const override {
    return bytes_of({held_.input, held_.mean, held_.rstd, held_.weight, a_, bent_, of_weight_});
  }

 protected:
  virtual Order choose(const Tensor& a) const = 0;
  virtual NormBlock block() const = 0;
  // From (C,) to the shape that the parameter has.
  virtual Tensor unflattened(const Tensor& gradient, at::IntArrayRef sizes) const { return gradient.view(sizes); }
  virtual Tensor flattened(const Tensor& weight) const { return weight; }

  SavedNorm held_;
  Order order_;

 private:
  void settle(Tensor& a) {
    order_ = choose(a);
    a = relaid(a, order_);
    held_.input = relaid_saved(held_.input, order_);
    block_ = block();
    if (held_.weight.defined()) held_.weight = flattened(held_.weight);
  }
  Tensor adjoint_here() { return repeats_ ? relaid(repeats_.adjoint_again(), order_) : take(a_); }
  NormTensors norm() const { return {held_.input, held_.mean, held_.rstd, held_.weight}; }
  Tensor as_parameter(const Tensor& gradient, size_t i) const {
    return gradient.defined() ? unflattened(gradient, place.sizes(i)).to(place.dtype(i)) : gradient;
  }

  NormBlock block_;
  GateOfBits gate_;           // that follows
  Reader repeats_;  // the adjoint
  Tensor a_, bent_, of_weight_;
};

// Rows, which may lie in any order of their own: a layer norm over (C, H, W) between convolutions in channels_last.
class LayerNorm : public Normalize {
 public:
  LayerNorm(const Place& place, SavedNorm saved, int64_t dims)
      : Normalize(place, std::move(saved)), name_(held_.mean.defined() ? "layer norm" : "RMS norm"), dims_(dims) {}

  const char* name() const override { return name_; }

 protected:
  Order choose(const Tensor& a) const override {
    auto order = order_by_strides(a, dims_);
    return is_dense_in(a, order) ? order : contiguous_order(a.dim());
  }
  NormBlock block() const override {
    const auto sizes = held_.input.sizes();
    const int64_t depth = c10::multiply_integers(sizes.slice(sizes.size() - dims_));
    return {held_.input.numel() / depth, 1, depth, 1, BlockOrder::pixels};
  }
  Tensor flattened(const Tensor& weight) const override { return weight.permute(row_order()).contiguous(); }
  Tensor unflattened(const Tensor& gradient, at::IntArrayRef sizes) const override {
    const auto order = row_order();
    Order inside, back(order.size());
    for (size_t i = 0; i < order.size(); ++i) inside.push_back(sizes[order[i]]), back[order[i]] = static_cast<int64_t>(i);
    return gradient.view(inside).permute(back);
  }

 private:
  Order row_order() const {
    Order order(order_.end() - dims_, order_.end());
    for (auto& d : order) d -= static_cast<int64_t>(order_.size()) - dims_;
    return order;
  }

  const char* const name_;
  const int64_t dims_;
};

// Channels in dimension 1, in NCHW or channels_last: the latter where the layouts differ, as the convolutions around like it.
class ChannelNorm : public Normalize {
 public:
  using Normalize::Normalize;

 protected:
  Order choose(const Tensor& a) const override {
    const auto planes = contiguous_order(a.dim()), pixels = channels_last_order(a.dim());
    if (is_dense_in(a, planes) && is_dense_in(held_.input, planes)) return planes;
    return is_dense_in(a, pixels) || is_dense_in(held_.input, pixels) ? pixels : planes;
  }
  int64_t length() const { return held_.input.numel() / (held_.input.size(0) * held_.input.size(1)); }
  bool is_pixels() const { return length() == 1 || order_ != contiguous_order(held_.input.dim()); }
};

class GroupNorm : public ChannelNorm {
 public:
  GroupNorm(const Place& place, SavedNorm saved, int64_t groups) : ChannelNorm(place, std::move(saved)), groups_(groups) {}

  const char* name() const override { return "group norm"; }

 protected:
  NormBlock block() const override {
    const auto& h = held_.input;
    return {h.size(0), groups_, h.size(1) / groups_, length(), is_pixels() ? BlockOrder::pixels : BlockOrder::planes};
  }

 private:
  const int64_t groups_;
};

class BatchNorm : public ChannelNorm {
 public:
  using ChannelNorm::ChannelNorm;

  const char* name() const override { return "batch norm"; }

 protected:
  NormBlock block() const override {
    const auto& h = held_.input;
    if (is_pixels()) return {1, h.size(1), 1, h.size(0) * length(), BlockOrder::pixels};
    return {h.size(0), h.size(1), 1, length(), BlockOrder::batch};
  }
};

// w (h - mean) / deviation with constants for all but h, by ATen's kernel for the backward of just that.
class FrozenBatchNorm : public Rule {
 public:
  FrozenBatchNorm(const Place& place, SavedNorm saved, Tensor variance, double eps)
      : Rule(place), held_(std::move(saved)), variance_(std::move(variance)), eps_(eps) {
    if (!place.bent || !wants(place, kWeight)) held_.input = Tensor();
  }

  const char* name() const override { return "frozen batch norm"; }

  Values adjoint(Values a) override {
    check_alone(a, name());
    Values out(place.inputs.size());
    if (!a[0].defined()) return out;
    out[kInput] = backward(a[0], a[0], held_.mean, {true, false, false})[0];
    if (wants(place, kWeight)) a_ = std::move(a[0]);
    return out;
  }

  Values tangent(Values t) override {
    Values out(place.outputs);
    const auto a = take(a_);
    if (!t[kInput].defined()) return out;
    // The weight's gradient of <a, J t> is that of an input t with a mean of zero.
    if (a.defined()) {
      of_weight_ = summed_apart(a) ? weight_gradient(a, t[kInput])
                                   : backward(a, t[kInput], at::zeros_like(held_.mean), {false, true, false})[kWeight];
    }
    if (place.tangent) out[0] = backward(t[kInput], t[kInput], held_.mean, {true, false, false})[0];
    return out;
  }

  Values second(Values b) override {
    Values out(place.inputs.size());
    auto of_weight = std::move(of_weight_);
    if (b[0].defined()) {
      const bool weighs = wants(place, kWeight), biased = wants(place, kBias), apart = summed_apart(b[0]);
      const auto& input = weighs ? held_.input : b[0];
      Values found(3);
      if (place.wanted(kInput) || !apart)
        found = backward(b[0], input, held_.mean, {place.wanted(kInput), weighs && !apart, biased && !apart});
      if (apart && weighs) found[kWeight] = weight_gradient(b[0], input, held_.mean);
      if (apart && biased) found[kBias] = sum_by_channel(b[0]);
      accumulate(found[kWeight], std::move(of_weight));
      return found;
    }
    if (wants(place, kWeight)) out[kWeight] = std::move(of_weight);
    return out;
  }

  bool repeats_adjoint(size_t /*input*/) const override { return a_.defined(); }
  Tensor adjoint_again(size_t /*input*/) const override { return backward(a_, a_, held_.mean, {true, false, false})[kInput]; }

  int64_t kept() const override { return bytes_of({held_.input, held_.mean, held_.weight, variance_, a_, of_weight_}); }

 private:
  Values backward(const Tensor& gradient, const Tensor& input, const Tensor& mean, std::array<bool, 3> mask) const {
    auto [of_input, of_weight, of_bias] = at::native_batch_norm_backward(gradient, input, held_.weight, mean, variance_, {}, {},
                                                                         /*train=*/false, eps_, mask);
    return {std::move(of_input), std::move(of_weight), std::move(of_bias)};
  }

  // In channels_last ATen's kernel adds one pixel after another, in float32.
  static bool summed_apart(const Tensor& z) { return z.scalar_type() == at::kFloat && !launched(z) && !z.is_contiguous(); }

  // The sum of gradient * (input - mean) / deviation, of some samples at a time: what lies between is small.
  Tensor weight_gradient(const Tensor& gradient, const Tensor& input, const Tensor& mean = {}) const {
    constexpr int64_t kBlock = 1 << 18;  // elements
    const int64_t samples = gradient.size(0), most = std::max<int64_t>(1, kBlock * samples / gradient.numel());
    Sizes one_a_channel(gradient.dim(), 1);
    one_a_channel[1] = gradient.size(1);
    Tensor sum;
    for (int64_t first = 0; first < samples; first += most) {
      const int64_t n = std::min(most, samples - first);
      const auto g = gradient.narrow(0, first, n), x = input.narrow(0, first, n);
      const auto product = mean.defined() ? x.sub(mean.view(one_a_channel)).mul_(g) : x.mul(g);
      accumulate(sum, sum_by_channel(product));
    }
    return sum.mul_(variance_.add(eps_).rsqrt_());
  }

  SavedNorm held_;
  Tensor variance_, a_, of_weight_;
  const double eps_;
};

}  // namespace

std::unique_ptr<Rule> layer_norm(const Place& place, SavedNorm saved, int64_t dims) {
  if (!has_rule(place, saved)) return nullptr;
  return std::make_unique<LayerNorm>(place, std::move(saved), dims);
}

std::unique_ptr<Rule> group_norm(const Place& place, SavedNorm saved, int64_t groups) {
  if (!has_rule(place, saved)) return nullptr;
  return std::make_unique<GroupNorm>(place, std::move(saved), groups);
}

std::unique_ptr<Rule> batch_norm(const Place& place, SavedNorm saved) {
  if (!has_rule(place, saved)) return nullptr;
  return std::make_unique<BatchNorm>(place, std::move(saved));
}

std::unique_ptr<Rule> frozen_batch_norm(const Place& place, Tensor input, Tensor mean, Tensor variance, Tensor weight,
                                        double eps) {
  SavedNorm saved{std::move(input), std::move(mean), Tensor(), std::move(weight)};
  if (!has_rule(place, saved) || !saved.mean.defined() || !variance.defined()) return nullptr;
  return std::make_unique<FrozenBatchNorm>(place, std::move(saved), std::move(variance), eps);
}

}  // namespace gpfast

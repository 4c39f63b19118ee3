#include "nodes/inplace.h"

#include <torch/csrc/autograd/functions/tensor.h>

#include "ops/relayout.h"

namespace gpfast {
namespace {

using at::Tensor;

// The outer node lets go of the operation, and of nothing that the operation saved.
void let_go(const Place& place, Node& operation) {
  if (!static_cast<const torch::autograd::CopySlices*>(place.node)->fn) operation.release_variables();
}

class OnView final : public Rule {
 public:
  // The base may be a constant, which has no edge: its sizes are the output's.
  OnView(const Place& place, NodePtr operation, std::unique_ptr<Rule> inner)
      : Rule(place), operation_(std::move(operation)), inner_(std::move(inner)), base_(sizes_of(place.node->input_metadata(0))) {
    view_ = sizes_of(operation_->input_metadata(0));
  }

  const char* name() const override { return inner_->name(); }
  bool bends() const override { return inner_->bends(); }
  Values adjoint(Values a) override {
    let_go(place, *operation_);
    return to_inputs(inner_->adjoint(to_view(std::move(a))));
  }
  Values tangent(Values t) override {
    inner_->keep = keep;
    auto out = inner_->tangent(to_view(std::move(t)));
    if (out[0].defined()) out[0] = reshaped(out[0], base_);
    return out;
  }
  Values second(Values b) override {
    inner_->keep = keep;
    return to_inputs(inner_->second(to_view(std::move(b))));
  }
  GateOfBits lend(const Order& order) override {
    if (order != contiguous_order(static_cast<int64_t>(base_.size()))) return {};
    return inner_->lend(contiguous_order(static_cast<int64_t>(view_.size())));
  }
  int64_t kept() const override { return inner_->kept(); }

 private:
  Values to_view(Values values) const {
    if (values[0].defined()) values[0] = reshaped(values[0], view_);
    return values;
  }
  Values to_inputs(Values values) const {
    if (values[0].defined()) values[0] = reshaped(values[0], base_);
    return values;
  }

  NodePtr operation_;
  std::unique_ptr<Rule> inner_;
  Sizes base_, view_;
};

// The view is a part of its base, of which the rest stays as it is.
class OnPart final : public Rule {
 public:
  OnPart(const Place& place, NodePtr operation, std::unique_ptr<Rule> inner, Part part)
      : Rule(place), operation_(std::move(operation)), inner_(std::move(inner)), part_(std::move(part)) {}

  const char* name() const override { return inner_->name(); }
  bool bends() const override { return inner_->bends(); }
  Values adjoint(Values a) override {
    let_go(place, *operation_);
    Tensor whole = taken_apart(a, place.live(0));
    auto out = inner_->adjoint(std::move(a));
    if (place.live(0)) out[0] = put_back(std::move(whole), std::move(out[0]));
    return out;
  }
  Values tangent(Values t) override {
    inner_->keep = keep;
    Tensor whole = taken_apart(t, place.tangent);
    auto out = inner_->tangent(std::move(t));
    if (place.tangent) out[0] = put_back(std::move(whole), std::move(out[0]));
    return out;
  }
  Values second(Values b) override {
    inner_->keep = keep;
    Tensor whole = taken_apart(b, place.wanted(0));
    auto out = inner_->second(std::move(b));
    if (!place.wanted(0)) return out;
    // What has arrived at the base from elsewhere needs no zeros around this.
    const bool there = !whole.defined() && out[0].defined() && part_.in_any_layout() && ours(onto[0]);
    if (there) {
      part_.in(onto[0]).add_(out[0]);
      out[0] = std::move(onto[0]);
    } else {
      out[0] = put_back(std::move(whole), std::move(out[0]));
    }
    return out;
  }
  int64_t kept() const override { return inner_->kept(); }

 private:
  // Leaves the view in the place of its base, and returns the base where something of it will be left. One that will be written to
  // shares nothing with what the inner rule is given, and may hold or hand on.
  Tensor taken_apart(Values& values, bool written) const {
    Tensor whole = std::move(values[0]);
    if (!whole.defined()) return whole;
    whole = part_.laid(std::move(whole));
    if (written && !part_.all())
      for (auto& other : values)
        if (other.defined() && other.storage().is_alias_of(whole.storage()) && other.numel() < whole.numel()) other = other.clone();
    const bool mine = ours(whole);
    values[0] = part_.in(whole);
    if (!written || part_.all()) return {};
    if (mine) values[0] = values[0].clone();
    return whole;
  }

  // The base, which is changed where it is ours, with the view's new value: zero where that is undefined.
  Tensor put_back(Tensor whole, Tensor part) const {
    if (!whole.defined()) return part.defined() ? part_.whole_of(part) : whole;
    if (!ours(whole)) whole = whole.clone();
    if (part.defined()) part_.in(whole).copy_(part);
    else part_.in(whole).zero_();
    return whole;
  }

  NodePtr operation_;
  std::unique_ptr<Rule> inner_;
  const Part part_;
};

}  // namespace

Place place_on_view(const Place& place, const Node& operation) {
  Place inner = place;
  inner.node = &operation;
  return inner;
}

std::unique_ptr<Rule> on_part(const Place& place, NodePtr operation, std::unique_ptr<Rule> inner, Part part) {
  return std::make_unique<OnPart>(place, std::move(operation), std::move(inner), std::move(part));
}

std::unique_ptr<Rule> on_view(const Place& place, NodePtr operation, std::unique_ptr<Rule> inner) {
  return std::make_unique<OnView>(place, std::move(operation), std::move(inner));
}

}  // namespace gpfast

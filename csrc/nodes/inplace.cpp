#include "nodes/inplace.h"

#include <torch/csrc/autograd/functions/tensor.h>

#include "ops/relayout.h"

namespace gpfast {
namespace {

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
    // The outer node lets go of the operation, and of nothing that the operation saved.
    if (!static_cast<const torch::autograd::CopySlices*>(place.node)->fn) operation_->release_variables();
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

}  // namespace

Place place_on_view(const Place& place, const Node& operation) {
  Place inner = place;
  inner.node = &operation;
  return inner;
}

std::unique_ptr<Rule> on_view(const Place& place, NodePtr operation, std::unique_ptr<Rule> inner) {
  return std::make_unique<OnView>(place, std::move(operation), std::move(inner));
}

}  // namespace gpfast

#include "plan.h"

#include <c10/util/flat_hash_map.h>
#include <torch/csrc/autograd/anomaly_mode.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/node.h>

#include "nodes/alone.h"
#include "points.h"

namespace gpfast {
namespace {

constexpr int kUnseen = -3, kDead = -2;

bool has_hooks(Node& node) {
  return !node.tensor_pre_hooks().empty() || !node.pre_hooks().empty() || !node.post_hooks().empty() ||
         !node.retains_grad_hooks().empty();
}

class Reader {
 public:
  Reader(const edge_list& targets, bool derivatives) : derivatives_(derivatives) {
    plan_.targets = targets;
    for (const auto& target : targets) {
      floor_ = std::min(floor_, target.function->topological_nr());
      plan_.target_wanted.push_back(derivatives && leads_on(*target.function));
      if (!target.function->tensor_pre_hooks().empty() || !target.function->retains_grad_hooks().empty())
        refuse(*target.function, "has a backward hook");
    }
  }

  Plan read(const edge_list& outputs) {
    if (torch::autograd::AnomalyMode::is_enabled()) plan_.refused = "anomaly detection is on";
    for (const auto& output : outputs) visit(output.function);
    for (const auto& output : outputs) plan_.roots.push_back(source_of(output, /*collect=*/false));
    return std::move(plan_);
  }

 private:
  // A point of ours leads on only where it was made of tensors that require grad.
  static bool leads_on(Node& node) {
    const auto* root = dynamic_cast<Root*>(&node);
    return !root || root->next_edge(0).is_valid();
  }

  void refuse(const Node& node, const std::string& why) {
    if (plan_.refused.empty()) plan_.refused = node.name() + " " + why;
  }

  int target_of(const Edge& edge) const {
    for (size_t i = 0; i < plan_.targets.size(); ++i)
      if (plan_.targets[i] == edge) return static_cast<int>(i);
    return -1;
  }

  int step_of(Node* node) const {
    const auto found = index_.find(node);
    return found == index_.end() ? kUnseen : found->second;
  }

  // Depth first, children before parents, without recursion.
  void visit(const NodePtr& root) {
    if (!root || !may_reach(*root) || step_of(root.get()) != kUnseen) return;
    std::vector<std::pair<NodePtr, size_t>> stack{{root, 0}};
    index_[root.get()] = kDead;
    while (!stack.empty()) {
      auto& [node, next] = stack.back();
      if (next < node->num_outputs()) {
        const auto& child = node->next_edge(next++).function;
        if (child && may_reach(*child) && index_.emplace(child.get(), kDead).second) stack.emplace_back(child, 0);
      } else {
        const auto done = std::move(node);
        stack.pop_back();
        finish(done);
      }
    }
  }

  // The target itself is looked into too: another target may lie above it.
  bool may_reach(Node& node) const { return node.topological_nr() > floor_; }

  void finish(const NodePtr& node) {
    bool live = false;
    for (const auto& edge : node->next_edges())
      live |= edge.is_valid() && (target_of(edge) >= 0 || step_of(edge.function.get()) >= 0);
    if (!live) return;
    if (has_hooks(*node)) refuse(*node, "has a backward hook");
    index_[node.get()] = static_cast<int>(plan_.steps.size());
    auto& step = plan_.steps.emplace_back();
    step.node = node;
    auto& place = step.place;
    place.node = node.get();
    place.outputs = node->num_inputs();
    step.uses.resize(place.outputs);
    for (size_t k = 0; k < place.outputs; ++k) {
      const auto& output = node->input_metadata(k);
      if (output.is_nested_tensor()) refuse(*node, "makes a nested tensor");
      plan_.half |= !output.was_default_constructed() && output.dtype() == at::kHalf;
    }
    for (const auto& edge : node->next_edges()) {
      const auto source = source_of(edge, /*collect=*/true);
      Input input;
      input.live = source.target >= 0 || source.step >= 0;
      input.wanted = source.side >= 0 || (source.target >= 0 && plan_.target_wanted[source.target]) ||
                     (source.step >= 0 && plan_.steps[source.step].place.any_wanted());
      step.sources.push_back(source);
      place.inputs.push_back(input);
    }
  }

  Source source_of(const Edge& edge, bool collect) {
    Source source;
    if (!edge.is_valid()) return source;
    source.output = edge.input_nr;
    source.target = target_of(edge);
    const int step = step_of(edge.function.get());
    if (step >= 0) source.step = step;
    if (source.step < 0 && source.target < 0 && collect && derivatives_) source.side = side_of(edge);
    return source;
  }

  int side_of(const Edge& edge) {
    auto& known = sides_[edge.function.get()];
    for (const auto& [output, side] : known)
      if (output == edge.input_nr) return side;
    known.emplace_back(edge.input_nr, static_cast<int>(plan_.sides.size()));
    plan_.sides.push_back(edge);
    return known.back().second;
  }

  bool derivatives_;
  uint64_t floor_ = UINT64_MAX;
  Plan plan_;
  ska::flat_hash_map<Node*, int> index_;
  ska::flat_hash_map<Node*, c10::SmallVector<std::pair<uint32_t, int>, 1>> sides_;
};

}  // namespace

Plan read_graph(const edge_list& outputs, const edge_list& targets, bool derivatives) {
  return Reader(targets, derivatives).read(outputs);
}

}  // namespace gpfast

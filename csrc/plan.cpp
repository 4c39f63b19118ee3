#include "plan.h"

#include <c10/util/flat_hash_map.h>
#include <torch/csrc/autograd/anomaly_mode.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/function.h>

#include <algorithm>
#include <cstring>
#include <typeinfo>
#include <unordered_map>
#include <unordered_set>

#include "nodes/alone.h"
#include "points.h"
#include "saved.h"

namespace gpfast {
namespace {

constexpr int kUnseen = -3, kDead = -2;

bool has_hooks(Node& node) {
  return !node.tensor_pre_hooks().empty() || !node.pre_hooks().empty() || !node.post_hooks().empty() ||
         !node.retains_grad_hooks().empty();
}

// A custom Function written in Python; the class is the Python bindings'.
bool is_python(const Node& node) { return !std::strcmp(typeid(node).name(), "N5torch8autograd6PyNodeE"); }

class GraphReader {
 public:
  GraphReader(const edge_list& targets, bool derivatives) : derivatives_(derivatives) {
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
    // What arrives at a point that another point leads to goes on through the plan, and is not handed over there as well.
    for (size_t i = 0; i < plan_.targets.size(); ++i)
      if (step_of(plan_.targets[i].function.get()) >= 0) plan_.target_wanted[i] = false;
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
    if (is_python(*node)) {
      plan_.lowest_custom = std::min(plan_.lowest_custom, plan_.steps.size() - 1);
      know_by_name(step);
    }
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

  void know_by_name(Step& step) {
    const auto name = step.node->name();
    // Differentiated by a backward pass of its own, into the parameters' .grad.
    TORCH_CHECK(name != "CheckpointFunctionBackward", "the critic holds a checkpoint with use_reentrant=True, incompatible with a"
                " gradient with respect to inputs, in PyTorch too; pass use_reentrant=False.");
    step.sink = name == "_DDPSinkBackward";
    if (step.sink) plan_.sinks.push_back(step.node);
  }

  Source source_of(const Edge& edge, bool collect) {
    Source source;
    if (!edge.is_valid()) return source;
    source.output = edge.input_nr;
    source.target = target_of(edge);
    const int step = step_of(edge.function.get());
    if (step >= 0) source.step = step;
    if (source.step >= 0 || source.target >= 0 || !collect || !derivatives_) return source;
    // A linear layer reads its weight transposed: the gradient goes past that node, which costs a call in backward.
    source.transposed = is_transpose(*edge.function) && !has_hooks(*edge.function) && edge.function->next_edge(0).is_valid();
    source.side = side_of(source.transposed ? edge.function->next_edge(0) : edge);
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

// From an edge through nodes outside the plan to the places where they join it.
class Escaping {
 public:
  explicit Escaping(const Plan& plan) : plan_(plan) {
    for (size_t i = 0; i < plan.steps.size(); ++i) steps_[plan.steps[i].node.get()] = static_cast<int>(i);
    for (const auto& target : plan.targets) floor_ = std::min(floor_, target.function->topological_nr());
  }

  Escape find(const Edge& edge) {
    Escape escape{edge, {}, {}, {source_of(edge)}};
    if (inside(escape.sources[0]) || !carries(edge.function)) return escape;
    escape.sources.clear();
    collect(edge.function, escape);
    std::reverse(escape.between.begin(), escape.between.end());
    return escape;
  }

 private:
  static bool inside(const Source& source) { return source.step >= 0 || source.target >= 0; }

  Source source_of(const Edge& edge) const {
    Source source;
    source.output = edge.input_nr;
    const auto step = steps_.find(edge.function.get());
    if (step != steps_.end()) source.step = step->second;
    for (size_t i = 0; i < plan_.targets.size(); ++i)
      if (plan_.targets[i] == edge) source.target = static_cast<int>(i);
    return source;
  }

  // Depth first, children before parents.
  void collect(const NodePtr& node, Escape& escape) {
    if (!collected_.insert(node.get()).second) return;
    TORCH_CHECK(!has_hooks(*node), "a derivative depends on a tensor that its node was not given, behind a backward hook of ",
                node->name(), ": gpfast's tape cannot call that; call it with engine=\"autograd\".");
    for (const auto& next : node->next_edges()) {
      if (!next.is_valid()) continue;
      const auto source = source_of(next);
      if (!inside(source) && carries(next.function)) {
        collect(next.function, escape);
      } else if (std::find(escape.ends.begin(), escape.ends.end(), next) == escape.ends.end()) {
        escape.ends.push_back(next);
        escape.sources.push_back(source);
      }
    }
    escape.between.push_back(node);
  }

  // Whether the plan can be reached from a node outside it.
  bool carries(const NodePtr& node) {
    const auto [known, first] = known_.emplace(node.get(), false);
    if (!first || node->topological_nr() <= floor_) return known->second;
    bool found = false;
    for (const auto& next : node->next_edges())
      found |= next.is_valid() && (inside(source_of(next)) || carries(next.function));
    return known_[node.get()] = found;
  }

  const Plan& plan_;
  uint64_t floor_ = UINT64_MAX;
  std::unordered_map<Node*, int> steps_;
  std::unordered_map<Node*, bool> known_;
  std::unordered_set<Node*> collected_;
};

}  // namespace

std::vector<Escape> find_escapes(const Plan& plan, const edge_list& edges) {
  std::vector<Escape> escapes;
  for (const auto& edge : edges) escapes.push_back(Escaping(plan).find(edge));
  return escapes;
}

Plan read_graph(const edge_list& outputs, const edge_list& targets, bool derivatives) {
  return GraphReader(targets, derivatives).read(outputs);
}

}  // namespace gpfast

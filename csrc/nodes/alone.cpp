#include "nodes/alone.h"

#include <ATen/core/grad_mode.h>
#include <ATen/SequenceNumber.h>
#include <c10/core/AutogradState.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/variable.h>

#include <optional>
#include <unordered_map>
#include <unordered_set>

namespace gpfast {

namespace {

// Stands for a node outside: same outputs, nothing beyond.
struct Stop : Node {
  explicit Stop(const Node& original) {
    for (uint32_t i = 0; i < original.num_inputs(); ++i) input_metadata_.push_back(original.input_metadata(i));
  }
  variable_list apply(variable_list&&) override { return {}; }
};

// Outside of the group of calls for which checkpoints are recomputed once.
struct Ungrouped {
  explicit Ungrouped(bool on) {
    auto& state = c10::AutogradState::get_tls_state();
    if (!on || !state.get_graph_exec_group()) return;
    group = state.get_graph_exec_group();
    state.set_graph_exec_group(std::nullopt);
  }
  ~Ungrouped() {
    if (group) c10::AutogradState::get_tls_state().set_graph_exec_group(std::move(group));
  }
  std::optional<c10::SafePyObject> group;
};

}  // namespace

variable_list call(Node& node, variable_list grads, bool again) {
  const Ungrouped ungrouped(again);
  grads = node(std::move(grads));
  torch::autograd::validate_outputs(node.next_edges(), grads,
                                    [&](const std::string& message) { return node.name() + " returned " + message; });
  return grads;
}

// Cuts what a node has just computed off the graph that it was computed from, by giving the fresh nodes stand-ins for edges: the
// graph itself is never touched.
class Alone::Boundary {
 public:
  Boundary(Alone& alone, uint64_t start) : alone_(alone), start_(start) {
    for (const auto& edge : alone.leaf_edges_) own_leaves_.insert(edge.function.get());
  }

  // The edge, or its stand-in where it leads outside.
  Edge cut(const Edge& edge) {
    Node* node = edge.function.get();
    if (!node || own_leaves_.count(node)) return edge;
    if (fresh(edge.function)) {
      if (seen_.insert(node).second) open_.push_back(edge.function);
      return edge;
    }
    return stand_in(edge);
  }

  void walk() {
    while (!open_.empty()) {
      const auto node = std::move(open_.back());
      open_.pop_back();
      for (auto& edge : node->next_edges()) edge = cut(edge);
    }
  }

 private:
  bool fresh(const NodePtr& node) {
    if (node->sequence_nr() == UINT64_MAX || dynamic_cast<const torch::autograd::AccumulateGrad*>(node.get())) return false;
    if (node->thread_id() == at::RecordFunction::currentThreadId()) return node->sequence_nr() >= start_ && node != alone_.node_;
    return leads_to_leaf(node.get());
  }

  // Another thread's nodes are numbered apart. Those that do not depend on the leaves may be fresh too, and need not be cut.
  bool leads_to_leaf(Node* root) {
    std::unordered_set<Node*> visited{root};
    std::vector<Node*> open{root};
    while (!open.empty()) {
      auto* node = open.back();
      open.pop_back();
      if (known(*node)) continue;
      for (const auto& edge : node->next_edges()) {
        if (own_leaves_.count(edge.function.get())) return true;
        if (edge.is_valid() && visited.insert(edge.function.get()).second) open.push_back(edge.function.get());
      }
    }
    return false;
  }

  // The node itself and what lies right below it: most of what a derivative depends on.
  bool known(const Node& node) const {
    if (&node == alone_.node_.get()) return true;
    for (const auto& edge : alone_.node_->next_edges())
      if (edge.function.get() == &node) return true;
    return false;
  }

  Edge stand_in(const Edge& edge) {
    auto& stop = stops_[edge.function.get()];
    if (!stop) stop = make_node<Stop>(*edge.function);
    const Edge stands{stop, edge.input_nr};
    for (const auto& known : alone_.stops_)
      if (known == stands) return stands;
    alone_.stops_.push_back(stands);
    alone_.meaning_.push_back(meaning(edge));
    return stands;
  }

  // An operation in place saves a clone of what it overwrites: the clone's input is its own.
  static const Edge& behind_clones(const Edge& edge) {
    const bool clone = edge.function->num_outputs() == 1 && edge.function->name() == "CloneBackward0";
    return clone && edge.function->next_edge(0).is_valid() ? behind_clones(edge.function->next_edge(0)) : edge;
  }

  int meaning(const Edge& seen) {
    if (const auto known = known_meaning(seen)) return *known;
    const Edge& edge = behind_clones(seen);
    if (const auto known = known_meaning(edge)) return *known;
    alone_.escapes_.push_back(edge);
    return static_cast<int>(alone_.place.inputs.size() + alone_.escapes_.size()) - 1;
  }

  std::optional<int> known_meaning(const Edge& edge) const {
    const auto inputs = static_cast<int>(alone_.place.inputs.size());
    if (edge.function == alone_.node_) return -1 - static_cast<int>(edge.input_nr);
    for (int i = 0; i < inputs; ++i)
      if (alone_.node_->next_edge(i) == edge) return i;
    return std::nullopt;
  }

  Alone& alone_;
  uint64_t start_;
  std::unordered_set<Node*> own_leaves_, seen_;
  std::unordered_map<Node*, NodePtr> stops_;
  std::vector<NodePtr> open_;
};

Alone::Alone(NodePtr node, Place place, bool read_before)
    : Rule(std::move(place)), node_(std::move(node)), read_before_(read_before) {}

Values Alone::adjoint(Values a) {
  variable_list grads;
  for (auto& value : a) {
    leaves_.push_back(value.defined() ? value.detach().set_requires_grad(true) : at::Tensor());
    leaf_edges_.push_back(value.defined() ? torch::autograd::impl::gradient_edge(leaves_.back()) : Edge());
    grads.push_back(leaves_.back());
  }
  a.clear();
  const uint64_t start = at::sequence_number::peek();
  {
    at::AutoGradMode on(true);
    grads = call(*node_, std::move(grads), /*again=*/read_before_);
  }
  Values out(place.inputs.size());
  Boundary boundary(*this, start);
  inner_.resize(out.size());
  for (size_t i = 0; i < out.size(); ++i) {
    if (!place.live(i) || !grads[i].defined() || grads[i]._is_zerotensor()) continue;
    out[i] = grads[i].detach();
    if (grads[i].requires_grad()) inner_[i] = boundary.cut(torch::autograd::impl::gradient_edge(grads[i]));
  }
  grads.clear();
  boundary.walk();
  bool second = !escapes_.empty();
  for (const int m : meaning_) {
    const bool of_input = m >= 0 && m < static_cast<int>(place.inputs.size());
    bends_ |= m < 0 || (of_input && place.live(m) && place.wanted(m));
    second |= m < 0 || (of_input && place.wanted(m));
  }
  if (!second && !place.tangent) inner_.assign(out.size(), Edge());
  return out;
}

Values Alone::tangent(Values t) {
  Values out(place.outputs);
  from_inputs_ = Values(place.inputs.size());
  from_outputs_ = Values(place.outputs);
  escaped_ = variable_list(escapes_.size());
  edge_list roots, ends;
  variable_list seeds;
  for (size_t i = 0; i < inner_.size(); ++i) {
    if (!t[i].defined() || !inner_[i].is_valid()) continue;
    roots.push_back(inner_[i]);
    seeds.push_back(std::move(t[i]));
  }
  if (roots.empty()) return out;
  for (const auto& edge : leaf_edges_)
    if (edge.is_valid()) ends.push_back(edge);
  const size_t leaves = ends.size();
  ends.insert(ends.end(), stops_.begin(), stops_.end());
  auto found = torch::autograd::Engine::get_default_engine().execute(roots, seeds, /*keep_graph=*/keep, /*create_graph=*/false,
                                                                     /*accumulate_grad=*/false, ends);
  for (size_t k = 0, j = 0; k < leaves_.size(); ++k)
    if (leaves_[k].defined()) accumulate(out[k], std::move(found[j++]));
  for (size_t j = 0; j < stops_.size(); ++j) {
    const int m = meaning_[j], inputs = static_cast<int>(place.inputs.size());
    auto& into = m < 0 ? from_outputs_[-1 - m] : m < inputs ? from_inputs_[m] : escaped_[m - inputs];
    accumulate(into, std::move(found[leaves + j]));
  }
  if (!keep) {
    inner_.clear();
    stops_.clear();
    leaves_.clear();
    leaf_edges_.clear();
  }
  return out;
}

Values Alone::second(Values b) {
  Values out = std::move(from_inputs_);
  out.resize(place.inputs.size());
  from_outputs_.resize(place.outputs);
  bool any = false;
  for (size_t k = 0; k < b.size(); ++k) {
    accumulate(b[k], std::move(from_outputs_[k]));
    any |= b[k].defined();
  }
  if (any) {
    at::AutoGradMode off(false);
    variable_list grads(b.begin(), b.end());
    b.clear();
    grads = call(*node_, std::move(grads), /*again=*/true);
    for (size_t i = 0; i < out.size(); ++i) accumulate(out[i], std::move(grads[i]));
  }
  for (size_t i = 0; i < out.size(); ++i)
    if (!place.wanted(i)) out[i] = at::Tensor();
  return out;
}

int64_t Alone::kept() const {
  int64_t bytes = 0;
  for (const auto& leaf : leaves_) bytes += bytes_of({leaf});
  return bytes;
}

}  // namespace gpfast

#pragma once
// From the sweeps back to autograd: nodes whose next edges are the parameter side itself.
#include <unordered_map>

#include "tape.h"

namespace gpfast {

// Backward of the input gradient: holds a tape after its adjoint sweep, and runs the other two with what arrives.
struct InputGradientBackward : torch::autograd::Node {
  InputGradientBackward(Tape tape, size_t points) : Node(edge_list(tape.edges())), tape(std::move(tape)), points(points) {}
  variable_list apply(variable_list&& grads) override;
  void release_variables() override;
  std::string name() const override { return "gpfast::InputGradientBackward"; }

  Tape tape;
  size_t points;  // the first inputs: what arrives for the gradients; then what arrives for the scores
};

// Backward of the penalty: the gradients are there already, and are handed over times what arrives.
struct PenaltyBackward : torch::autograd::Node {
  // gradients: those that `tape` has found.
  PenaltyBackward(const Tape& tape, variable_list gradients)
      : Node(edge_list(tape.edges())), gradients(std::move(gradients)), unscale(tape.unscale()), sinks(tape.plan().sinks) {}
  variable_list apply(variable_list&& grads) override;
  void release_variables() override;
  std::string name() const override { return "gpfast::PenaltyBackward"; }
  // Of what it holds, that which meets these edges, undefined where nothing does: to be added to, and given back by add.
  variable_list take(const edge_list& edges);
  // The gradients of another part of the batch, before anything depends on this node.
  void add(const Tape& tape, variable_list more);

  variable_list gradients;  // one an edge, undefined for zero
  at::Tensor unscale;          // 0-dim factor of all gradients, or undefined
  std::vector<NodePtr> sinks;  // of the plans
  bool given = false;

 private:
  std::unordered_map<Edge, size_t> places() const;  // of the edges among the gradients
};

}  // namespace gpfast

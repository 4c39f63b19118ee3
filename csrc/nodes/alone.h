#pragma once
// A node without a rule, run alone by PyTorch itself: exact for whatever autograd can differentiate twice.
#include "graph.h"
#include "rule.h"

namespace gpfast {

// What a node makes of grads, summed over broadcast dimensions and cast, as the engine hands it on. again: what it saved was read
// before; a checkpoint hands out a tensor once to a group of calls, so this one is in none.
variable_list call(Node& node, variable_list grads, bool again);

class Alone : public Rule {
 public:
  Alone(NodePtr node, Place place, bool read_before);  // read_before: for a rule that there is not after all
  const char* name() const override { return "alone"; }
  bool bends() const override { return bends_; }
  Values adjoint(Values a) override;
  Values tangent(Values t) override;
  Values second(Values b) override;
  int64_t kept() const override;

  // Places of the graph that the node's derivative depends on although they are no inputs of it (a custom Function that keeps a
  // parameter for its backward), known after adjoint, and their gradients, known after tangent.
  const edge_list& escapes() const { return escapes_; }
  variable_list take_escaped() { return std::move(escaped_); }

 private:
  class Boundary;

  NodePtr node_;
  variable_list leaves_;      // the incoming adjoints, as leaves
  edge_list leaf_edges_;      // which keep their accumulators alive: a leaf itself does not
  edge_list inner_;           // what the node computed of them, one an input, where differentiable in anything
  edge_list stops_;           // where differentiation ends: stand-ins for places of the graph outside the node
  c10::SmallVector<int, 4> meaning_;  // of a stop: input i as i, output k as -1 - k, escape j as inputs + j
  edge_list escapes_;
  variable_list escaped_;
  Values from_inputs_, from_outputs_;  // second-order terms, from tangent to second
  bool bends_ = false, read_before_;
};

}  // namespace gpfast

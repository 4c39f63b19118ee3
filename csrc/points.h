#pragma once
// The point a critic is given: a node of its own in autograd's graph, with nothing to accumulate into.
#include <torch/csrc/autograd/function.h>

namespace gpfast {

struct Root : torch::autograd::Node {
  explicit Root(torch::autograd::edge_list next) : Node(std::move(next)) {}
  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override;
  std::string name() const override { return "gpfast::Root"; }
};

}  // namespace gpfast

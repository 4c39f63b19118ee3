#pragma once
// Autograd's nodes, however this version of PyTorch counts their references.
#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>

namespace gpfast {

using torch::autograd::Edge;
using torch::autograd::edge_list;
using torch::autograd::variable_list;
using NodePtr = decltype(Edge::function);

template <typename T, typename... Args>
auto make_node(Args&&... args) {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, torch::autograd::Node>) {
    return c10::make_intrusive<T>(std::forward<Args>(args)...);
  } else {
    return std::shared_ptr<T>(new T(std::forward<Args>(args)...), [](auto* node) { deleteNode(node); });
  }
}

}  // namespace gpfast

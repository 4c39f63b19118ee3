#include "points.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/alias.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include "graph.h"

namespace gpfast {

torch::autograd::variable_list Root::apply(torch::autograd::variable_list&& grads) {
  if (!next_edge(0).is_valid()) return {at::Tensor()};
  return {std::move(grads[0])};
}

namespace {

// (x to give to a critic, a tensor that stays where the point stands in the graph, whatever the critic writes to it).
// ours: x was made here, so that a critic may write to it. A view of the caller's tensor it may not, and PyTorch says so.
std::tuple<at::Tensor, at::Tensor> root(const at::Tensor& x, bool ours) {
  namespace impl = torch::autograd::impl;
  auto node = make_node<Root>(edge_list{impl::gradient_edge(x)});
  at::AutoGradMode off(false);
  auto point = ours ? x.detach() : x.view_as(x);
  impl::set_gradient_edge(point, {node, node->add_input_metadata(point)});
  if (!ours) impl::get_view_autograd_meta(point)->set_creation_meta(torch::autograd::CreationMeta::IN_CUSTOM_FUNCTION);
  auto anchor = at::empty({}, x.options());
  impl::set_gradient_edge(anchor, {node, node->add_input_metadata(anchor)});
  return {std::move(point), std::move(anchor)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(gpfast, m) { m.def("root(Tensor x, bool ours) -> (Tensor point, Tensor anchor)"); }
TORCH_LIBRARY_IMPL(gpfast, CompositeImplicitAutograd, m) { m.impl("root", &root); }

}  // namespace gpfast

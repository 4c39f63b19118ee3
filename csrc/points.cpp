#include "points.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/alias.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/rand.h>
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

// Whether a batch needs no thought: dense floats, contiguous, of no subclass, and nothing to differentiate.
bool is_plain(const at::Tensor& x) {
  const auto dtype = x.scalar_type();
  return x.layout() == at::kStrided && (x.is_cpu() || x.is_cuda()) && !x.requires_grad() && !x.is_inference() && x.dim() > 0 &&
         x.numel() > 0 && x.is_contiguous() && !x.key_set().has(c10::DispatchKey::Python) &&
         (dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16);
}

bool alike(const at::Tensor& x, const at::Tensor& y) { return x.scalar_type() == y.scalar_type() && x.device() == y.device(); }

using Tensors = std::vector<at::Tensor>;

// What points.draw and root give for interpolates of plain batches, or for plain batches as they are, in one call: all of as many
// samples, of one dtype and device, each pair of one shape. None for any other, of which nothing has been drawn.
std::tuple<Tensors, Tensors> plain_start(const Tensors& real, const std::optional<Tensors>& fake,
                                         std::optional<at::Generator> generator) {
  if (real.empty() || (fake && fake->size() != real.size())) return {};
  const auto& first = real[0];
  if (generator && generator->device().type() != first.device().type()) return {};
  for (size_t i = 0; i < real.size(); ++i) {
    const auto& x = real[i];
    if (!is_plain(x) || !alike(x, first) || x.size(0) != first.size(0)) return {};
    if (fake && (!is_plain((*fake)[i]) || !alike(x, (*fake)[i]) || x.sizes() != (*fake)[i].sizes())) return {};
  }
  Tensors xs = real;
  if (fake) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto wide = first.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const auto alpha = at::rand({first.size(0)}, std::move(generator), first.options().dtype(wide));
    static const auto interpolate = c10::Dispatcher::singleton()
                                        .findSchemaOrThrow("gpfast::interpolate", "")
                                        .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&)>();
    for (size_t i = 0; i < xs.size(); ++i) xs[i] = interpolate.call(real[i], (*fake)[i], alpha);
  }
  Tensors points, anchors;
  for (const auto& x : xs) {
    auto [point, anchor] = root(x, /*ours=*/fake.has_value());
    points.push_back(std::move(point));
    anchors.push_back(std::move(anchor));
  }
  return {std::move(points), std::move(anchors)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(gpfast, m) {
  m.def("root(Tensor x, bool ours) -> (Tensor point, Tensor anchor)");
  m.def("plain_start(Tensor[] real, Tensor[]? fake, Generator? generator) -> (Tensor[] points, Tensor[] anchors)");
}
TORCH_LIBRARY_IMPL(gpfast, CompositeImplicitAutograd, m) {
  m.impl("root", &root);
  m.impl("plain_start", &plain_start);
}

}  // namespace gpfast

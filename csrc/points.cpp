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

// What points.draw and root give for interpolates of plain batches of one shape, dtype and device, or for one plain batch, in one
// call; two empty tensors for any other, of which nothing has been drawn.
std::tuple<at::Tensor, at::Tensor> plain_start(const at::Tensor& real, const std::optional<at::Tensor>& other,
                                               std::optional<at::Generator> generator) {
  const bool fits = is_plain(real) && (!generator || generator->device().type() == real.device().type());
  if (fits && !other) return root(real, /*ours=*/false);
  if (!fits || !is_plain(*other) || real.sizes() != other->sizes() || real.scalar_type() != other->scalar_type() ||
      real.device() != other->device())
    return {at::empty({0}), at::empty({0})};
  const auto& fake = *other;
  at::Tensor x;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto wide = real.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const auto alpha = at::rand({real.size(0)}, std::move(generator), real.options().dtype(wide));
    static const auto interpolate = c10::Dispatcher::singleton()
                                        .findSchemaOrThrow("gpfast::interpolate", "")
                                        .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&)>();
    x = interpolate.call(real, fake, alpha);
  }
  return root(x, /*ours=*/true);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(gpfast, m) {
  m.def("root(Tensor x, bool ours) -> (Tensor point, Tensor anchor)");
  m.def("plain_start(Tensor real, Tensor? fake, Generator? generator) -> (Tensor point, Tensor anchor)");
}
TORCH_LIBRARY_IMPL(gpfast, CompositeImplicitAutograd, m) {
  m.impl("root", &root);
  m.impl("plain_start", &plain_start);
}

}  // namespace gpfast

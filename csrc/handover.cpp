#include "handover.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include <unordered_map>

#include "points.h"
#include "saved.h"

namespace gpfast {
namespace {

using torch::autograd::impl::gradient_edge;

struct ThirdDerivative : torch::autograd::Node {
  explicit ThirdDerivative(edge_list next) : Node(std::move(next)) {}
  variable_list apply(variable_list&&) override {
    TORCH_CHECK(false, "gpfast's tape gives the gradients of a penalty, and no derivatives of those. For third derivatives call it",
                " with engine=\"autograd\".");
  }
  std::string name() const override { return "gpfast::ThirdDerivative"; }
};

// Gradients that were asked for with create_graph. Whoever differentiates them again is told what to do: the error lies on every
// way from them to a parameter.
variable_list last_order(const Node& node, variable_list gradients) {
  if (!at::GradMode::is_enabled()) return gradients;
  const auto error = make_node<ThirdDerivative>(edge_list(node.next_edges()));
  for (auto& gradient : gradients) {
    if (!gradient.defined()) continue;
    gradient = gradient.detach();
    torch::autograd::create_gradient_edge(gradient, error);
  }
  return gradients;
}

// Calls work() in a backward pass of its own. Within the caller's, which may have been asked for some gradients only, the nodes
// that the sweeps call would leave out what that pass does not need.
void in_own_pass(const std::function<void()>& work) {
  struct Runner : torch::autograd::Node {
    explicit Runner(const std::function<void()>& work) : work(work) {}
    variable_list apply(variable_list&&) override {
      work();
      return {};
    }
    const std::function<void()>& work;
  };
  const auto* asked = torch::autograd::get_current_graph_task_exec_info();
  if (!asked || asked->empty()) return work();
  const auto runner = make_node<Runner>(work);
  const auto start = at::zeros({});
  runner->add_input_metadata(start);
  torch::autograd::Engine::get_default_engine().execute({Edge(runner, 0)}, {start}, /*keep_graph=*/true, /*create_graph=*/false,
                                                        /*accumulate_grad=*/true);
}

bool reads_as_one(const at::Tensor& scale) {
  if (!scale.is_cpu() || scale.dim() != 0 || scale.key_set().has(c10::DispatchKey::Python)) return false;
  if (scale.scalar_type() == at::kFloat) return *scale.const_data_ptr<float>() == 1;
  return scale.scalar_type() == at::kDouble && *scale.const_data_ptr<double>() == 1;
}

at::Tensor scaled(at::Tensor gradient, const at::Tensor& scale, bool one, bool keep) {
  if (one) return keep ? gradient.clone() : gradient;
  const auto dtype = gradient.scalar_type();
  if (c10::isReducedFloatingType(dtype)) return gradient.to(at::kFloat).mul_(scale).to(dtype);
  return ours(gradient) ? gradient.mul_(scale) : gradient.mul(scale);
}

}  // namespace

variable_list InputGradientBackward::apply(variable_list&& grads) {
  TORCH_CHECK(!tape.finished(), torch::autograd::ERR_BACKWARD_TWICE);
  variable_list v(grads.begin(), grads.begin() + points), b(grads.begin() + points, grads.end());
  b.resize(tape.plan().roots.size());
  grads.clear();
  const bool keep = torch::autograd::get_current_graph_task_keep_graph();
  variable_list found;
  in_own_pass([&] { found = tape.finish(std::move(v), std::move(b), keep); });
  for (size_t i = 0; i < found.size(); ++i) {
    const auto& edge = next_edge(i);
    if (!task_should_compute_output(i)) found[i] = at::Tensor();
    else if (!found[i].defined()) found[i] = edge.function->input_metadata(edge.input_nr).zeros_like();
  }
  return last_order(*this, std::move(found));
}

void InputGradientBackward::release_variables() {}

variable_list PenaltyBackward::apply(variable_list&& grads) {
  std::lock_guard<std::mutex> lock(mutex_);
  TORCH_CHECK(!given, torch::autograd::ERR_BACKWARD_TWICE);
  variable_list out(gradients.size());
  const at::Tensor scale = std::move(grads[0]);
  if (!scale.defined()) return out;
  const bool keep = torch::autograd::get_current_graph_task_keep_graph(), one = reads_as_one(scale);
  {
    at::AutoGradMode off(false);
    at::AutoDispatchBelowADInplaceOrView below;
    for (size_t i = 0; i < out.size(); ++i) {
      if (!task_should_compute_output(i)) continue;
      const auto& edge = next_edge(i);
      out[i] = keep ? gradients[i] : std::move(gradients[i]);
      out[i] = out[i].defined() ? scaled(std::move(out[i]), scale, one, keep)
                                : edge.function->input_metadata(edge.input_nr).zeros_like();
    }
  }
  given = !keep;
  return last_order(*this, std::move(out));
}

void PenaltyBackward::add(const edge_list& edges, variable_list more) {
  at::AutoDispatchBelowADInplaceOrView below;
  std::unordered_map<Edge, size_t> places;
  for (size_t i = 0; i < gradients.size(); ++i) places.emplace(next_edge(i), i);
  for (size_t i = 0; i < more.size(); ++i) {
    const auto found = places.find(edges[i]);
    if (found != places.end()) {
      accumulate(gradients[found->second], std::move(more[i]));
    } else {
      add_next_edge(edges[i]);
      gradients.push_back(std::move(more[i]));
    }
  }
}

void PenaltyBackward::release_variables() {
  std::lock_guard<std::mutex> lock(mutex_);
  given = true;
  for (auto& gradient : gradients) gradient = at::Tensor();
}

namespace {

Edge point_edge(const at::Tensor& target) {
  if (target.grad_fn())
    if (dynamic_cast<Root*>(target.grad_fn().get())) return {target.grad_fn(), 0};
  return gradient_edge(target);
}

InputGradientBackward& node_of(const at::Tensor& gradient) {
  auto* node = gradient.defined() && gradient.grad_fn() ? dynamic_cast<InputGradientBackward*>(gradient.grad_fn().get()) : nullptr;
  TORCH_CHECK(node, "expected a gradient of gpfast::input_gradient");
  return *node;
}

using Gradients = std::tuple<std::vector<at::Tensor>, at::Tensor, std::string>;

// The gradient of all `scores` at the points, with InputGradientBackward behind it. Where the graph must be differentiated by
// autograd, nothing has been touched, and the reason comes last. release: the graph is nobody else's. derivatives: those of the
// gradient will be asked for. through_scores: also those of the scores that are returned, which replace the given ones.
Gradients input_gradient(const at::Tensor& scores, const std::vector<at::Tensor>& targets, bool release, bool derivatives,
                         bool through_scores) {
  edge_list edges;
  for (const auto& target : targets) edges.push_back(point_edge(target));
  auto plan = read_graph({gradient_edge(scores)}, edges, derivatives);
  if (!plan.refused.empty()) return {{}, scores, plan.refused};
  at::AutoGradMode off(false);
  Tape tape(std::move(plan), release);
  auto gradients = tape.adjoint({at::ones_like(scores)}, through_scores);
  if (!derivatives) return {std::move(gradients), scores, ""};
  const auto node = make_node<InputGradientBackward>(std::move(tape), gradients.size());
  for (auto& gradient : gradients) {
    if (!gradient.defined()) {
      node->add_input_metadata(torch::autograd::Node::undefined_input());
      continue;
    }
    if (!ours(gradient)) gradient = gradient.detach();
    torch::autograd::create_gradient_edge(gradient, node);
  }
  if (!through_scores) return {std::move(gradients), scores, ""};
  auto again = scores.detach();
  torch::autograd::create_gradient_edge(again, node);
  return {std::move(gradients), std::move(again), ""};
}

// weight * value, with the parameters' gradients computed at once, from the seeds d(value)/d(gradients). onto: the result of an
// earlier part of the batch, to which value and gradients are added, and which is used up.
at::Tensor hand_over(const at::Tensor& value, const std::vector<at::Tensor>& gradients, const std::vector<at::Tensor>& seeds,
                     double weight, const std::optional<at::Tensor>& onto) {
  auto& node = node_of(gradients[0]);
  at::AutoGradMode off(false);
  auto result = weight == 1 ? value.detach() : value.mul(weight);
  if (onto) result = result.add_(onto->detach());
  if (node.tape.edges().empty()) return result;
  variable_list v;
  for (const auto& seed : seeds) v.push_back(weight == 1 ? seed : seed.mul(weight));
  auto found = node.tape.finish(std::move(v), variable_list(node.tape.plan().roots.size()), /*keep=*/false);
  auto* earlier = onto && onto->grad_fn() ? dynamic_cast<PenaltyBackward*>(onto->grad_fn().get()) : nullptr;
  if (earlier) {
    earlier->add(node.tape.edges(), std::move(found));
    torch::autograd::impl::set_gradient_edge(result, {onto->grad_fn(), 0});
  } else {
    torch::autograd::create_gradient_edge(result, make_node<PenaltyBackward>(node.tape.edges(), std::move(found)));
  }
  return result;
}

// One line a node, from the scores down: its name, its rule, whether it bends, whether second adjoints reach it, bytes it holds.
std::vector<std::string> describe(const at::Tensor& gradient) {
  std::vector<std::string> lines;
  const auto& steps = node_of(gradient).tape.plan().steps;
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    if (!step->rule) continue;
    std::ostringstream line;
    line << step->node->name() << '\t' << step->rule->name() << '\t' << step->rule->bends() << '\t' << step->place.bent << '\t'
         << step->rule->kept();
    lines.push_back(line.str());
  }
  return lines;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(gpfast, m) {
  m.def("input_gradient(Tensor scores, Tensor[] targets, bool release, bool derivatives, bool through_scores)"
        " -> (Tensor[] gradients, Tensor scores, str refused)");
  m.def("hand_over(Tensor value, Tensor[] gradients, Tensor[] seeds, float weight, Tensor? onto) -> Tensor");
  m.def("describe(Tensor gradient) -> str[]", &describe);
  m.def("set_rules_enabled(bool enabled) -> ()", &set_rules_enabled);
}
TORCH_LIBRARY_IMPL(gpfast, CompositeImplicitAutograd, m) {
  m.impl("input_gradient", &input_gradient);
  m.impl("hand_over", &hand_over);
}

}  // namespace gpfast

#include "handover.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <c10/util/accumulate.h>
#include <c10/util/strides.h>
#include <torch/library.h>

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

const c10::DispatchKeySet kBatched{c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::Batched};

void refuse_batched(const variable_list& grads) {
  for (const auto& grad : grads)
    TORCH_CHECK(!grad.defined() || !grad.key_set().has_any(kBatched),
                "gpfast's tape takes one gradient at a time; for a batch of them (vmap, is_grads_batched) call it with"
                " engine=\"autograd\".");
}

void tell(const std::vector<NodePtr>& sinks) {
  at::AutoGradMode off(false);
  for (const auto& sink : sinks) (*sink)(variable_list(sink->num_inputs()));
}

bool reads_as_one(const at::Tensor& scale) {
  if (!scale.is_cpu() || scale.dim() != 0 || scale.key_set().has(c10::DispatchKey::Python)) return false;
  if (scale.scalar_type() == at::kFloat) return *scale.const_data_ptr<float>() == 1;
  return scale.scalar_type() == at::kDouble && *scale.const_data_ptr<double>() == 1;
}

// Each gradient times the scale: those that are ours in place, all in one launch.
void scale_all(variable_list& gradients, const at::Tensor& scale) {
  std::vector<at::Tensor> in_place;
  for (auto& gradient : gradients) {
    if (!gradient.defined()) continue;
    const auto dtype = gradient.scalar_type();
    if (c10::isReducedFloatingType(dtype)) gradient = gradient.to(at::kFloat).mul_(scale).to(dtype);
    else if (ours(gradient)) in_place.push_back(gradient);
    else gradient = gradient.mul(scale);
  }
  if (!in_place.empty()) at::_foreach_mul_(in_place, scale);
}

// Zeros for the edges of a node that have no gradient. Most are biases: vectors share one tensor.
void fill_with_zeros(const Node& node, variable_list& gradients, const std::vector<size_t>& absent) {
  constexpr int64_t kAligned = 16;  // elements
  at::AutoDispatchBelowADInplaceOrView below;
  at::TensorOptions options;
  std::vector<std::pair<size_t, int64_t>> places;
  int64_t end = 0;
  for (const size_t i : absent) {
    const auto& edge = node.next_edge(i);
    const auto& expected = edge.function->input_metadata(edge.input_nr);
    const bool vector = expected.layout() == at::kStrided && !expected.is_nested_tensor() && sizes_of(expected).size() == 1;
    if (!vector || (!places.empty() && (expected.device() != options.device() || expected.dtype() != options.dtype()))) {
      gradients[i] = expected.zeros_like();
      continue;
    }
    options = expected.options();
    places.emplace_back(i, end);
    end += (sizes_of(expected)[0] + kAligned - 1) / kAligned * kAligned;
  }
  if (places.empty()) return;
  const auto zeros = at::zeros({end}, options);
  for (const auto& [i, begin] : places) {
    const auto& edge = node.next_edge(i);
    const auto sizes = sizes_of(edge.function->input_metadata(edge.input_nr));
    gradients[i] = viewed(zeros, sizes, c10::contiguous_strides(sizes), begin);
  }
}

}  // namespace

variable_list InputGradientBackward::apply(variable_list&& grads) {
  TORCH_CHECK(!tape.finished(), torch::autograd::ERR_BACKWARD_TWICE);
  refuse_batched(grads);
  variable_list v(grads.begin(), grads.begin() + points), b(grads.begin() + points, grads.end());
  b.resize(tape.plan().roots.size());
  grads.clear();
  const bool keep = torch::autograd::get_current_graph_task_keep_graph();
  tell(tape.plan().sinks);
  variable_list found;
  in_own_pass([&] { found = tape.finish(std::move(v), std::move(b), keep); });
  std::vector<size_t> absent;
  for (size_t i = 0; i < found.size(); ++i) {
    if (!task_should_compute_output(i)) found[i] = at::Tensor();
    else if (!found[i].defined()) absent.push_back(i);
  }
  if (tape.unscale().defined()) scale_all(found, tape.unscale());
  fill_with_zeros(*this, found, absent);
  return last_order(*this, std::move(found));
}

void InputGradientBackward::release_variables() {}

variable_list PenaltyBackward::apply(variable_list&& grads) {
  tell(sinks);
  std::lock_guard<std::mutex> lock(mutex_);
  TORCH_CHECK(!given, torch::autograd::ERR_BACKWARD_TWICE);
  refuse_batched(grads);
  variable_list out(gradients.size());
  const at::Tensor scale = std::move(grads[0]);
  if (!scale.defined()) return out;
  const bool keep = torch::autograd::get_current_graph_task_keep_graph();
  {
    at::AutoGradMode off(false);
    at::AutoDispatchBelowADInplaceOrView below;
    const at::Tensor factor = unscale.defined() ? scale.mul(unscale) : scale;
    const bool one = !unscale.defined() && reads_as_one(scale);
    std::vector<size_t> absent;
    for (size_t i = 0; i < out.size(); ++i) {
      if (!task_should_compute_output(i)) continue;
      out[i] = keep ? gradients[i] : std::move(gradients[i]);
      if (!out[i].defined()) absent.push_back(i);
      else if (one && keep) out[i] = out[i].clone();
    }
    if (!one) scale_all(out, factor);
    fill_with_zeros(*this, out, absent);
  }
  given = !keep;
  return last_order(*this, std::move(out));
}

std::unordered_map<Edge, size_t> PenaltyBackward::places() const {
  std::unordered_map<Edge, size_t> places;
  for (size_t i = 0; i < gradients.size(); ++i) places.emplace(next_edge(i), i);
  return places;
}

variable_list PenaltyBackward::take(const edge_list& edges) {
  const auto known = places();
  variable_list taken(edges.size());
  for (size_t i = 0; i < edges.size(); ++i) {
    const auto found = known.find(edges[i]);
    if (found != known.end()) taken[i] = std::move(gradients[found->second]);
  }
  return taken;
}

void PenaltyBackward::add(const Tape& tape, variable_list more) {
  at::AutoDispatchBelowADInplaceOrView below;
  const auto& edges = tape.edges();
  const auto& more_unscale = tape.unscale();
  sinks.insert(sinks.end(), tape.plan().sinks.begin(), tape.plan().sinks.end());
  if (more_unscale.defined() && unscale.defined())  // both are powers of two: of one scale they add up without rounding
    scale_all(more, more_unscale.div(unscale));
  const auto known = places();
  for (size_t i = 0; i < more.size(); ++i) {
    const auto found = known.find(edges[i]);
    if (found != known.end()) {
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

edge_list point_edges(const std::vector<at::Tensor>& targets) {
  edge_list edges;
  for (const auto& target : targets) edges.push_back(point_edge(target));
  return edges;
}

InputGradientBackward& node_of(const at::Tensor& gradient) {
  auto* node = gradient.defined() && gradient.grad_fn() ? dynamic_cast<InputGradientBackward*>(gradient.grad_fn().get()) : nullptr;
  TORCH_CHECK(node, "expected a gradient of gpfast::input_gradient");
  return *node;
}

// A tape after its adjoint sweep from the sum of all `scores`; none where the graph must be differentiated by autograd, of which
// nothing has been touched then.
struct Differentiated {
  std::optional<Tape> tape;
  variable_list gradients;  // at the targets, undefined where there is none
  std::string refused;
};

// later, bent: the tape will be finished in backward, with second adjoints of the scores. adding: to gradients that are there.
Differentiated differentiate(const at::Tensor& scores, edge_list targets, bool release, bool derivatives, bool later, bool bent,
                             bool adding) {
  auto plan = read_graph({gradient_edge(scores)}, targets, derivatives);
  if (!plan.refused.empty()) {
    watch_refused(plan.refused);
    return {{}, {}, plan.refused};
  }
  at::AutoGradMode off(false);
  Differentiated d;
  d.tape.emplace(std::move(plan), release, later, adding);
  d.gradients = d.tape->adjoint({at::ones_like(scores)}, bent);
  return d;
}

using Gradients = std::tuple<std::vector<at::Tensor>, at::Tensor, std::string>;

// The gradient of all `scores` at the points, with InputGradientBackward behind it; the reason comes last where there is none.
// release: the graph is nobody else's. derivatives: those of the gradient will be asked for. through_scores: also those of the
// scores that are returned, which replace the given ones.
Gradients input_gradient(const at::Tensor& scores, const std::vector<at::Tensor>& targets, bool release, bool derivatives,
                         bool through_scores) {
  auto [tape, gradients, refused] = differentiate(scores, point_edges(targets), release, derivatives, /*later=*/derivatives,
                                                     /*bent=*/through_scores, /*adding=*/false);
  if (!tape) return {std::move(gradients), scores, refused};
  at::AutoGradMode off(false);
  if (through_scores)  // what is returned is the caller's to write to: no rule may hold it
    for (auto& gradient : gradients)
      if (gradient.defined() && !ours(gradient)) gradient = gradient.clone();
  if (!derivatives) return {std::move(gradients), scores, ""};
  const auto node = make_node<InputGradientBackward>(std::move(*tape), gradients.size());
  for (auto& gradient : gradients) {
    if (!gradient.defined()) {
      node->add_input_metadata(torch::autograd::Node::undefined_input());
      continue;
    }
    if (!ours(gradient)) gradient = gradient.detach();
    torch::autograd::create_gradient_edge(gradient, node);
  }
  if (!through_scores) return {std::move(gradients), scores, ""};
  auto again = scores.detach().clone();
  torch::autograd::create_gradient_edge(again, node);
  return {std::move(gradients), std::move(again), ""};
}

// The value, with the parameters' gradients computed at once, from the seeds d(value)/d(gradients). onto: the result of an earlier
// part of the batch, to which value and gradients are added, and which is used up.
at::Tensor handed_over(const at::Tensor& value, Tape& tape, variable_list seeds, const std::optional<at::Tensor>& onto) {
  at::AutoGradMode off(false);
  auto result = value.detach();
  if (onto) result = result.add_(onto->detach());
  if (tape.edges().empty()) return result;
  auto* earlier = onto && onto->grad_fn() ? dynamic_cast<PenaltyBackward*>(onto->grad_fn().get()) : nullptr;
  variable_list begun;
  if (earlier && !tape.plan().half && !earlier->unscale.defined()) begun = earlier->take(tape.edges());
  auto found = tape.finish(std::move(seeds), variable_list(tape.plan().roots.size()), /*keep=*/false, std::move(begun));
  if (earlier) {
    earlier->add(tape, std::move(found));
    torch::autograd::impl::set_gradient_edge(result, {onto->grad_fn(), 0});
  } else {
    torch::autograd::create_gradient_edge(result, make_node<PenaltyBackward>(tape, std::move(found)));
  }
  return result;
}

at::Tensor hand_over(const at::Tensor& value, const std::vector<at::Tensor>& gradients, const std::vector<at::Tensor>& seeds,
                     double weight, const std::optional<at::Tensor>& onto) {
  at::AutoGradMode off(false);
  variable_list v;
  for (const auto& seed : seeds) v.push_back(weight == 1 ? seed : seed.mul(weight));
  return handed_over(weight == 1 ? value : value.mul(weight), node_of(gradients[0]).tape, std::move(v), onto);
}

using Norm = std::tuple<at::Tensor, at::Tensor, at::Tensor>(const at::Tensor&, int64_t, double, bool, double, c10::string_view, bool,
                                                            double);

// What gradient_norm takes, a row a sample: one gradient as it lies where it can, several beside each other.
at::Tensor rows_of(variable_list gradients) {
  if (gradients.size() > 1) {
    for (auto& g : gradients) g = g.reshape({g.size(0), -1});
    return at::cat(gradients, 1);
  }
  auto g = std::move(gradients[0]);
  const bool dense = ours(g) || g.is_non_overlapping_and_dense();
  const bool by_sample = g.dim() < 2 || g.size(0) < 2 || g.stride(0) * g.size(0) == g.numel();
  return dense && by_sample ? g : g.contiguous();
}

struct Form {
  c10::DimVector sizes;
  at::ScalarType dtype;
};

// The seeds of gradients of these forms, which lie beside each other.
variable_list parts_of(const at::Tensor& seeds, const std::vector<Form>& forms) {
  variable_list parts;
  int64_t begin = 0;
  for (const auto& [sizes, dtype] : forms) {
    const int64_t columns = c10::multiply_integers(sizes.begin() + 1, sizes.end());
    parts.push_back(seeds.narrow(1, begin, columns).reshape(sizes).to(dtype));
    begin += columns;
  }
  return parts;
}

using Penalty = std::tuple<at::Tensor, at::Tensor, std::string, std::vector<int64_t>>;

// input_gradient, the penalty of its norms a sample, and hand_over in one call: the usual case, of no mask. unused: the places of
// targets that the scores do not depend on, of which there are none where there is a penalty.
Penalty penalty(const at::Tensor& scores, const std::vector<at::Tensor>& targets, double center, bool one_sided, double eps,
                c10::string_view reduction, double weight, bool release, bool derivatives, const std::optional<at::Tensor>& onto) {
  auto [tape, gradients, refused] = differentiate(scores, point_edges(targets), release, derivatives, /*later=*/false, /*bent=*/false,
                                                     /*adding=*/onto.has_value());
  const auto nothing = [] { return at::empty({0}); };
  if (!tape) return {nothing(), nothing(), refused, {}};
  std::vector<int64_t> unused;
  for (size_t i = 0; i < gradients.size(); ++i)
    if (!gradients[i].defined()) unused.push_back(static_cast<int64_t>(i));
  if (!unused.empty()) return {nothing(), nothing(), "", unused};
  at::AutoGradMode off(false);
  at::Tensor value, norms;
  variable_list seeds;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
    static const auto norm = c10::Dispatcher::singleton().findSchemaOrThrow("gpfast::gradient_norm", "").typed<Norm>();
    std::vector<Form> forms;
    for (const auto& g : gradients) forms.push_back({c10::DimVector(g.sizes()), g.scalar_type()});
    const auto rows = rows_of(std::move(gradients));
    at::Tensor seed;
    std::tie(value, norms, seed) = norm.call(rows, 1, center, one_sided, eps, reduction, derivatives, weight);
    if (forms.size() == 1) seeds.push_back(std::move(seed));
    else if (derivatives) seeds = parts_of(seed, forms);
  }
  return {handed_over(value, *tape, std::move(seeds), onto), norms, "", {}};
}

// One line a node, from the scores down, in_words.
std::vector<std::string> describe(const at::Tensor& gradient) {
  std::vector<std::string> lines;
  const auto& steps = node_of(gradient).tape.plan().steps;
  for (auto step = steps.rbegin(); step != steps.rend(); ++step)
    if (step->rule) lines.push_back(in_words(*step));
  return lines;
}

// Four numbers a line of describe: autograd's number of the node, whether the tangent of its outputs is used, and bits of its inputs
// that are live, and that are wanted.
std::vector<int64_t> places(const at::Tensor& gradient) {
  std::vector<int64_t> numbers;
  const auto& steps = node_of(gradient).tape.plan().steps;
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    if (!step->rule) continue;
    int64_t live = 0, wanted = 0;
    for (size_t i = 0; i < std::min<size_t>(step->place.inputs.size(), 63); ++i) {
      live |= static_cast<int64_t>(step->place.live(i)) << i;
      wanted |= static_cast<int64_t>(step->place.wanted(i)) << i;
    }
    for (const int64_t number : {static_cast<int64_t>(step->node->sequence_nr()), int64_t{step->place.tangent}, live, wanted})
      numbers.push_back(number);
  }
  return numbers;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(gpfast, m) {
  m.def("input_gradient(Tensor scores, Tensor[] targets, bool release, bool derivatives, bool through_scores)"
        " -> (Tensor[] gradients, Tensor scores, str refused)");
  m.def("hand_over(Tensor value, Tensor[] gradients, Tensor[] seeds, float weight, Tensor? onto) -> Tensor");
  m.def("penalty(Tensor scores, Tensor[] targets, float center, bool one_sided, float eps, str reduction, float weight,"
        " bool release, bool derivatives, Tensor? onto) -> (Tensor penalty, Tensor norms, str refused, int[] unused)");
  m.def("describe(Tensor gradient) -> str[]", &describe);
  m.def("places(Tensor gradient) -> int[]", &places);
  m.def("set_rules_enabled(bool enabled) -> ()", &set_rules_enabled);
  m.def("set_worth_passes(int bytes) -> int", &set_worth_passes);
}
TORCH_LIBRARY_IMPL(gpfast, CompositeImplicitAutograd, m) {
  m.impl("input_gradient", &input_gradient);
  m.impl("hand_over", &hand_over);
  m.impl("penalty", &penalty);
}

}  // namespace gpfast

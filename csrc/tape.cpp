#include "tape.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/ones.h>
#include <torch/csrc/autograd/function.h>

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "nodes/alone.h"
#include "nodes/passes.h"
#include "ops/relayout.h"

namespace gpfast {
namespace {

// What rules run under: below autograd, with autocast off.
struct Plain {
  at::AutoDispatchBelowADInplaceOrView below;
};

struct Outside {
  at::AutoGradMode no_grad{false};
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

constexpr double kEntry = 4, kMostAdjoint = 12, kMostProduct = 14;  // exponents of two

bool any_defined(const Values& values) {
  for (const auto& value : values)
    if (value.defined()) return true;
  return false;
}

// Second adjoints are its adjoints times Rule::ratio, which its rule does not know: it is given them, for its parameters.
bool takes_multiples(const Step& step) {
  return step.place.proportional && step.place.parameters_wanted() && !knows_ratio(*step.node);
}

// An adjoint of zero, with which a step is in every sweep.
void fill_with_zero(Step& step) {
  Plain plain;
  for (size_t k = 0; k < step.place.outputs; ++k) {
    const auto& output = step.node->input_metadata(k);
    if (output.was_default_constructed()) continue;
    step.a[k] = output.zeros_like();
    return;
  }
}

// A rule that gives a value of another shape or dtype than its input has is a defect, found here and not in a wrong gradient.
void check(const Step& step, size_t i, const at::Tensor& value) {
  const auto& edge = step.node->next_edge(i);
  const auto& expected = edge.function->input_metadata(edge.input_nr);
  TORCH_INTERNAL_ASSERT(expected.is_same_shape(value) && expected.dtype() == value.dtype(), "gpfast: the rule ",
                        step.rule->name(), " of ", step.node->name(), " gave ", value.sizes(), " ", value.dtype(), " for input ", i);
}

}  // namespace

// float16 ends at 6e-8 and 65,504. A gradient of norm 1, which a penalty aims at, has entries of 1 / sqrt(elements): adjoints are
// carried times the power of two that brings those near 2^kEntry. Powers of two round nothing.
void Tape::scale_adjoints(variable_list& seeds) {
  double elements = 1;
  for (const auto& target : plan_.targets) {
    const auto sizes = sizes_of(target.function->input_metadata(target.input_nr));
    double sample = 1;
    for (size_t d = 1; d < sizes.size(); ++d) sample *= static_cast<double>(sizes[d]);
    elements = std::max(elements, sample);
  }
  exponent_ = static_cast<int>(std::min(kEntry + std::round(std::log2(elements) / 2), kMostAdjoint));
  for (auto& seed : seeds)
    if (seed.defined()) seed = seed.mul(std::ldexp(1.0, exponent_));
}

void Tape::unscale_gradients(variable_list& gradients) const {
  for (auto& gradient : gradients) {
    if (!gradient.defined()) continue;
    if (gradient.scalar_type() == at::kHalf) gradient = gradient.to(at::kFloat);
    gradient = gradient.mul(std::ldexp(1.0, -exponent_));
  }
}

// Tangents are carried times a power of two that brings their largest entry near 1, as far as the weights' gradients, which have
// both factors, keep room. It is chosen on the device: nothing waits. Infinity and NaN pass on.
void Tape::scale_tangents(variable_list& v, variable_list& b) {
  at::Tensor largest;
  for (const auto& seed : v) {
    if (!seed.defined() || !seed.numel()) continue;
    const auto size = seed.abs().amax().to(at::kFloat);
    largest = largest.defined() ? at::maximum(largest, size) : size;
  }
  if (!largest.defined()) largest = at::ones({}, at::TensorOptions().dtype(at::kFloat).device(plan_.steps.front().node->device()));
  const auto power = largest.log2().neg().floor().clamp(-kMostProduct, kMostProduct - exponent_);
  for (size_t i = 0; i < v.size(); ++i) {
    if (!v[i].defined()) continue;
    const auto& target = plan_.targets[i];
    v[i] = v[i].to(at::kFloat).mul(power.exp2()).to(c10::typeMetaToScalarType(target.function->input_metadata(target.input_nr).dtype()));
  }
  const auto product = power.add(exponent_);
  for (auto& seed : b)
    if (seed.defined()) seed = seed.to(at::kFloat).mul(product.exp2()).to(seed.scalar_type());
  unscale_ = product.neg().exp2();
}

bool Tape::make_rule(Step& step) {
  bool hooked = false;
  if (takes_multiples(step)) {
    step.place.bent = true;
    for (auto& input : step.place.inputs) input.wanted &= !input.live;
  }
  step.rule = step.sink ? std::make_unique<Passes>(step.place) : rule_for(*step.node, step.place, later_ ? &versions_ : nullptr, hooked);
  if (!step.rule) {
    TORCH_INTERNAL_ASSERT(!step.place.proportional || !step.place.parameters_wanted(), "gpfast: no rule for ", step.node->name());
    auto alone = std::make_unique<Alone>(step.node, step.place, /*read_before=*/hooked);
    step.alone = alone.get();
    step.rule = std::move(alone);
    return false;
  }
  TORCH_INTERNAL_ASSERT(!takes_multiples(step) || !step.rule->bends(), "gpfast: ", step.node->name(), " bends");
  if (release_) step.node->release_variables();
  settle(step);
  return !hooked;
}

// From `at` down, ahead of the adjoints: so what autograd saved, and no rule needs, goes before the first of them comes. As far as it is
// known who bends: down to the next node that runs alone. Tensors that hooks unpack, which may be made anew for that, come one rule at
// a time.
void Tape::make_rules(size_t at) {
  made_ = at;
  while (true) {
    find_waist(made_);
    if (!make_rule(plan_.steps[made_]) || made_ == 0) return;
    --made_;
  }
}

// The highest one.
void Tape::find_waist(size_t at) {
  auto& place = plan_.steps[at].place;
  if (waist_at_ || !place.bent || !Waist::at(plan_, at)) return;
  waist_at_ = at;
  place.bent = place.tangent = false;
  place.proportional = true;
}

// Once it is known whether a step bends: which sweeps it is in, and what that means for those below.
void Tape::settle(Step& step) {
  auto& place = step.place;
  const bool bends = step.rule->bends();
  bool parameters = false, wanted = false;
  for (size_t i = 0; i < place.inputs.size(); ++i) {
    parameters |= step.sources[i].side >= 0;
    wanted |= place.wanted(i);
  }
  const bool escapes = step.alone && !step.alone->escapes().empty();
  step.runs_tangent = place.tangent || parameters || (bends && wanted) || escapes;
  step.runs_second = parameters || ((bends || place.bent) && wanted);
  for (size_t i = 0; i < place.inputs.size(); ++i) {
    if (step.sources[i].step < 0) continue;
    auto& below = plan_.steps[step.sources[i].step].place;
    below.tangent |= step.runs_tangent;
    below.bent |= (bends || place.bent) && place.wanted(i);
    below.proportional |= place.proportional;
  }
}

variable_list Tape::adjoint(variable_list seeds, bool bent) {
  Outside outside;
  const SharedCopies copies;
  auto& steps = plan_.steps;
  variable_list gradients(plan_.targets.size());
  target_uses_.assign(plan_.targets.size(), 0);
  edges_ = plan_.sides;
  for (size_t i = 0; i < plan_.targets.size(); ++i) {
    target_edges_.push_back(plan_.target_wanted[i] ? static_cast<int>(edges_.size()) : -1);
    if (plan_.target_wanted[i]) edges_.push_back(plan_.targets[i]);
  }
  if (plan_.half) scale_adjoints(seeds);
  for (auto& step : steps) step.a = Values(step.place.outputs);
  for (size_t i = 0; i < seeds.size(); ++i) {
    const auto& root = plan_.roots[i];
    if (root.target >= 0) accumulate(gradients[root.target], seeds[i]);
    if (root.step >= 0) steps[root.step].place.bent |= bent, steps[root.step].reader.step = kSeveral;
    if (root.step >= 0) accumulate(steps[root.step].a[root.output], std::move(seeds[i]));
  }
  seeds.clear();
  const Watched::Running running(watched_, kAdjoint);
  made_ = steps.size();
  for (size_t at = steps.size(); at-- > 0;) {
    auto& step = steps[at];
    running.at(at);
    // A target in the middle of the graph passes its adjoint on, and collects it.
    if (step.awaits_second && !any_defined(step.a)) fill_with_zero(step);
    if (!any_defined(step.a)) {
      drop(step);
      continue;
    }
    if (at < made_) make_rules(at);
    if (at == waist_at_) {
      Plain plain;
      step.reader.step = kSeveral;
      step.a[0] = waist_.open(std::move(step.a[0]));
    }
    if (adjoint_of_run(at, gradients)) {
      at = runs_.back()->bottom();
      continue;
    }
    Values out;
    if (step.alone) {
      out = step.rule->adjoint(std::move(step.a));
      if (!step.alone->escapes().empty()) place_escapes(step);
      settle(step);
      await_second(step, out);
    } else {
      Plain plain;
      offer_adjoints(step);
      step.rule->reader = reader(step);
      if (takes_multiples(step)) step.held = step.a[0];
      out = step.rule->adjoint(std::move(step.a));
    }
    step.a.clear();
    give_adjoint(step, std::move(out), gradients);
  }
  if (plan_.half) unscale_gradients(gradients);
  if (waist_.opened()) {
    Plain plain;
    waist_.scale(gradients);
  }
  watched_.describe(steps);
  return gradients;
}

// Of the run of dense layers that begins at step `top`, where one does. What is watched is taken step by step; so is what is added to
// gradients that are there, which a run would hold its own beside.
bool Tape::adjoint_of_run(size_t top, variable_list& gradients) {
  if (watched_.on() || adding_) return false;
  auto run = DenseRun::from(plan_, top, made_);
  if (!run) return false;
  auto& bottom = plan_.steps[run->bottom()];
  Values out(bottom.place.inputs.size());
  {
    Plain plain;
    out[run->input()] = run->adjoint(plan_.steps[top].a[0]);
  }
  for (size_t at = top; at > run->bottom(); --at) {
    plan_.steps[at].a.clear();
    plan_.steps[at - 1].reader.step = static_cast<int>(at);
    plan_.steps[at - 1].uses.back() += 1;
  }
  bottom.a.clear();
  give_adjoint(bottom, std::move(out), gradients);
  runs_.push_back(std::move(run));
  return true;
}

Reader Tape::reader(const Step& step) const {
  const auto& by = step.reader;
  return by.step >= 0 ? Reader{plan_.steps[by.step].rule.get(), by.input} : Reader{};
}

// A rule may add to what is there already. What it leaves is put back before its own values arrive.
void Tape::offer_adjoints(Step& step) {
  for (size_t i = 0; i < step.sources.size(); ++i) {
    const auto& source = step.sources[i];
    if (source.step >= 0 && source.target < 0) step.rule->onto[i] = std::move(plan_.steps[source.step].a[source.output]);
  }
}

at::Tensor* Tape::arrived_second(const Source& source, variable_list& grads) {
  if (source.side >= 0) return &grads[source.side];
  if (source.step < 0 || source.target >= 0 || plan_.steps[source.step].b.empty()) return nullptr;
  return &plan_.steps[source.step].b[source.output];
}

void Tape::offer_second(Step& step, variable_list& grads, bool parameters_only) {
  for (size_t i = 0; i < step.sources.size(); ++i) {
    const auto& source = step.sources[i];
    if (!step.place.wanted(i) || (parameters_only && source.side < 0)) continue;
    auto* arrived = arrived_second(source, grads);
    if (!arrived || !arrived->defined()) continue;
    step.rule->onto[i] = source.transposed ? transposed(*arrived) : *arrived;
    arrived->reset();
  }
}

void Tape::withdraw_second(Step& step, variable_list& grads) {
  for (size_t i = 0; i < step.sources.size(); ++i)
    if (step.rule->onto[i].defined()) give_second(step.sources[i], std::move(step.rule->onto[i]), grads);
}

// No adjoint came: nothing depends on the step.
void Tape::drop(Step& step) {
  step.rule.reset();
  step.alone = nullptr;
  step.runs_tangent = step.runs_second = false;
}

// The gradients that a custom Function gives may depend on an input for which it gives none.
void Tape::await_second(const Step& step, const Values& out) {
  for (size_t i = 0; i < step.sources.size(); ++i) {
    const int below = step.sources[i].step;
    if (below >= 0 && !out[i].defined() && step.place.wanted(i) && step.rule->bends()) plan_.steps[below].awaits_second = true;
  }
}

void Tape::give_adjoint(Step& step, Values out, variable_list& gradients) {
  for (size_t i = 0; i < step.place.inputs.size(); ++i) {
    const auto& source = step.sources[i];
    if (!step.place.live(i)) continue;
    if (out[i].defined()) check(step, i, out[i]);
    if (source.target >= 0) {
      target_uses_[source.target] += step.runs_tangent;
      if (source.step < 0) {
        accumulate(gradients[source.target], std::move(out[i]));
        continue;
      }
      accumulate(gradients[source.target], out[i]);
    }
    auto& below = plan_.steps[source.step];
    const bool only = below.reader.step == kNobody && source.target < 0 && source.output == 0;
    below.reader = {only ? static_cast<int>(&step - plan_.steps.data()) : kSeveral, i};
    below.uses[source.output] += step.runs_tangent;
    if (step.rule->onto[i].defined()) accumulate(below.a[source.output], std::move(step.rule->onto[i]));
    accumulate(below.a[source.output], std::move(out[i]));
  }
}

// A derivative that depends on places the node was not given: an own result seen through a view, a tensor that a custom Function
// keeps. Their second adjoints join the last sweep where they belong, or are handed over.
void Tape::place_escapes(Step& step) {
  step.escapes = find_escapes(plan_, step.alone->escapes());
  for (auto& escape : step.escapes) {
    for (size_t i = 0; i < escape.sources.size(); ++i) {
      auto& source = escape.sources[i];
      if (source.step >= 0) {
        plan_.steps[source.step].reader.step = kSeveral;
        admit_second(source.step, static_cast<int>(&step - plan_.steps.data()));
      } else if (source.target < 0) {
        source.side = static_cast<int>(edges_.size());
        edges_.push_back(escape.between.empty() ? escape.edge : escape.ends[i]);
      }
    }
  }
}

// Second adjoints will arrive at this step. Rules from `made_from` up were made without knowing.
void Tape::admit_second(int index, int made_from) {
  auto& step = plan_.steps[index];
  const bool made = index > made_from, dropped = made && !step.rule;
  const bool inside = std::any_of(runs_.begin(), runs_.end(), [index](const auto& run) { return run->inside(index); });
  step.awaits_second |= !made;
  if (step.place.bent && !dropped && !inside) return;
  const bool takes = !made || step.alone || (step.rule && step.rule->takes_second() && !inside);
  TORCH_CHECK(takes, "the derivative of ", plan_.steps[made_from].node->name(),
              " depends on a tensor that it was not given, made by ", step.node->name(),
              ": gpfast's tape cannot place that; call it with engine=\"autograd\".");
  step.place.bent = true;
  if (!made) return;
  step.runs_second |= step.place.any_wanted();
  for (size_t i = 0; i < step.sources.size(); ++i)
    if (step.sources[i].step >= 0 && step.place.wanted(i)) admit_second(step.sources[i].step, made_from);
}

variable_list Tape::finish(variable_list v, variable_list b, bool keep, variable_list begun) {
  Outside outside;
  versions_.check();
  side_uses_.assign(edges_.size(), 0);
  for (auto step = plan_.steps.rbegin(); step != plan_.steps.rend(); ++step) {
    for (const auto& source : step->sources)
      if (source.side >= 0) side_uses_[source.side] += step->runs_second;
    if (step->runs_second) step->b = Values(step->place.outputs);
    if (!step->rule) continue;
    step->rule->keep = keep;
    step->rule->reader = reader(*step);
    step->rule->borrow();
  }
  finished_ = !keep;
  if (plan_.half) scale_tangents(v, b);
  variable_list grads = std::move(begun);
  grads.resize(edges_.size());
  for (size_t i = 0; i < b.size(); ++i) give_second(plan_.roots[i], std::move(b[i]), grads);
  if (waist_.opened()) pass_waist(v, grads, keep);
  const size_t end = waist_.opened() ? *waist_at_ + 1 : plan_.steps.size();
  tangent_sweep(std::move(v), grads, 0, end);
  last_sweep(grads, 0, end);
  return grads;
}

// Finishes what lies above the waist, and makes v the tangents for what lies below.
void Tape::pass_waist(variable_list& v, variable_list& grads, bool keep) {
  auto& steps = plan_.steps;
  const size_t above = *waist_at_ + 1;
  {
    Plain plain;
    if (above < steps.size()) steps[*waist_at_].t = {waist_.tangent(v)};
    waist_.seed(v);
  }
  tangent_sweep(variable_list(v.size()), grads, above, steps.size());
  last_sweep(grads, above, steps.size());
  Plain plain;
  const auto second = std::move(waist_second_);
  const auto ratio = second.defined() ? waist_.ratio(second) : second;
  for (size_t at = 0; at < above; ++at)
    if (steps[at].rule) steps[at].rule->ratio = ratio;
  for (size_t i = 0; ratio.defined() && i < v.size(); ++i)
    if (target_edges_[i] >= 0) accumulate(grads[target_edges_[i]], waist_.second(ratio, i));
  if (!keep) waist_.release();
}

void Tape::tangent_sweep(variable_list v, variable_list& grads, size_t begin, size_t end) {
  auto& steps = plan_.steps;
  auto target_uses = target_uses_;
  std::vector<c10::SmallVector<int, 2>> uses;
  for (auto& step : steps) uses.push_back(step.uses);
  const Watched::Running running(watched_, kTangent);
  auto run = runs_.rbegin();
  while (run != runs_.rend() && (*run)->bottom() < begin) ++run;
  for (size_t at = begin; at < end; ++at) {
    auto& step = steps[at];
    running.at(at);
    if (!step.rule || !step.runs_tangent) continue;
    Values t(step.place.inputs.size());
    for (size_t i = 0; i < t.size(); ++i) {
      const auto& source = step.sources[i];
      if (source.step >= 0 && !steps[source.step].t.empty()) {  // empty where no adjoint came: nothing depends on it
        auto& held = steps[source.step].t[source.output];
        t[i] = --uses[source.step][source.output] ? held : std::move(held);
      }
      if (source.target >= 0) {
        auto& held = v[source.target];
        accumulate(t[i], --target_uses[source.target] ? held : std::move(held));
      }
    }
    if (run != runs_.rend() && (*run)->bottom() == at) {
      auto& top = steps[(*run)->top()];
      top.t = Values(1);
      {
        Plain plain;
        top.t[0] = (*run)->tangent(t[(*run)->input()], steps, step.rule->keep);
      }
      for (; at < (*run)->top(); ++at) end_tangent(steps[at], grads);
      end_tangent(top, grads);
      ++run;
      continue;
    }
    step.t = Values(step.place.outputs);
    if (any_defined(t)) {
      Values out;
      if (step.alone) {
        out = step.rule->tangent(std::move(t));
        auto escaped = step.alone->take_escaped();
        for (size_t j = 0; j < escaped.size(); ++j) give_escaped(step.escapes[j], std::move(escaped[j]), grads);
      } else {
        Plain plain;
        offer_second(step, grads, /*parameters_only=*/true);
        find_makers(step);
        out = step.rule->tangent(std::move(t));
        withdraw_second(step, grads);
        if (step.runs_second) give_begun(step, grads);
      }
      for (size_t k = 0; k < step.place.outputs; ++k)
        if (step.uses[k]) step.t[k] = std::move(out[k]);
    }
    end_tangent(step, grads);
  }
}

void Tape::find_makers(Step& step) {
  for (size_t i = 0; i < step.sources.size(); ++i) {
    const auto& source = step.sources[i];
    const bool one = source.step >= 0 && source.target < 0 && source.output == 0;
    step.rule->makers[i] = one ? plan_.steps[source.step].rule.get() : nullptr;
  }
}

// A parameter of several steps has one gradient, to which each adds.
void Tape::give_begun(Step& step, variable_list& grads) {
  const auto shared = [&](const Source& source) { return source.side >= 0 && side_uses_[source.side] > 1; };
  if (std::none_of(step.sources.begin(), step.sources.end(), shared)) return;
  auto begun = step.rule->begun();
  for (size_t i = 0; i < begun.size(); ++i) give_second(step.sources[i], std::move(begun[i]), grads);
}

// Where nothing can arrive any more, what is left are gradients of parameters, which need not wait for the last sweep.
void Tape::end_tangent(Step& step, variable_list& grads) {
  if (step.rule->keep) return;
  if (!step.runs_second) step.rule.reset();
  else if (!step.alone && !step.place.bent && !step.rule->bends()) run_second(step, grads);
}

void Tape::run_second(Step& step, variable_list& grads) {
  Values out;
  if (step.held.defined()) {
    Plain plain;
    if (step.rule->ratio.defined()) step.b[0] = by_ratio(step.rule->ratio, step.held);
    if (!step.rule->keep) step.held.reset();
  }
  if (step.alone) {
    out = step.rule->second(std::move(step.b));
  } else {
    Plain plain;
    offer_second(step, grads, /*parameters_only=*/false);
    out = step.rule->second(std::move(step.b));
    withdraw_second(step, grads);
  }
  step.b.clear();
  for (size_t i = 0; i < out.size(); ++i) {
    if (!step.place.wanted(i) || !out[i].defined()) continue;
    check(step, i, out[i]);
    give_second(step.sources[i], std::move(out[i]), grads);
  }
  if (step.rule->keep) return;
  if (step.alone && release_) step.node->release_variables();
  step.rule.reset();
}

// The rules of the run then have their gradients.
void Tape::second_of_run(DenseRun& run, variable_list& grads) {
  auto& steps = plan_.steps;
  auto& b = steps[run.top()].b;
  at::Tensor out;
  {
    Plain plain;
    out = run.second(b.empty() ? at::Tensor() : std::move(b[0]), steps, /*keep=*/!finished_);
  }
  give_second(steps[run.bottom()].sources[run.input()], std::move(out), grads);
}

void Tape::last_sweep(variable_list& grads, size_t begin, size_t end) {
  auto& steps = plan_.steps;
  for (size_t at = begin; at < end; ++at) steps[at].t.clear();
  const Watched::Running running(watched_, kSecond);
  auto run = runs_.begin();
  while (run != runs_.end() && (*run)->top() >= end) ++run;
  for (size_t at = end; at-- > begin;) {
    auto& step = steps[at];
    running.at(at);
    if (run != runs_.end() && (*run)->top() == at) second_of_run(**run++, grads);
    if (step.rule && step.runs_second) run_second(step, grads);
  }
}

void Tape::give_escaped(const Escape& escape, at::Tensor value, variable_list& grads) {
  if (!value.defined()) return;
  if (escape.between.empty()) return give_second(escape.sources[0], std::move(value), grads);
  std::unordered_map<Node*, variable_list> arrived;
  for (const auto& node : escape.between) arrived[node.get()].resize(node->num_inputs());
  arrived[escape.edge.function.get()][escape.edge.input_nr] = std::move(value);
  for (const auto& node : escape.between) {
    auto& grads_in = arrived[node.get()];
    if (std::none_of(grads_in.begin(), grads_in.end(), [](const auto& g) { return g.defined(); })) continue;
    auto out = call(*node, std::move(grads_in), /*again=*/true);
    for (size_t i = 0; i < out.size(); ++i) {
      const auto& next = node->next_edge(i);
      const auto end = std::find(escape.ends.begin(), escape.ends.end(), next);
      if (end != escape.ends.end()) give_second(escape.sources[end - escape.ends.begin()], std::move(out[i]), grads);
      else if (next.is_valid()) accumulate(arrived[next.function.get()][next.input_nr], std::move(out[i]));
    }
  }
}

void Tape::give_second(const Source& source, at::Tensor value, variable_list& grads) {
  if (!value.defined()) return;
  Plain plain;
  if (source.side >= 0) {
    if (source.transposed) value = transposed(value);
    accumulate(grads[source.side], std::move(value));
    return;
  }
  if (waist_.opened() && source.step == static_cast<int>(*waist_at_)) {
    accumulate(waist_second_, std::move(value));
    return;
  }
  if (source.target >= 0 && target_edges_[source.target] >= 0) accumulate(grads[target_edges_[source.target]], value);
  if (source.step >= 0 && plan_.steps[source.step].runs_second) accumulate(plan_.steps[source.step].b[source.output], std::move(value));
}

}  // namespace gpfast

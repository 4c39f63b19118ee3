#include "dense_run.h"

#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/function.h>

#include <algorithm>
#include <utility>

namespace gpfast {
namespace {

constexpr size_t kLongest = 32;  // layers

// The only live input; none where there are several.
std::optional<size_t> live_input(const Step& step) {
  std::optional<size_t> only;
  for (size_t i = 0; i < step.place.inputs.size(); ++i) {
    if (!step.place.live(i)) continue;
    if (only) return std::nullopt;
    only = i;
  }
  return only;
}

bool fits(const at::Tensor& matrix, const at::Tensor& a) {
  return matrix.dim() == 2 && matrix.scalar_type() == a.scalar_type() && matrix.is_cpu() && matrix.layout() == at::kStrided &&
         matrix.numel() > 0 && !matrix.is_conj() && !matrix.is_neg() && !matrix._is_zerotensor();
}

// For gradients to which second adjoints come.
bool waits(const DenseLayer& layer) { return layer.sums || layer.input.defined(); }

// What was made, undefined where that has no elements.
at::Tensor there(at::Tensor& made) { return made.defined() && made.numel() ? std::move(made) : at::Tensor(); }

bool rows_follow(const at::Tensor& matrix) { return matrix.size(1) == 1 || matrix.stride(1) == 1; }

}  // namespace

std::unique_ptr<DenseRun> DenseRun::from(const Plan& plan, size_t top, size_t made) {
  const auto& steps = plan.steps;
  const auto& a = steps[top].a[0];
  if (steps[top].a.size() != 1 || !a.defined() || !dense_is_fast() || launched(a) || !fits(a, a)) return nullptr;
  if (a.scalar_type() != at::kFloat && a.scalar_type() != at::kDouble) return nullptr;
  const int64_t rows = a.size(0);
  if (rows < kFewestDenseRows || rows > kMostDenseRows) return nullptr;
  auto run = std::make_unique<DenseRun>();
  run->top_ = top;
  run->through_ = steps[top].place.tangent;
  run->proportional_ = steps[top].place.proportional;
  // They may send second adjoints to values of a run.
  const bool custom = plan.lowest_custom <= made;
  DenseLayer next;  // what lies above the product that comes next
  for (size_t at = top;; --at) {
    const auto& step = steps[at];
    if (!step.rule || !step.runs_tangent || step.awaits_second || step.place.outputs != 1) break;
    if (step.place.proportional != run->proportional_ || (step.place.bent && (custom || run->proportional_))) break;
    if (at != top && (step.reader.step != kNobody || step.a[0].defined())) break;
    const auto of = step.rule->of_rows();
    const auto input = live_input(step);
    if (!input) break;
    const auto of_rows = [&](const at::Tensor& values) { return fits(values, a) && values.size(0) == rows && rows_follow(values); };
    const auto pass = [&](at::Tensor& into, const at::Tensor& values) {
      if (into.defined() || next.saved.defined() || !of_rows(values)) return false;
      into = values;
      return true;
    };
    if (of.weight.defined()) {
      if (!fits(of.weight, a) || rows * of.weight.numel() > kMostDense) break;
      if (of.wanted && (step.place.bent || run->proportional_) && !(of.input.defined() && of_rows(of.input))) break;
      next.weight = of.weight;
      next.wanted = of.wanted;
      next.input = of.input;
      next.sums = of.sums;
      run->layers_.push_back(std::exchange(next, {}));
      run->products_.push_back(at);
      run->bottom_ = at;
      run->input_ = *input;
      run->back_ = step.place.bent && step.place.wanted(*input);
    } else if (of.saved.defined()) {
      if (next.decider.defined() || !pass(next.saved, of.saved)) break;
      next.curve = of.curve;
    } else if (of.decider.defined()) {
      if (!pass(next.decider, of.decider)) break;
      next.gate = of.gate;
    } else if (!of.factor.defined() || !pass(next.factor, of.factor)) {
      break;
    }
    const auto& source = step.sources[*input];
    if (at == made || source.step != static_cast<int>(at) - 1 || source.target >= 0 || source.output != 0) break;
    if (run->layers_.size() == kLongest) break;
  }
  if (run->layers_.size() < 2) return nullptr;
  std::reverse(run->layers_.begin(), run->layers_.end());
  std::reverse(run->products_.begin(), run->products_.end());
  return run;
}

at::Tensor DenseRun::adjoint(const at::Tensor& a) {
  auto [input, held] = dense_adjoint(a.contiguous(), layers_);
  held_ = std::move(held);
  for (auto& layer : layers_) bends_.push_back(std::move(layer.bend));
  return std::move(input);
}

bool DenseRun::meets_second() const {
  return !proportional_ && (back_ || std::any_of(layers_.begin(), layers_.end(), waits));
}

// Of Rule::ratio, a number a row.
at::Tensor DenseRun::ratio(const std::vector<Step>& steps, int64_t rows) const {
  const auto& ratio = steps[products_.front()].rule->ratio;
  return ratio.defined() ? over_rows(ratio, rows).contiguous() : ratio;
}

at::Tensor DenseRun::tangent(const at::Tensor& t, std::vector<Step>& steps, bool keep) {
  at::Tensor result;
  gradients_.assign(layers_.size(), {});
  for (size_t i = 0; i < layers_.size(); ++i) layers_[i].bend = t.defined() ? bends_[i] : at::Tensor();
  if (t.defined()) {
    for (auto& layer : layers_)
      if (keep && layer.bend.defined()) layer.bend = layer.bend.clone();
    auto [out, gradients, sums] =
        dense_tangent(t.contiguous(), held_, layers_, through_ || layers_.back().bend.defined(), ratio(steps, t.size(0)));
    for (size_t i = 0; i < layers_.size(); ++i) {
      const bool later = meets_second() && waits(layers_[i]);
      if (later) gradients_[i] = there(gradients[i]);
      else if (layers_[i].wanted || layers_[i].sums) steps[products_[i]].rule->made(there(gradients[i]), there(sums[i]));
    }
    if (through_) result = std::move(out);
  }
  if (!keep) {
    held_.reset();
    bends_.clear();
    if (!meets_second()) layers_.clear();
  }
  return result;
}

at::Tensor DenseRun::second(const at::Tensor& b, std::vector<Step>& steps, bool keep) {
  if (!meets_second()) return {};
  at::Tensor input;
  std::vector<at::Tensor> sums(layers_.size());
  const auto bends = [](const DenseLayer& layer) { return layer.bend.defined(); };
  const bool any = b.defined() || std::any_of(layers_.begin(), layers_.end(), bends);
  if (any) {
    for (size_t i = 0; i < layers_.size(); ++i)
      if (layers_[i].input.defined() && !gradients_[i].defined()) gradients_[i] = at::zeros_like(layers_[i].weight);
    std::tie(input, sums) = dense_second(b.defined() ? b.contiguous() : b, layers_, gradients_, back_);
  }
  for (size_t i = 0; i < layers_.size(); ++i)
    if (waits(layers_[i])) steps[products_[i]].rule->made(std::move(gradients_[i]), there(sums[i]));
  for (auto& layer : layers_) layer.bend.reset();
  if (!keep) layers_.clear();
  return there(input);
}

}  // namespace gpfast

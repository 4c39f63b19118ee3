#include "dense_run.h"

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

bool rows_follow(const at::Tensor& matrix) { return matrix.size(1) == 1 || matrix.stride(1) == 1; }

}  // namespace

std::unique_ptr<DenseRun> DenseRun::from(const std::vector<Step>& steps, size_t top, size_t made) {
  const auto& a = steps[top].a[0];
  if (steps[top].a.size() != 1 || !a.defined() || !dense_is_fast() || launched(a) || !fits(a, a)) return nullptr;
  if (a.scalar_type() != at::kFloat && a.scalar_type() != at::kDouble) return nullptr;
  const int64_t rows = a.size(0);
  if (rows < kFewestDenseRows || rows > kMostDenseRows) return nullptr;
  auto run = std::make_unique<DenseRun>();
  run->top_ = top;
  run->through_ = steps[top].place.tangent;
  DenseLayer next;  // what lies above the product that comes next
  for (size_t at = top;; --at) {
    const auto& step = steps[at];
    if (!step.rule || !step.runs_tangent || step.awaits_second || step.place.outputs != 1) break;
    if (at != top && (step.reader != kNobody || step.a[0].defined())) break;
    const auto of = step.rule->of_rows();
    const auto input = live_input(step);
    if (!input) break;
    const auto pass = [&](at::Tensor& into, const at::Tensor& values) {
      if (into.defined() || !fits(values, a) || values.size(0) != rows || !rows_follow(values)) return false;
      into = values;
      return true;
    };
    if (of.weight.defined()) {
      if (!fits(of.weight, a) || rows * of.weight.numel() > kMostDense) break;
      next.weight = of.weight;
      next.wanted = of.wanted;
      run->layers_.push_back(std::exchange(next, {}));
      run->products_.push_back(at);
      run->bottom_ = at;
      run->input_ = *input;
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
  return std::move(input);
}

at::Tensor DenseRun::tangent(const at::Tensor& t, std::vector<Step>& steps, bool keep) {
  at::Tensor result;
  if (t.defined()) {
    auto [out, gradients] = dense_tangent(t.contiguous(), held_, layers_, through_);
    for (size_t i = 0; i < layers_.size(); ++i)
      if (layers_[i].wanted) steps[products_[i]].rule->made(std::move(gradients[i]));
    if (through_) result = std::move(out);
  }
  if (!keep) {
    layers_.clear();
    held_.reset();
  }
  return result;
}

}  // namespace gpfast

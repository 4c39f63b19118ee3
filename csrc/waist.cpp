#include "waist.h"

#include <ATen/ops/mul.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/accumulate.h>
#include <torch/csrc/autograd/function.h>

#include "saved.h"

namespace gpfast {
namespace {

// Nothing above the step reads anything below it, or a point.
bool passed_by_all(const Plan& plan, size_t at) {
  for (const auto& root : plan.roots)
    if (root.target >= 0 || root.step < static_cast<int>(at)) return false;
  for (size_t above = at + 1; above < plan.steps.size(); ++above) {
    if (plan.steps[above].alone) return false;
    for (const auto& source : plan.steps[above].sources) {
      const bool below = source.step >= 0 && source.step < static_cast<int>(at);
      if (below || source.target >= 0 || (source.step == static_cast<int>(at) && source.output != 0)) return false;
    }
  }
  return true;
}

}  // namespace

bool Waist::at(const Plan& plan, size_t at) {
  const auto& output = plan.steps[at].node->input_metadata(0);
  if (plan.half || output.was_default_constructed()) return false;
  const int64_t samples = c10::multiply_integers(sizes_of(output));
  if (samples == 0) return false;
  for (const auto& target : plan.targets) {
    const auto point = sizes_of(target.function->input_metadata(target.input_nr));
    if (point.empty() || point[0] != samples) return false;
  }
  for (size_t below = 0; below <= at; ++below)
    if (!passes_ratio(*plan.steps[below].node, plan.steps[below].place, samples)) return false;
  return passed_by_all(plan, at);
}

at::Tensor Waist::open(at::Tensor adjoint) {
  slope_ = std::move(adjoint);
  return at::ones_like(slope_);
}

void Waist::scale(variable_list& gradients) {
  units_ = gradients;
  for (auto& gradient : gradients)
    if (gradient.defined()) gradient = by_ratio(slope_, gradient);
}

at::Tensor Waist::tangent(const variable_list& v) const {
  at::Tensor sum;
  for (size_t i = 0; i < units_.size(); ++i)
    if (units_[i].defined() && v[i].defined()) accumulate(sum, at::mul(units_[i], v[i]).reshape({slope_.numel(), -1}).sum(1));
  return sum.defined() ? cast(sum.view(slope_.sizes()), slope_.scalar_type()) : sum;
}

void Waist::seed(variable_list& v) const {
  for (size_t i = 0; i < units_.size(); ++i)
    if (units_[i].defined()) v[i] = v[i].defined() ? by_ratio(slope_, v[i]) : at::zeros_like(units_[i]);
}

at::Tensor Waist::second(const at::Tensor& ratio, size_t point) const {
  return units_[point].defined() ? by_ratio(ratio, units_[point]) : at::Tensor();
}

}  // namespace gpfast

#include "waist.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/div.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/accumulate.h>
#include <torch/csrc/autograd/function.h>

#include <algorithm>
#include <cmath>

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

// What adjoints start with: they then round as they would without a waist, each sample's its own way.
constexpr double kLeast = 1e-12, kMost = 1e12;

// Read where that waits for nothing.
bool known_to_be_usual(const at::Tensor& slope) {
  if (!slope.is_cpu() || slope.key_set().has(c10::DispatchKey::Python)) return false;
  const auto numbers = slope.contiguous();
  return AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, numbers.scalar_type(), "slope", [&] {
    const auto* from = numbers.const_data_ptr<scalar_t>();
    return std::all_of(from, from + numbers.numel(), [](scalar_t number) {
      const double size = std::abs(static_cast<double>(number));
      return size >= kLeast && size <= kMost;
    });
  });
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

at::Tensor Waist::open(at::Tensor slope) {
  start_ = std::move(slope);
  if (known_to_be_usual(start_)) return start_;
  const auto size = start_.abs();
  const auto usual = size.ge(kLeast).logical_and_(size.le(kMost));
  const auto start = at::where(usual, start_, at::ones_like(start_));
  factor_ = at::div(start_, start);
  return start_ = start;
}

void Waist::scale(variable_list& gradients) {
  found_ = gradients;
  for (auto& gradient : gradients)
    if (gradient.defined() && factor_.defined()) gradient = by_ratio(factor_, gradient);
}

at::Tensor Waist::tangent(const variable_list& v) const {
  at::Tensor sum;
  for (size_t i = 0; i < found_.size(); ++i)
    if (found_[i].defined() && v[i].defined()) accumulate(sum, at::mul(found_[i], v[i]).reshape({start_.numel(), -1}).sum(1));
  return sum.defined() ? cast(sum.view(start_.sizes()), start_.scalar_type()).div_(start_) : sum;
}

void Waist::seed(variable_list& v) const {
  for (size_t i = 0; i < found_.size(); ++i) {
    if (!found_[i].defined()) continue;
    if (!v[i].defined()) v[i] = at::zeros_like(found_[i]);
    else if (factor_.defined()) v[i] = by_ratio(factor_, v[i]);
  }
}

at::Tensor Waist::ratio(const at::Tensor& second) const { return at::div(second, start_); }

at::Tensor Waist::second(const at::Tensor& ratio, size_t point) const {
  return found_[point].defined() ? by_ratio(ratio, found_[point]) : at::Tensor();
}

}  // namespace gpfast

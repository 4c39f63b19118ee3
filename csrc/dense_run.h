#pragma once
// Steps that are a run of small dense layers: each of their sweeps in one call.
#include <memory>

#include "ops/dense.h"
#include "plan.h"

namespace gpfast {

class DenseRun {
 public:
  // The run that begins with step `top`, whose adjoint is there, and goes down to step `made` at most; null where none does. All of
  // its rules are made.
  static std::unique_ptr<DenseRun> from(const Plan& plan, size_t top, size_t made);

  size_t top() const { return top_; }
  size_t bottom() const { return bottom_; }
  bool inside(size_t step) const { return bottom_ <= step && step < top_; }
  // The input of the lowest step that depends on the points.
  size_t input() const { return input_; }

  // From the adjoint of the highest step's output to that of the lowest one's input.
  at::Tensor adjoint(const at::Tensor& a);
  // From the tangent of the lowest step's input to that of the highest one's output, undefined unless place.tangent there; the rules
  // are given the gradients to which no second adjoint comes.
  at::Tensor tangent(const at::Tensor& t, std::vector<Step>& steps, bool keep);
  // From the second adjoint of the highest step's output to that of the lowest one's input, undefined unless place.wanted there;
  // the rules are given the other gradients.
  at::Tensor second(const at::Tensor& b, std::vector<Step>& steps, bool keep);

 private:
  bool meets_second() const;
  at::Tensor ratio(const std::vector<Step>& steps, int64_t rows) const;

  size_t top_ = 0, bottom_ = 0, input_ = 0;
  DenseLayers layers_;             // from the points up
  std::vector<size_t> products_;  // the step of each
  bool through_ = false;  // upwards
  bool back_ = false;     // second adjoints, downwards
  bool proportional_ = false;  // they are the adjoints times Rule::ratio
  at::Tensor held_;
  std::vector<at::Tensor> bends_;      // before the tangents
  std::vector<at::Tensor> gradients_;  // that wait for second adjoints
};

}  // namespace gpfast

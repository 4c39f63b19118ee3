#pragma once
// Scores that bend alone: where the points reach all that bends through one number a sample, as where a sigmoid ends a critic of
// linear maps and ReLUs, nothing below needs second adjoints of its own.
//
// With u the numbers and S(u) the sum of the scores, the gradient of sample i is a_i = S_i du_i/dx_i, with S_i = dS/du_i. The tangents v
// of the gradients give tangents of u, s_i = <a_i, v_i> / S_i, with which the sweeps above give second adjoints b of u; those below are
// b_i / S_i times the adjoints there (Rule::ratio). Where S_i is too small or large to divide by, adjoints start with 1 in its place,
// and it is a factor of the gradient and of the tangents.
#include "plan.h"

namespace gpfast {

class Waist {
 public:
  // Whether it is step `at`, where second adjoints arrive; all above have rules, those from it down have none yet.
  static bool at(const Plan& plan, size_t at);

  // The adjoint that arrived there -> that which goes on; and what it came to at the points, which becomes the gradient.
  at::Tensor open(at::Tensor slope);
  void scale(variable_list& gradients);
  bool opened() const { return start_.defined(); }

  // The tangent of u.
  at::Tensor tangent(const variable_list& v) const;
  // Of the points, from which the tangents go up. Where no tangent is, zero.
  void seed(variable_list& v) const;
  // From the second adjoint that arrived there.
  at::Tensor ratio(const at::Tensor& second) const;
  // What second adjoints are at the points.
  at::Tensor second(const at::Tensor& ratio, size_t point) const;
  void release() { found_.clear(); }

 private:
  at::Tensor start_;     // as u
  at::Tensor factor_;    // S / start, undefined where that is known to be 1
  variable_list found_;  // start du/dx, one a point
};

}  // namespace gpfast

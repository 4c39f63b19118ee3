#pragma once
// Scores that bend alone: where the points reach all that bends through one number a sample, as where a sigmoid ends a critic of
// linear maps and ReLUs, nothing below needs second adjoints of its own.
//
// With u the numbers and S(u) the sum of the scores, the gradient of sample i is its du_i/dx_i times S_i = dS/du_i. What is below the
// waist is swept from adjoints of one: du/dx. The tangents v of the gradients give tangents of u, s_i = <du_i/dx_i, v_i>, with which
// the sweeps above give second adjoints r of u; below they are r_i times the adjoints. So the tangents that go up from the points are
// S_i v_i, and rules are given r (Rule::ratio).
#include "plan.h"

namespace gpfast {

class Waist {
 public:
  // Whether it is step `at`, where second adjoints arrive; all above have rules, those from it down have none yet.
  static bool at(const Plan& plan, size_t at);

  // The adjoint that arrived there, for which ones go on; and what they came to at the points, which becomes the gradient.
  at::Tensor open(at::Tensor adjoint);
  void scale(variable_list& gradients);
  bool opened() const { return slope_.defined(); }

  // The tangent of u.
  at::Tensor tangent(const variable_list& v) const;
  // Of the points, from which the tangents go up. Where no tangent is, zero.
  void seed(variable_list& v) const;
  // What second adjoints are at the points.
  at::Tensor second(const at::Tensor& ratio, size_t point) const;
  void release() { units_.clear(); }

 private:
  at::Tensor slope_;     // S', as u
  variable_list units_;  // du/dx, one a point
};

}  // namespace gpfast

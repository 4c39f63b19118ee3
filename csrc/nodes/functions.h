#pragma once
// Rules for elementwise functions of several tensors that bend, with broadcasting, and for functions of one that are rare: formulas
// of their first and second derivatives.
// Any of the inputs may be live. Null where tensors that are read differ in dtype from the result (exponents may be integers).
#include "rule.h"

namespace gpfast {

// addend + value * u * w, and addend + value * u / w.
std::unique_ptr<Rule> addcmul_rule(const Place& place, at::Tensor u, at::Tensor w, double value);
std::unique_ptr<Rule> addcdiv_rule(const Place& place, at::Tensor u, at::Tensor w, double value);
// start + weight * (end - start)
std::unique_ptr<Rule> lerp_rule(const Place& place, at::Tensor start, at::Tensor end, at::Tensor weight);
// y = u^w
std::unique_ptr<Rule> powers_rule(const Place& place, at::Tensor u, at::Tensor w, at::Tensor y);
// The angle of the point (w, u), and y, its distance from zero.
std::unique_ptr<Rule> angle_rule(const Place& place, at::Tensor u, at::Tensor w);
std::unique_ptr<Rule> hypotenuse_rule(const Place& place, at::Tensor u, at::Tensor w, at::Tensor y);
// log(exp(rate * u) + exp(rate * w)) / rate
std::unique_ptr<Rule> logaddexp_rule(const Place& place, at::Tensor u, at::Tensor w, double rate);

// A function of h whose derivative is factor * (one + square * h^2)^power: inverses of circular and hyperbolic functions.
struct Inverse {
  double one, square, power, factor = 1;
};
std::unique_ptr<Rule> inverse_rule(const Place& place, at::Tensor h, const Inverse& of);

// With d = u - w: scale d^2 / 2 where |d| is below width, and beyond it the line that goes on from there. reduction: one of
// at::Reduction.
struct ErrorOf {
  at::Tensor u, w;
  double width, scale;
};
std::unique_ptr<Rule> error_rule(const Place& place, ErrorOf error, int64_t reduction);

}  // namespace gpfast

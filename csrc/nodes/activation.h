#pragma once
// The rule for smooth activations.
#include <ATen/core/Scalar.h>

#include "ops/activation.h"
#include "rule.h"

namespace gpfast {

// p = alpha scale, q = input_scale, r = scale: scale alpha (exp(input_scale h) - 1) for h <= 0, else scale h.
inline Curve elu(Activation kind, const at::Scalar& alpha, const at::Scalar& scale, const at::Scalar& input_scale) {
  return {kind, alpha.toDouble() * scale.toDouble(), input_scale.toDouble(), scale.toDouble()};
}
// saved: the activation's input or its result, as the curve's formulas want.
std::unique_ptr<Rule> activation_rule(const Place& place, at::Tensor saved, const Curve& curve);
// h^exponent.
std::unique_ptr<Rule> power_rule(const Place& place, at::Tensor h, const at::Scalar& exponent);

}  // namespace gpfast

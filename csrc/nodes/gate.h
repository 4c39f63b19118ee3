#pragma once
// Rules for piecewise-linear activations.
#include <ATen/core/Scalar.h>

#include <optional>

#include "ops/gate.h"
#include "rule.h"

namespace gpfast {

// h, the activation's input or its result, decides on which of two slopes an element lies.
std::unique_ptr<Rule> gate_rule(const Place& place, at::Tensor h, const Gate& gate);
// 1 within the limits, with or without their ends, else 0; or where |h| <= limit 0, else 1. In PyTorch the limits are of h's dtype.
using Limit = std::optional<at::Scalar>;
std::unique_ptr<Rule> clamp_rule(const Place& place, at::Tensor h, const Limit& lower, const Limit& upper, bool ends);
std::unique_ptr<Rule> shrink_rule(const Place& place, at::Tensor h, const at::Scalar& limit);
// h where h > 0, else weight * h; weight: h's dimensions, of which at most one is not 1.
std::unique_ptr<Rule> prelu_rule(const Place& place, at::Tensor h, at::Tensor weight);
std::unique_ptr<Rule> abs_rule(const Place& place, const at::Tensor& h);
// Multiplied by slopes that were drawn at random.
std::unique_ptr<Rule> noise_rule(const Place& place, const at::Tensor& noise);

}  // namespace gpfast

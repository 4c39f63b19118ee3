#pragma once
// The rule for gated linear units.
#include "rule.h"

namespace gpfast {

// The first half of h along dim times the sigmoid of the second.
std::unique_ptr<Rule> glu_rule(const Place& place, at::Tensor h, int64_t dim);

}  // namespace gpfast

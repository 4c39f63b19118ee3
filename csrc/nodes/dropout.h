#pragma once
// The rule for dropout with the mask that it drew.
#include "rule.h"

namespace gpfast {

std::unique_ptr<Rule> dropout_rule(const Place& place, const at::Tensor& mask, double scale);

}  // namespace gpfast

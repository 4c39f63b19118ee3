#pragma once
// Rules for softmax and its logarithms.
#include "rule.h"

namespace gpfast {

std::unique_ptr<Rule> softmax_rule(const Place& place, at::Tensor result, int64_t dim);
std::unique_ptr<Rule> log_softmax_rule(const Place& place, at::Tensor result, int64_t dim);
std::unique_ptr<Rule> logsumexp_rule(const Place& place, at::Tensor h, at::Tensor result, at::IntArrayRef dims, bool keepdim);

}  // namespace gpfast

#pragma once
// Rules for elementwise arithmetic that is linear, or linear in pieces, with broadcasting, scalars and type promotion.
#include <vector>

#include "rule.h"

namespace gpfast {

// y = sum of factors[i] * h_i, one factor an input, 0 where the input is lost: add, sub, neg, lerp, clone, casts, copy_.
std::unique_ptr<Rule> combination(Place place, const char* name, std::vector<double> factors);
// y = where(mask, h_yes, h_no): the places of these among the inputs, or a place past them.
std::unique_ptr<Rule> selection(Place place, const char* name, at::Tensor mask, size_t yes, size_t no);
// y = max(u, w) or min(u, w): equal entries have half of the gradient each.
std::unique_ptr<Rule> larger(Place place, const at::Tensor& u, const at::Tensor& w);
std::unique_ptr<Rule> smaller(Place place, const at::Tensor& u, const at::Tensor& w);

}  // namespace gpfast

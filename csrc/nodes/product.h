#pragma once
// Rules for products and quotients of two tensors, with broadcasting and type promotion.
#include "rule.h"

namespace gpfast {

// y = u * w. Each may be undefined where nothing is asked of the other.
std::unique_ptr<Rule> product(Place place, at::Tensor u, at::Tensor w);
// y = x * x, both inputs one tensor: all is handed to the first.
std::unique_ptr<Rule> square(Place place, at::Tensor x);
// y = u / w; u may be undefined where nothing is asked of w.
std::unique_ptr<Rule> quotient(Place place, at::Tensor u, at::Tensor w);

}  // namespace gpfast

#pragma once
// Rules for sums, means, variances, norms, products and maxima over dimensions. No dims: over all.
#include <vector>

#include "rule.h"

namespace gpfast {

struct Reduced {
  std::vector<int64_t> dims;
  bool keepdim = false;
};

std::unique_ptr<Rule> sum(Place place, Reduced over);
std::unique_ptr<Rule> mean(Place place, Reduced over);
// Their second output, if there is one, is the mean. Null where correction leaves nothing to divide by.
std::unique_ptr<Rule> variance(Place place, at::Tensor x, Reduced over, double correction);
std::unique_ptr<Rule> deviation(Place place, at::Tensor x, const at::Tensor& result, Reduced over, double correction);
// The Euclidean norm.
std::unique_ptr<Rule> norm(Place place, at::Tensor x, const at::Tensor& result, Reduced over);
// The norms of order 1, and of order infinity or minus infinity.
std::unique_ptr<Rule> sum_of_sizes(Place place, const at::Tensor& x, Reduced over);
std::unique_ptr<Rule> extreme_size(Place place, const at::Tensor& x, const at::Tensor& result, Reduced over);
// Null where a factor is zero, which is looked for, or the dtype is changed.
std::unique_ptr<Rule> product_over(Place place, at::Tensor x, const at::Tensor& result, Reduced over);
// max, min, amax, amin by value: equal entries share the gradient.
std::unique_ptr<Rule> extreme(Place place, const at::Tensor& x, const at::Tensor& result, Reduced over);
// max and min along one dimension, by index.
std::unique_ptr<Rule> picked(Place place, at::Tensor indices, int64_t dim, bool keepdim);

}  // namespace gpfast

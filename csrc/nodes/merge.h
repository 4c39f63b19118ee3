#pragma once
// Rules for operations that put tensors side by side, and their opposites: cat, stack, split, unbind.
#include <vector>

#include "rule.h"

namespace gpfast {

// lengths: of each input along dim, constants too; 0 for one of the empty tensors of one dimension that cat overlooks.
std::unique_ptr<Rule> cat(const Place& place, int64_t dim, std::vector<int64_t> lengths,
                          const std::vector<at::ScalarType>& dtypes);
std::unique_ptr<Rule> stack(const Place& place, int64_t dim, const std::vector<at::ScalarType>& dtypes);
// lengths: of each output along dim.
std::unique_ptr<Rule> split(const Place& place, int64_t dim, std::vector<int64_t> lengths);
std::unique_ptr<Rule> unbind(const Place& place, int64_t dim);

}  // namespace gpfast

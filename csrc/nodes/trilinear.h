#pragma once
// Rules for sums of products of three tensors, F.bilinear, and for products of vectors in space.
#include <array>
#include <vector>

#include "rule.h"

namespace gpfast {

// The product of three factors, to which dimensions of size 1 are added at expand[i], summed over the dimensions `summed`.
struct Trilinear {
  std::array<at::Tensor, 3> factors;
  std::array<std::vector<int64_t>, 3> expand;
  std::vector<int64_t> summed;
};
// Any of the factors may be live.
std::unique_ptr<Rule> trilinear(const Place& place, Trilinear product);
// u x w along dim, with broadcasting. Either may be live.
std::unique_ptr<Rule> cross(const Place& place, at::Tensor u, at::Tensor w, int64_t dim);

}  // namespace gpfast

#pragma once
// What rules that work element by element share.
#include "ops/relayout.h"
#include "rule.h"

namespace gpfast {

// Our kernels are for these.
inline bool real(const at::Tensor& tensor) {
  const auto dtype = tensor.scalar_type();
  const bool known = dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf;
  return known && tensor.layout() == at::kStrided;
}

inline Order order_of(const at::Tensor& tensor) { return order_by_strides(tensor, tensor.dim()); }

// Without gaps or overlaps in memory: as it is, or in the order of `like`.
inline at::Tensor dense(at::Tensor tensor, const at::Tensor& like) {
  return tensor.is_non_overlapping_and_dense() ? tensor : relaid(tensor, order_of(like));
}

}  // namespace gpfast

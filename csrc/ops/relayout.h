#pragma once
#include <ATen/core/Tensor.h>

namespace gpfast {

// Whether the dimensions lie densely in memory in this order, outermost first.
bool is_dense_in(const at::Tensor& tensor, at::IntArrayRef order);
// The tensor in that order: itself, or a copy. Between NCHW and channels_last the copy is a blocked transposition.
at::Tensor relaid(const at::Tensor& tensor, at::IntArrayRef order);

}  // namespace gpfast

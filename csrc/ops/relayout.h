#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

namespace gpfast {

// Dimensions as they lie in memory, outermost first.
using Order = c10::SmallVector<int64_t, 6>;

Order contiguous_order(int64_t dims);
Order channels_last_order(int64_t dims);
// Of the last `sorted` dimensions by their strides, behind the others.
Order order_by_strides(const at::Tensor& tensor, int64_t sorted);

bool is_dense_in(const at::Tensor& tensor, at::IntArrayRef order);
// The tensor in that order: itself, or a copy. Between NCHW and channels_last the copy is a blocked transposition, several times
// as fast as ATen's.
at::Tensor relaid(const at::Tensor& tensor, at::IntArrayRef order);
// A view where there is one.
at::Tensor reshaped(const at::Tensor& tensor, at::IntArrayRef sizes);

}  // namespace gpfast

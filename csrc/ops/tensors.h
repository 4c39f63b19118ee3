#pragma once
#include <ATen/core/Tensor.h>

namespace gpfast {

// Nobody else holds the tensor or its memory, and every element has its own place: it may be overwritten.
bool ours(const at::Tensor& tensor);
// To the dtype; of a complex value to a real one, its real part.
at::Tensor cast(at::Tensor tensor, at::ScalarType dtype);
// Of (n, channels, ...).
at::Tensor sum_by_channel(const at::Tensor& z);

// A number for each of so many rows, from one a sample, which have equal shares of them.
at::Tensor over_rows(const at::Tensor& numbers, int64_t rows);
// t + ratio h, sample by sample: a number for each, which have equal shares of dimension 0. In place where t is ours.
at::Tensor with_ratio(at::Tensor t, const at::Tensor& ratio, const at::Tensor& h);
// ratio z
at::Tensor by_ratio(const at::Tensor& ratio, const at::Tensor& z);

}  // namespace gpfast

#pragma once
#include <ATen/core/Tensor.h>

#include <tuple>

namespace gpfast {

// y, t and a: alike and dense. With <u, v> summed along dim: y (t - <y, t>), and (a - <y, a>)(t - <y, t>), in a where told.
std::tuple<at::Tensor, at::Tensor> softmax_tangent(const at::Tensor& t, const at::Tensor& a, const at::Tensor& y, int64_t dim,
                                                   bool in_a);

}  // namespace gpfast

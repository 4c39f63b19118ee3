#pragma once
#include <ATen/core/Tensor.h>

namespace gpfast {

// y, t and a: alike and dense. With <u, v> summed along dim: y (t - <y, t>), and a becomes (a - <y, a>)(t - <y, t>).
at::Tensor softmax_tangent(const at::Tensor& t, const at::Tensor& a, const at::Tensor& y, int64_t dim, bool in_place);

}  // namespace gpfast

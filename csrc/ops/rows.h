#pragma once
#include <ATen/core/Tensor.h>

namespace gpfast {

struct Rows {
  int64_t rows, cols;
};

// The (N, K) block that a tensor with dense rows is: its first `keep` dimensions lie in order, outermost, and the remaining ones
// fill each row in any order.
inline Rows dense_rows(const at::Tensor& tensor, int64_t keep, const char* name) {
  TORCH_CHECK(0 <= keep && keep <= tensor.dim(), name, ": keep is ", keep, " for a tensor of ", tensor.dim(), " dimensions");
  int64_t rows = 1;
  for (int64_t d = 0; d < keep; ++d) rows *= tensor.size(d);
  if (tensor.numel() == 0) return {rows, 0};
  int64_t inner = tensor.numel();
  for (int64_t d = 0; d < keep; ++d) {
    inner /= tensor.size(d);
    TORCH_CHECK(tensor.size(d) == 1 || tensor.stride(d) == inner, name, " has no dense rows: strides ", tensor.strides(),
                " of shape ", tensor.sizes(), " for keep ", keep);
  }
  TORCH_CHECK(tensor.is_non_overlapping_and_dense(), name, " has no dense rows: strides ", tensor.strides(), " of shape ",
              tensor.sizes());
  return {rows, tensor.numel() / rows};
}

}  // namespace gpfast

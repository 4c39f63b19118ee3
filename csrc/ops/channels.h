#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

namespace gpfast {

// Of (n, channels, ...).
inline at::Tensor sum_by_channel(const at::Tensor& z) {
  c10::SmallVector<int64_t, 5> dimensions{0};
  for (int64_t d = 2; d < z.dim(); ++d) dimensions.push_back(d);
  return z.sum(dimensions);
}

}  // namespace gpfast

#pragma once
// Sums over tiles that cover the plane, and their transpose: pooling by the mean, nearest up-sampling, each other's adjoints.
#include <ATen/core/Tensor.h>

namespace gpfast {

// (..., n * tile) -> (..., n): each tile's sum / divisor, over the last two or three dimensions. `channels_last` is the layout
// that is read and made, where x has batch and channels; NCHW otherwise.
at::Tensor sum_tiles(const at::Tensor& x, at::IntArrayRef tile, int64_t divisor, bool channels_last);
// (..., n) -> (..., n * tile): x / divisor everywhere in its tile.
at::Tensor repeat_tiles(const at::Tensor& x, at::IntArrayRef tile, int64_t divisor, bool channels_last);

}  // namespace gpfast

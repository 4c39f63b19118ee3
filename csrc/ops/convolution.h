#pragma once
#include <ATen/core/Tensor.h>

namespace gpfast {

// found: (n, outputs, k0', k1'), the gradient of a weight's inputs first, ..., first + n - 1 as a convolution leaves it. Its
// transpose (outputs, n, k0, k1), cut to the kernel's size, is written into its place in `into` (outputs, inputs, k0, k1); adds:
// added to what is there.
void turn_kernel(const at::Tensor& into, const at::Tensor& found, int64_t first, bool adds);

// of: (n, outputs, ...), by: (n, inputs, ...), of the same pixels. (outputs, inputs): the sum over all of them, a matrix product
// for some of them at a time, whose results are then added up pairwise. Fastest where both are channels_last.
at::Tensor sum_over_pixels(const at::Tensor& of, const at::Tensor& by);

}  // namespace gpfast

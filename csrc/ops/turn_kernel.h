#pragma once
#include <ATen/core/Tensor.h>

namespace gpfast {

// found: (n, outputs, k0', k1'), the gradient of a weight's inputs first, ..., first + n - 1 as a convolution leaves it. Its
// transpose (outputs, n, k0, k1), cut to the kernel's size, is written into its place in `into` (outputs, inputs, k0, k1); adds:
// added to what is there.
void turn_kernel(const at::Tensor& into, const at::Tensor& found, int64_t first, bool adds);

}  // namespace gpfast

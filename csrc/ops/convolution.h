#pragma once
#include <ATen/core/Tensor.h>

namespace gpfast {

// found: (inputs, outputs, k0', k1'), a weight's gradient as a convolution leaves it. Its transpose (outputs, inputs, k0, k1), cut to
// the kernel's size, is written into a new tensor; onto: added into that one instead, in place.
at::Tensor kernel_gradient(const at::Tensor& found, at::IntArrayRef kernel);
void add_kernel_gradient(at::Tensor& onto, const at::Tensor& found);

}  // namespace gpfast

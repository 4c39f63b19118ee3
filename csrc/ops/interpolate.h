#pragma once
#include <ATen/core/Tensor.h>

namespace gpfast {

// alpha * real + (1 - alpha) * fake; real and fake: (B, ...) with the same strides, alpha: () or (B,).
at::Tensor interpolate_cpu(const at::Tensor& real, const at::Tensor& fake, const at::Tensor& alpha);

}  // namespace gpfast

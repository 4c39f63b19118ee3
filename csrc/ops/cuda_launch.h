#pragma once
// What the CUDA side of an operator needs around a launch, without linking libtorch_cuda.
#include <ATen/core/Tensor.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "device.h"
#include "ops/dtype.h"

namespace gpfast {

inline Dtype dtype_of(const at::Tensor& tensor, const char* op) {
  switch (tensor.scalar_type()) {
    case at::kHalf: return Dtype::kHalf;
    case at::kBFloat16: return Dtype::kBFloat16;
    case at::kFloat: return Dtype::kFloat;
    case at::kDouble: return Dtype::kDouble;
    default: TORCH_CHECK(false, op, ": no CUDA kernel for ", tensor.scalar_type());
  }
}

inline void* current_stream(const at::Tensor& tensor) {
  return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).getStream(tensor.device()).native_handle();
}

inline void check_launch(int error, const char* op) {
  TORCH_CHECK(error == 0, op, ": CUDA error: ", gpfast_cuda_error(error));
}

inline void check_same_device(const at::Tensor& a, const at::Tensor& b, const char* op) {
  TORCH_CHECK(a.device() == b.device(), op, ": one tensor is on ", a.device(), ", another on ", b.device());
}

}  // namespace gpfast

// The CUDA kernels of the smooth activations, as the dispatcher calls them; operands are alike, and dense.
#ifdef GPFAST_WITH_CUDA
#include <c10/core/DeviceGuard.h>

#include "ops/activation.h"
#include "ops/cuda_launch.h"

namespace gpfast {

void slope_cuda(const at::Tensor& z, const at::Tensor& saved, const Curve& by, const at::Tensor& out) {
  constexpr auto kOp = "gpfast::slope";
  check_same_device(z, saved, kOp);
  const c10::DeviceGuard guard(z.device());
  check_launch(gpfast_slope_cuda(dtype_of(z, kOp), z.const_data_ptr(), saved.const_data_ptr(), out.mutable_data_ptr(), z.numel(),
                                 &by, current_stream(z)),
               kOp);
}

void slope_and_curve_cuda(const at::Tensor& t, const at::Tensor& a, const at::Tensor& saved, const Curve& by,
                          const at::Tensor& out, const at::Tensor& bend) {
  constexpr auto kOp = "gpfast::slope_and_curve";
  check_same_device(t, a, kOp);
  check_same_device(t, saved, kOp);
  const c10::DeviceGuard guard(t.device());
  check_launch(gpfast_slope_and_curve_cuda(dtype_of(t, kOp), t.const_data_ptr(), a.const_data_ptr(), saved.const_data_ptr(),
                                           out.mutable_data_ptr(), bend.mutable_data_ptr(), t.numel(), &by, current_stream(t)),
               kOp);
}

void add_slope_cuda(const at::Tensor& into, const at::Tensor& z, const at::Tensor& saved, const Curve& by) {
  constexpr auto kOp = "gpfast::add_slope_";
  check_same_device(into, z, kOp);
  check_same_device(into, saved, kOp);
  const c10::DeviceGuard guard(into.device());
  check_launch(gpfast_add_slope_cuda(dtype_of(into, kOp), into.mutable_data_ptr(), z.const_data_ptr(), saved.const_data_ptr(),
                                     into.numel(), &by, current_stream(into)),
               kOp);
}

}  // namespace gpfast
#endif

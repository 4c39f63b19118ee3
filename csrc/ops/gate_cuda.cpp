// The CUDA kernels of gate and gated, as the dispatcher calls them.
#ifdef GPFAST_WITH_CUDA
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>

#include "ops/cuda_launch.h"
#include "ops/gate.h"
#include "ops/relayout.h"

namespace gpfast {
namespace {

// weight in the type that z is computed in, and where its slopes lie.
std::pair<at::Tensor, OffSlopes> off_slopes(const at::Tensor& weight, const at::Tensor& z) {
  if (!weight.defined()) return {};
  check_same_device(z, weight, "gpfast::gate");
  const auto slopes = weight.to(z.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).contiguous();
  return {slopes, {slopes.const_data_ptr(), slopes.numel(), run_of_slope(weight, z)}};
}

}  // namespace

at::Tensor gate_cuda(const at::Tensor& z, const at::Tensor& decider, const at::Tensor& weight, const Gate& by,
                     const at::Tensor& out) {
  TORCH_CHECK(decider.sizes() == z.sizes() && decider.scalar_type() == z.scalar_type() && z.is_non_overlapping_and_dense(),
              "gpfast::gate: z is ", z.scalar_type(), " ", z.sizes(), " with strides ", z.strides(), " and the decider ",
              decider.scalar_type(), " ", decider.sizes());
  check_same_device(z, decider, "gpfast::gate");
  const c10::DeviceGuard guard(z.device());
  const auto h = relaid(decider, order_by_strides(z, z.dim()));
  const auto [slopes, off] = off_slopes(weight, z);
  auto bits = at::empty({bytes_of_bits(z.numel())}, z.options().dtype(at::kByte));
  const int error = gpfast_gate_cuda(dtype_of(z, "gpfast::gate"), z.const_data_ptr(), h.const_data_ptr(), out.mutable_data_ptr(),
                                     bits.mutable_data_ptr(), z.numel(), &by, &off, current_stream(z));
  check_launch(error, "gpfast::gate");
  return bits;
}

void gated_cuda(const at::Tensor& z, const at::Tensor& bits, const at::Tensor& weight, const Slopes& by, const at::Tensor& out) {
  check_same_device(z, bits, "gpfast::gated");
  const c10::DeviceGuard guard(z.device());
  const auto [slopes, off] = off_slopes(weight, z);
  const int error = gpfast_gated_cuda(dtype_of(z, "gpfast::gated"), z.const_data_ptr(), bits.const_data_ptr(),
                                      out.mutable_data_ptr(), z.numel(), &by, &off, current_stream(z));
  check_launch(error, "gpfast::gated");
}

}  // namespace gpfast
#endif

// The CUDA kernels of the norms, as the dispatcher calls them; tensors of the input's size are alike, and dense.
#ifdef GPFAST_WITH_CUDA
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>

#include "ops/cuda_launch.h"
#include "ops/normalize.h"

namespace gpfast {
namespace {

using at::Tensor;

constexpr auto kAdjoint = "gpfast::normalize_adjoint", kTangent = "gpfast::normalize_tangent";

void* mutable_data_or_null(const Tensor& x) { return x.defined() ? x.mutable_data_ptr() : nullptr; }

// A call, and the tensors that it points into. Small ones are in the dtype that is computed in.
class CudaCall {
 public:
  CudaCall(const char* op, const Tensor& in, const Tensor& other, const Tensor& out, const Tensor& bent, const NormTensors& norm,
           const NormBlock& block, const GateOfBits& gate)
      : op_(op), in_(in), guard_(in.device()) {
    call.block = block;
    call.in = in.const_data_ptr();
    call.input = here(norm.input);
    call.other = here(other);
    call.out = to_write(out);
    call.bent = to_write(bent);
    call.mean = small(mean_, norm.mean, block.statistics());
    call.rstd = small(rstd_, norm.rstd, block.statistics());
    call.weight = small(weight_, norm.weight, block.channels());
    call.bits = here(gate.bits);
    call.slopes = gate.slopes;
  }

  void add(const Tensor& already) { call.already = small(already_, already, call.block.channels()); }
  // (channels,), not yet written, or undefined where it is not wanted.
  Tensor parameter(bool wanted) const { return wanted ? at::empty({call.block.channels()}, rstd_.options()) : Tensor(); }

  template <typename Launcher, typename Workspace>
  void run(const Launcher& launcher, const Workspace& workspace) {
    const auto dtype = dtype_of(in_, op_);
    int64_t elements = 0;
    check_launch(workspace(dtype, &call, &elements), op_);
    const auto memory = at::empty({elements}, rstd_.options());
    call.workspace = elements ? memory.mutable_data_ptr() : nullptr;
    check_launch(launcher(dtype, &call, current_stream(in_)), op_);
  }

  NormCall call{};

 private:
  const void* here(const Tensor& x) const {
    if (!x.defined()) return nullptr;
    check_same_device(in_, x, op_);
    return x.const_data_ptr();
  }
  void* to_write(const Tensor& x) const {
    here(x);
    return mutable_data_or_null(x);
  }
  const void* small(Tensor& held, const Tensor& x, int64_t elements) const {
    if (!x.defined()) return nullptr;
    TORCH_CHECK(x.numel() == elements, op_, ": ", x.sizes(), " statistics or weights, where the block has ", elements);
    held = x.to(in_.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).contiguous();
    return here(held);
  }

  const char* const op_;
  const Tensor& in_;
  const c10::DeviceGuard guard_;
  Tensor mean_, rstd_, weight_, already_;
};

}  // namespace

std::tuple<Tensor, Tensor> normalize_adjoint_cuda(const Tensor& out, const Tensor& z, const Tensor& add, const NormTensors& norm,
                                                  const Tensor& weight_gradient, const NormBlock& block, bool want_weight,
                                                  bool want_bias, const GateOfBits& gate) {
  CudaCall cuda(kAdjoint, z, add, out, {}, norm, block, gate);
  const auto of_weight = cuda.parameter(want_weight), of_bias = cuda.parameter(want_bias);
  cuda.add(weight_gradient);
  cuda.call.of_weight = mutable_data_or_null(of_weight);
  cuda.call.of_bias = mutable_data_or_null(of_bias);
  cuda.run(gpfast_normalize_adjoint_cuda, gpfast_normalize_adjoint_workspace_cuda);
  return {of_weight, of_bias};
}

Tensor normalize_tangent_cuda(const Tensor& out, const Tensor& bent, const Tensor& t, const Tensor& a, const NormTensors& norm,
                              const NormBlock& block, bool want_weight, const GateOfBits& gate) {
  const bool bends = bent.defined() || want_weight;  // else a is of no use
  CudaCall cuda(kTangent, t, bends ? a : Tensor(), out, bent, norm, block, gate);
  const auto of_weight = cuda.parameter(want_weight);
  cuda.call.of_weight = mutable_data_or_null(of_weight);
  cuda.run(gpfast_normalize_tangent_cuda, gpfast_normalize_tangent_workspace_cuda);
  return of_weight;
}

}  // namespace gpfast
#endif

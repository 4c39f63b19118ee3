#pragma once
// What a norm does to adjoints, tangents and second adjoints, over blocks of memory: normalize_formulas.h has the formulas.
#include <ATen/core/Tensor.h>

#include <tuple>

#include "ops/gate.h"
#include "ops/normalize_launch.h"

namespace gpfast {

// What is read of the norm itself. mean: undefined for a norm by root mean squares; weight: undefined, or of C elements.
// Statistics and weight have any floating dtype.
struct NormTensors {
  at::Tensor input, mean, rstd, weight;
};

// The input and every tensor of its size lie in memory as the block has them; the gate's bits too.

// Writes out = J^T z + add, and returns (weight_gradient + sum of z (h - m) r, sum of z), (C,) in the dtype that is computed in,
// each undefined where it is not wanted. z is taken through the gate first. out: undefined, or it may be z or add. add,
// weight_gradient: or undefined.
std::tuple<at::Tensor, at::Tensor> normalize_adjoint(const at::Tensor& out, const at::Tensor& z, const at::Tensor& add,
                                                     const NormTensors& norm, const at::Tensor& weight_gradient,
                                                     const NormBlock& block, bool want_weight, bool want_bias, const GateOfBits& gate);
// Writes out = gate(J t) and bent = d/dh <a, J t>, and returns d/dweight <a, J t> where it is wanted. out: undefined, or it may
// be t. bent: undefined, or it may be a. a, from below the gate: undefined where neither bent nor the weight's gradient is wanted.
at::Tensor normalize_tangent(const at::Tensor& out, const at::Tensor& bent, const at::Tensor& t, const at::Tensor& a,
                             const NormTensors& norm, const NormBlock& block, bool want_weight, const GateOfBits& gate);

// The CPU's kernels of the two.
std::tuple<at::Tensor, at::Tensor> normalize_adjoint_cpu(const at::Tensor& out, const at::Tensor& z, const at::Tensor& add,
                                                         const NormTensors& norm, const at::Tensor& weight_gradient,
                                                         const NormBlock& block, bool want_weight, bool want_bias, const GateOfBits& gate);
at::Tensor normalize_tangent_cpu(const at::Tensor& out, const at::Tensor& bent, const at::Tensor& t, const at::Tensor& a,
                                 const NormTensors& norm, const NormBlock& block, bool want_weight, const GateOfBits& gate);

#ifdef GPFAST_WITH_CUDA
std::tuple<at::Tensor, at::Tensor> normalize_adjoint_cuda(const at::Tensor& out, const at::Tensor& z, const at::Tensor& add,
                                                          const NormTensors& norm, const at::Tensor& weight_gradient,
                                                          const NormBlock& block, bool want_weight, bool want_bias,
                                                          const GateOfBits& gate);
at::Tensor normalize_tangent_cuda(const at::Tensor& out, const at::Tensor& bent, const at::Tensor& t, const at::Tensor& a,
                                  const NormTensors& norm, const NormBlock& block, bool want_weight, const GateOfBits& gate);
#endif

}  // namespace gpfast

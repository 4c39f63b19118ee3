#pragma once
// What a norm does to adjoints, tangents and second adjoints, over blocks of memory: normalize_loops.h has the formulas.
#include <ATen/core/Tensor.h>

#include <tuple>

#include "ops/gate.h"

namespace gpfast {

// How N samples of G groups of D channels of I elements lie in memory. There is a mean and a deviation for each sample and
// group, or for each group where the batch is normalised with it (then D is 1), and a weight for each channel. A layer norm has
// a channel for each element of a sample, and I is 1.
enum class BlockOrder : int64_t { planes, pixels, batch };  // (N, G, D, I), (N, I, G, D), (N, G, I)

struct NormBlock {
  int64_t samples = 1, groups = 1, depth = 1, length = 1;
  BlockOrder order = BlockOrder::planes;

  int64_t channels() const { return groups * depth; }
  int64_t numel() const { return samples * channels() * length; }
  int64_t statistics() const { return order == BlockOrder::batch ? groups : samples * groups; }
  bool is_rows() const { return order == BlockOrder::pixels && length == 1; }
};

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

}  // namespace gpfast

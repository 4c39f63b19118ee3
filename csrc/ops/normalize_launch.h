#pragma once
// How a norm's elements lie, without torch's headers; and the CUDA kernels' launchers, between normalize_cuda.cpp and normalize.cu.
#include <cstdint>

#include "ops/gate_launch.h"

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

// What the launchers are told. Pointers are null where a tensor is not wanted, or not there. Statistics, weights and sums are
// float, or double for Dtype::kDouble. out may be in or other; bent may be in or other.
struct NormCall {
  NormBlock block;
  const void *in, *input, *other;  // z or t, h, add or a: block.numel() elements each
  void *out, *bent;                // and these
  const void *mean, *rstd, *weight;  // (statistics,), (statistics,), (channels,)
  const void* already;               // (channels,), added to of_weight
  void *of_weight, *of_bias;         // (channels,)
  const void* bits;                  // (numel + 7) / 8 bytes: of the gate that in (adjoint) or out (tangent) passes
  Slopes slopes;
  void* workspace;  // as many elements as gpfast_normalize_workspace_cuda says, or null where those are none
};

}  // namespace gpfast

// Each returns the CUDA error of its launches.
// out = J^T in + other, of_weight = already + sum of in (h - m) r, of_bias = sum of in
extern "C" int gpfast_normalize_adjoint_cuda(gpfast::Dtype dtype, const gpfast::NormCall* call, void* stream);
// out = J in, bent = d/dh <other, J in>, of_weight = d/dweight <other, J in>
extern "C" int gpfast_normalize_tangent_cuda(gpfast::Dtype dtype, const gpfast::NormCall* call, void* stream);
// Elements of the dtype of statistics that the call's workspace must have; every other pointer of the call is set.
extern "C" int gpfast_normalize_adjoint_workspace_cuda(gpfast::Dtype dtype, const gpfast::NormCall* call, int64_t* elements);
extern "C" int gpfast_normalize_tangent_workspace_cuda(gpfast::Dtype dtype, const gpfast::NormCall* call, int64_t* elements);

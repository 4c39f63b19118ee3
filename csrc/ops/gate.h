#pragma once
// Piecewise-linear activations: an element passes one of two slopes, by a bit.
#include <ATen/core/Tensor.h>

#include <tuple>

#include "ops/gate_launch.h"

namespace gpfast {

// z, dense, by the slopes that `decider`, of any strides, gives; and the bits, eight a byte, in z's order in memory. weight,
// where defined, is the slope where the bit is not set: it has z's dimensions, of which at most one is not 1. In place where
// told.
std::tuple<at::Tensor, at::Tensor> gate(const at::Tensor& z, const at::Tensor& decider, const at::Tensor& weight, const Gate& by,
                                        bool in_place);
// z by the slopes of bits that gate() made; z lies in memory as it did there.
at::Tensor gated(const at::Tensor& z, const at::Tensor& bits, const at::Tensor& weight, const Slopes& slopes, bool in_place);

// What gated() multiplies by; no bits: nothing.
struct GateOfBits {
  at::Tensor bits;
  Slopes slopes{1, 1};
};

// The kernels behind them: z by its slopes is written to out, which may be z.
at::Tensor gate_cpu(const at::Tensor& z, at::Tensor decider, const at::Tensor& weight, const Gate& by, const at::Tensor& out);
void gated_cpu(const at::Tensor& z, const at::Tensor& bits, const at::Tensor& weight, const Slopes& by, const at::Tensor& out);

#ifdef GPFAST_WITH_CUDA
at::Tensor gate_cuda(const at::Tensor& z, const at::Tensor& decider, const at::Tensor& weight, const Gate& by,
                     const at::Tensor& out);
void gated_cuda(const at::Tensor& z, const at::Tensor& bits, const at::Tensor& weight, const Slopes& by, const at::Tensor& out);
#endif

// Elements of z in memory from one slope of weight to the next.
int64_t run_of_slope(const at::Tensor& weight, const at::Tensor& z);

inline int64_t bytes_of_bits(int64_t numel) { return (numel + 7) / 8; }

}  // namespace gpfast

#pragma once
// A run of dense layers with activations of two slopes between them, in one call each way: for layers so small that calls cost more
// than products.
#include <ATen/core/Tensor.h>

#include <tuple>
#include <vector>

#include "ops/gate.h"

namespace gpfast {

// y = factor * gate(x @ weight), from the points up. Neither decider nor factor need be defined; their rows are contiguous.
struct DenseLayer {
  at::Tensor weight;   // (in, out), any strides
  at::Tensor decider;  // (rows, out): the gate's
  Gate gate{};
  at::Tensor factor;  // (rows, out)
  bool wanted = false;  // the weight's gradient
};
using DenseLayers = std::vector<DenseLayer>;

// a: the adjoint of the result, (rows, out), contiguous. Returns that of the input, and for dense_tangent those of all products, one
// after the other.
std::tuple<at::Tensor, at::Tensor> dense_adjoint(const at::Tensor& a, const DenseLayers& layers);
// t: the tangent of the input, (rows, in), contiguous. Returns that of the result, with no elements unless `through`; and x's tangent
// with y's adjoint, a gradient for each weight that is wanted, which lies in memory as the weight does.
std::tuple<at::Tensor, std::vector<at::Tensor>> dense_tangent(const at::Tensor& t, const at::Tensor& held, const DenseLayers& layers,
                                                              bool through);

// Whether these kernels are fast on this machine: their products are written for AVX2 and AVX-512.
bool dense_is_fast();
// The longest vectors they may use, in bytes: 32 or, where the CPU has them, 64; for tests. Returns what was set before.
int64_t set_dense_vectors(int64_t bytes);
// The most multiplications of one product that they are faster for than a call of its own.
constexpr int64_t kMostDense = int64_t{1} << 25;
// The most rows: for a gradient each thread lays out a panel of so many. And the fewest: these sums round as those of the eager lines
// do, no more, but otherwise, and among a few samples the ill-conditioned ones are not averaged out.
constexpr int64_t kMostDenseRows = int64_t{1} << 16, kFewestDenseRows = 16;

}  // namespace gpfast

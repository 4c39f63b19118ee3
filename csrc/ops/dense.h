#pragma once
// A run of dense layers with activations between them, in one call for each sweep: for layers so small that calls cost more than
// products.
#include <ATen/core/Tensor.h>

#include <tuple>
#include <vector>

#include "ops/activation_launch.h"
#include "ops/gate.h"

namespace gpfast {

// y = factor * gate(x @ weight), from the points up, or a smooth activation's y = factor * phi(x @ weight). What lies between
// layers need not be there; its rows, and x's, are contiguous.
struct DenseLayer {
  at::Tensor weight;   // (in, out), any strides
  at::Tensor decider;  // (rows, out): the gate's
  Gate gate{};
  at::Tensor saved;  // (rows, out): by the smooth activation
  Curve curve{};
  at::Tensor factor;    // (rows, out)
  at::Tensor bend;      // (rows, out): c a, with phi's second derivative c, until the tangent makes it c a t
  bool wanted = false;  // the weight's gradient
  // Where second adjoints come, or are the adjoints times a ratio:
  at::Tensor input;   // x, where the weight's gradient is wanted
  bool sums = false;  // theirs over the rows are wanted
};
using DenseLayers = std::vector<DenseLayer>;

// a: the adjoint of the result, (rows, out), contiguous. Returns that of the input, and those of all products, one after the other;
// and makes the layers' bends.
std::tuple<at::Tensor, at::Tensor> dense_adjoint(const at::Tensor& a, DenseLayers& layers);
// t: the tangent of the input, (rows, in), contiguous. Returns that of the result, with no elements unless `through`; and of x's
// tangent and the product's adjoint a gradient for each weight that is wanted, which lies in memory as the weight does. Bends are
// changed. ratio: of second adjoints to adjoints, a number a row, or undefined: gradients are then of x's tangent plus ratio x, and
// sums of the adjoints times ratio, with no elements where they are not wanted.
using DenseGradients = std::vector<at::Tensor>;
std::tuple<at::Tensor, DenseGradients, std::vector<at::Tensor>> dense_tangent(const at::Tensor& t, const at::Tensor& held,
                                                                              const DenseLayers& layers, bool through,
                                                                              const at::Tensor& ratio);
// b: the second adjoint of the result, (rows, out), contiguous; it or a bend is there. Returns that of the input and the sums, each
// with no elements where nothing arrives; the input's none unless `through`. To the gradient of each weight whose layer has its
// input is added what is of x and the second adjoint.
std::tuple<at::Tensor, std::vector<at::Tensor>> dense_second(const at::Tensor& b, const DenseLayers& layers,
                                                             const std::vector<at::Tensor>& gradients, bool through);

// Whether these kernels are fast on this machine: their products are written for AVX2 and AVX-512.
bool dense_is_fast();
// The longest vectors they may use, in bytes: 32 or, where the CPU has them, 64; for tests. Returns what was set before.
int64_t set_dense_vectors(int64_t bytes);
// The most multiplications of one product that they are faster for than a call of its own.
constexpr int64_t kMostDense = int64_t{1} << 25;
// The most rows: of adjoints each thread lays out a panel of its share. And the fewest: these sums round as those of the eager lines
// do, no more, but otherwise, and among a few samples the ill-conditioned ones are not averaged out.
constexpr int64_t kMostDenseRows = int64_t{1} << 16, kFewestDenseRows = 16;

}  // namespace gpfast

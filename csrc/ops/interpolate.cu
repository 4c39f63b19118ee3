#include "ops/cuda_kernels.h"
#include "ops/interpolate_launch.h"

namespace gpfast {
namespace {

// Rounded after each operation, never fused: the bits of the eager formula, so that no activation of a critic flips its sign.
__device__ float mix_rounded(float a, float r, float f) { return __fadd_rn(__fmul_rn(a, r), __fmul_rn(1.f - a, f)); }
__device__ double mix_rounded(double a, double r, double f) { return __dadd_rn(__dmul_rn(a, r), __dmul_rn(1. - a, f)); }

// The (rows, cols) block is read flat, kWidth elements a thread, so that the width of the loads does not depend on cols; a vector
// may end in a later row than it begins in. The last, incomplete vector is read element by element.
template <typename T, typename A, int kWidth>
__global__ void __launch_bounds__(kThreads) interpolate(const T* __restrict__ real, const T* __restrict__ fake,
                                                        const A* __restrict__ alpha, T* __restrict__ out, int64_t rows,
                                                        int64_t cols) {
  const int64_t first = first_element(kWidth);
  const int64_t left = rows * cols - first;
  if (left <= 0) return;
  int64_t row = rows == 1 ? 0 : first / cols;
  int64_t column = first - row * cols;
  A a = alpha[row];
  const auto mix = [&](T r, T f) {
    if (column == cols) {
      column = 0;
      a = alpha[++row];
    }
    ++column;
    return narrow<T>(mix_rounded(a, widen(r), widen(f)));
  };
  if (left >= kWidth) {
    using Loaded = Vector<T, kWidth>;
    const Loaded r = *reinterpret_cast<const Loaded*>(real + first);
    const Loaded f = *reinterpret_cast<const Loaded*>(fake + first);
    Loaded mixed;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) mixed.lane[k] = mix(r.lane[k], f.lane[k]);
    *reinterpret_cast<Loaded*>(out + first) = mixed;
  } else {
    for (int64_t i = first; i < first + left; ++i) out[i] = mix(real[i], fake[i]);
  }
}

}  // namespace
}  // namespace gpfast

extern "C" int gpfast_interpolate_cuda(gpfast::Dtype dtype, const void* real, const void* fake, const void* alpha, void* out,
                                       int64_t rows, int64_t cols, void* stream) {
  using namespace gpfast;
  return with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Wide<T>;
    const bool wide = aligned(real, fake, out);
    return launch(wide ? interpolate<T, A, kVector<T>> : interpolate<T, A, 1>, rows * cols, wide ? kVector<T> : 1, stream,
                  static_cast<const T*>(real), static_cast<const T*>(fake), static_cast<const A*>(alpha), static_cast<T*>(out),
                  rows, cols);
  });
}

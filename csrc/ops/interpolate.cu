#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ops/interpolate_launch.h"

namespace {

constexpr int kThreads = 256;

__device__ float widen(__half x) { return __half2float(x); }
__device__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ float widen(float x) { return x; }
__device__ double widen(double x) { return x; }

template <typename T, typename A>
__device__ T narrow(A x) {
  return static_cast<T>(x);
}

// Rounded after each operation, never fused: the bits of the eager formula, so that no activation of a critic flips its sign.
__device__ float mix_rounded(float a, float r, float f) { return __fadd_rn(__fmul_rn(a, r), __fmul_rn(1.f - a, f)); }
__device__ double mix_rounded(double a, double r, double f) { return __dadd_rn(__dmul_rn(a, r), __dmul_rn(1. - a, f)); }

template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Vector {
  T lane[kWidth];
};

// The (rows, cols) block is read flat, kWidth elements a thread, so that the width of the loads does not depend on cols; a vector
// may end in a later row than it begins in. The last, incomplete vector is read element by element.
template <typename T, typename A, int kWidth>
__global__ void __launch_bounds__(kThreads) interpolate(const T* __restrict__ real, const T* __restrict__ fake,
                                                        const A* __restrict__ alpha, T* __restrict__ out, int64_t rows,
                                                        int64_t cols) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWidth;
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
    using Wide = Vector<T, kWidth>;
    const Wide r = *reinterpret_cast<const Wide*>(real + first);
    const Wide f = *reinterpret_cast<const Wide*>(fake + first);
    Wide mixed;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) mixed.lane[k] = mix(r.lane[k], f.lane[k]);
    *reinterpret_cast<Wide*>(out + first) = mixed;
  } else {
    for (int64_t i = first; i < first + left; ++i) out[i] = mix(real[i], fake[i]);
  }
}

template <typename T, typename A>
int launch(const void* real, const void* fake, const void* alpha, void* out, int64_t rows, int64_t cols, cudaStream_t stream) {
  constexpr int kWide = 16 / sizeof(T);
  const auto addresses = reinterpret_cast<uintptr_t>(real) | reinterpret_cast<uintptr_t>(fake) | reinterpret_cast<uintptr_t>(out);
  const bool aligned = addresses % 16 == 0;
  const int64_t per_block = kThreads * (aligned ? kWide : 1);
  const int64_t blocks = (rows * cols + per_block - 1) / per_block;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const auto kernel = aligned ? interpolate<T, A, kWide> : interpolate<T, A, 1>;
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(static_cast<const T*>(real), static_cast<const T*>(fake),
                                                                static_cast<const A*>(alpha), static_cast<T*>(out), rows, cols);
  return cudaGetLastError();
}

}  // namespace

extern "C" __attribute__((visibility("hidden"))) int gpfast_interpolate_cuda(gpfast::Dtype dtype, const void* real,
                                                                             const void* fake, const void* alpha, void* out,
                                                                             int64_t rows, int64_t cols, void* stream) {
  const auto current = static_cast<cudaStream_t>(stream);
  switch (dtype) {
    case gpfast::Dtype::kHalf: return launch<__half, float>(real, fake, alpha, out, rows, cols, current);
    case gpfast::Dtype::kBFloat16: return launch<__nv_bfloat16, float>(real, fake, alpha, out, rows, cols, current);
    case gpfast::Dtype::kFloat: return launch<float, float>(real, fake, alpha, out, rows, cols, current);
    case gpfast::Dtype::kDouble: return launch<double, double>(real, fake, alpha, out, rows, cols, current);
  }
  return cudaErrorInvalidValue;
}

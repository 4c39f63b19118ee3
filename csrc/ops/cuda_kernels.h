#pragma once
// What the CUDA kernels share: how they are launched, conversions, and 16-byte accesses. For .cu files, which nvcc compiles, and
// which g++ compiles with GPFAST_SIMT for tests that run them on the CPU.
#ifdef GPFAST_SIMT
#include "simt.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define GPFAST_SHARED(T, name, length) __shared__ T name[length]
#define GPFAST_DYNAMIC_SHARED(T, name)                     \
  extern __shared__ __align__(16) unsigned char name##_[]; \
  T* name = reinterpret_cast<T*>(name##_)
#endif

#include <cstdint>
#include <type_traits>
#include <utility>

#include "ops/dtype.h"

namespace gpfast {

constexpr int kThreads = 256;

// The type that a dtype is computed in.
template <typename T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }

template <typename T>
__device__ __forceinline__ T narrow(Wide<T> x) {
  return static_cast<T>(x);
}

template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Vector {
  T lane[kWidth];
};
// Elements of a 16-byte access.
template <typename T>
constexpr int kVector = 16 / sizeof(T);

template <typename T>
__device__ __forceinline__ Vector<T, kVector<T>> load(const T* from) {
  return *reinterpret_cast<const Vector<T, kVector<T>>*>(from);
}
template <typename T>
__device__ __forceinline__ void store(T* to, const Vector<T, kVector<T>>& values) {
  *reinterpret_cast<Vector<T, kVector<T>>*>(to) = values;
}

// The first element of this thread, where each has `width` that follow each other.
__device__ __forceinline__ int64_t first_element(int width) {
  return (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * width;
}

// Whether 16-byte accesses are possible everywhere.
template <typename... Pointers>
bool aligned(Pointers... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) | ...) % 16) == 0;
}

// Blocks of kThreads threads. The CUDA error of the launch.
template <typename... Parameters, typename... Arguments>
int launch_blocks(void (*kernel)(Parameters...), int64_t blocks, void* stream, Arguments&&... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

constexpr int64_t parts_of(int64_t n, int64_t size) { return n / size + (n % size != 0); }

// Blocks for n elements, `width` a thread.
template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), int64_t n, int width, void* stream, Arguments&&... arguments) {
  return launch_blocks(kernel, parts_of(n, static_cast<int64_t>(kThreads) * width), stream, std::forward<Arguments>(arguments)...);
}

// Calls launch(T{}) with the type of a dtype.
template <typename F>
int with_type(Dtype dtype, const F& launch) {
  switch (dtype) {
    case Dtype::kHalf: return launch(__half{});
    case Dtype::kBFloat16: return launch(__nv_bfloat16{});
    case Dtype::kFloat: return launch(float{});
    case Dtype::kDouble: return launch(double{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace gpfast

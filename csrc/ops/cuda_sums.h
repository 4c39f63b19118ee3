#pragma once
// Sums over the threads of a block, for .cu files. The order of additions depends on the launch alone. Every thread of a block
// calls these, as they wait for each other.
#include "ops/cuda_kernels.h"

namespace gpfast {

constexpr int kWarp = 32;

// The least power of two that is at least n, or `most`, itself a power of two.
constexpr int lanes_for(int64_t n, int most) {
  int lanes = 1;
  while (lanes < n && lanes < most) lanes *= 2;
  return lanes;
}

// The threads of a block in rows of `lanes`, a power of two: each gets the sums of its row.
template <int kSums, typename A>
__device__ __forceinline__ void sum_rows(A (&sums)[kSums], int lanes) {
  for (int step = (lanes < kWarp ? lanes : kWarp) / 2; step > 0; step /= 2)
#pragma unroll
    for (int k = 0; k < kSums; ++k) sums[k] += __shfl_xor_sync(0xffffffffu, sums[k], step);
  if (lanes <= kWarp) return;
  GPFAST_SHARED(A, of_warps, kSums * (kThreads / kWarp));
  const int thread = static_cast<int>(threadIdx.x), first = thread / lanes * lanes / kWarp;
  __syncthreads();  // until the sums of a call before this one are read
#pragma unroll
  for (int k = 0; k < kSums; ++k)
    if (thread % kWarp == 0) of_warps[thread / kWarp * kSums + k] = sums[k];
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
    sums[k] = 0;
    for (int warp = first; warp < first + lanes / kWarp; ++warp) sums[k] += of_warps[warp * kSums + k];
  }
}

// The threads of a block in columns, thread t in column t % columns, a power of two: the first row gets the sums of its columns.
template <int kSums, typename A>
__device__ __forceinline__ void sum_columns(A (&sums)[kSums], int columns) {
  for (int step = kWarp / 2; step >= columns; step /= 2)
#pragma unroll
    for (int k = 0; k < kSums; ++k) sums[k] += __shfl_xor_sync(0xffffffffu, sums[k], step);
  if (columns == kThreads) return;
  GPFAST_SHARED(A, of_threads, kSums * kThreads);
  const int thread = static_cast<int>(threadIdx.x), step = columns < kWarp ? kWarp : columns;
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kSums; ++k) of_threads[k * kThreads + thread] = sums[k];
  __syncthreads();
  if (thread >= columns) return;
#pragma unroll
  for (int k = 0; k < kSums; ++k)
    for (int other = thread + step; other < kThreads; other += step) sums[k] += of_threads[k * kThreads + other];
}

}  // namespace gpfast

// Kernels with and without one mistake each, for tests of the shim: the sum of each block's 256 elements.
#include "ops/cuda_kernels.h"

namespace {
using namespace gpfast;

enum class Mistake {
  kNone,
  kMissingBarrier,     // sums are read before they are written
  kMissingSecond,      // shared memory is used again before it was read
  kDivergentBarrier,   // half of the threads wait elsewhere
  kSkippedBarrier,     // one warp leaves early
  kWrongMask,          // a shuffle names half of the lanes that take part in it
  kOtherMask,          // two masks in one shuffle
  kExitedLane,         // a shuffle names lanes that have left
  kStaleLane,          // a shuffle reads from a lane outside of its mask
  kOneBeyond,          // an element beyond the end of the output is written
  kOneBeyondShared,    // and of shared memory
  kMisaligned,         // a 16-byte load between 16-byte bounds
};

template <Mistake mistake>
__device__ float warp_sum(float x) {
  const unsigned lane = threadIdx.x % 32;
  const unsigned other = lane < 16 ? 0x0000ffffu : 0xffffffffu;
  const unsigned mask = mistake == Mistake::kWrongMask || mistake == Mistake::kStaleLane ? 0x0000ffffu
                        : mistake == Mistake::kOtherMask                                 ? other
                                                                                         : 0xffffffffu;
  if constexpr (mistake == Mistake::kStaleLane) {
    if (lane >= 16) return x;
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(mask, x, lanes);
  return x;
}

template <Mistake mistake>
__global__ void __launch_bounds__(kThreads) block_sums(const float* __restrict__ x, float* __restrict__ out) {
  GPFAST_SHARED(float, sums, kThreads / 32);
  const int64_t i = first_element(1);
  const unsigned warp = threadIdx.x / 32;
  if constexpr (mistake == Mistake::kSkippedBarrier) {
    if (warp == 3) return;
  }
  if constexpr (mistake == Mistake::kExitedLane) {
    if (threadIdx.x % 32 == 31) return;
  }
  float mine = x[i];
  if constexpr (mistake == Mistake::kMisaligned) {
    for (const float lane : load(x + 1 + 4 * threadIdx.x % 8).lane) mine += lane * 0;
  }
  const float sum = warp_sum<mistake>(mine);
  const unsigned beyond = mistake == Mistake::kOneBeyondShared ? 1 : 0;
  if (threadIdx.x % 32 == 0) sums[warp + beyond] = sum;
  if constexpr (mistake == Mistake::kDivergentBarrier) {
    if (warp < 4) __syncthreads();
    else __syncthreads();
  } else if constexpr (mistake != Mistake::kMissingBarrier) {
    __syncthreads();
  }
  float total = 0;
  for (const float part : sums) total += part;
  // The same memory once more: each warp's sum of the total.
  if constexpr (mistake != Mistake::kMissingSecond) __syncthreads();
  if (threadIdx.x % 32 == 0) sums[warp] = total / (kThreads / 32);
  __syncthreads();
  float again = 0;
  for (const float part : sums) again += part;
  if (threadIdx.x == 0) out[blockIdx.x + (mistake == Mistake::kOneBeyond ? 1 : 0)] = again;
}

template <Mistake mistake>
int sums(const float* x, float* out, int64_t n, void* stream) {
  return launch(block_sums<mistake>, n, 1, stream, x, out);
}

// Each warp's lanes reversed, sums of those above, and which are positive; in dynamic shared memory.
__global__ void warp_operations(const float* x, float* reversed, float* above, unsigned* positive) {
  GPFAST_DYNAMIC_SHARED(float, staged);
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  staged[threadIdx.x] = x[i];
  __syncwarp();
  float sum = staged[threadIdx.x];
  for (unsigned lanes = 16; lanes > 0; lanes /= 2) {
    const float other = __shfl_down_sync(~0u, sum, lanes);
    sum += threadIdx.x % 32 + lanes < 32 ? other : 0;
  }
  reversed[i] = __shfl_sync(~0u, staged[threadIdx.x], 31 - static_cast<int>(threadIdx.x % 32));
  above[i] = sum;
  const unsigned set = __ballot_sync(~0u, x[i] > 0);
  if (threadIdx.x % 32 == 0) positive[i / 32] = set;
}

// Each thread writes where it is.
__global__ void places(int* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = static_cast<int>(block * 1000 + thread);
}

// Each thread notes when it came.
__global__ void turns(int* next, int* turn) { turn[threadIdx.x] = (*next)++; }

}  // namespace

extern "C" int seeded_sums(int mistake, const float* x, float* out, int64_t n, void* stream) {
  switch (static_cast<Mistake>(mistake)) {
#define GPFAST_CASE(name) \
  case Mistake::k##name: return sums<Mistake::k##name>(x, out, n, stream);
    GPFAST_CASE(None)
    GPFAST_CASE(MissingBarrier)
    GPFAST_CASE(MissingSecond)
    GPFAST_CASE(DivergentBarrier)
    GPFAST_CASE(SkippedBarrier)
    GPFAST_CASE(WrongMask)
    GPFAST_CASE(OtherMask)
    GPFAST_CASE(ExitedLane)
    GPFAST_CASE(StaleLane)
    GPFAST_CASE(OneBeyond)
    GPFAST_CASE(OneBeyondShared)
    GPFAST_CASE(Misaligned)
#undef GPFAST_CASE
  }
  return cudaErrorInvalidValue;
}

extern "C" int seeded_warps(const float* x, float* reversed, float* above, unsigned* positive, int64_t blocks, void*) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(64);
  config.dynamicSmemBytes = 64 * sizeof(float);
  return cudaLaunchKernelEx(&config, warp_operations, x, reversed, above, positive);
}

extern "C" int seeded_places(int* out, void*) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(2, 3, 4);
  config.blockDim = dim3(5, 2, 3);
  return cudaLaunchKernelEx(&config, places, out);
}

extern "C" int seeded_turns(int* next, int* turn, void*) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(64);
  return cudaLaunchKernelEx(&config, turns, next, turn);
}

extern "C" int seeded_configuration(int64_t blocks, int64_t threads, int64_t shared, void*) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  int next = 0, turn[1024];
  return cudaLaunchKernelEx(&config, turns, &next, turn);
}

#pragma once
// CUDA's names for a kernel's source that g++ compiles, instead of nvcc, to be run on the CPU. What is here is what the kernels
// use; a name that is missing does not compile.
#include <driver_types.h>
#include <vector_types.h>
// after these, which define them for the host
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "block.h"
#include "grid.h"

#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace simt {
// x, y and z of what `get` returns now.
template <auto get>
struct Coordinates {
  struct X {
    operator unsigned() const { return get().x; }
  } x;
  struct Y {
    operator unsigned() const { return get().y; }
  } y;
  struct Z {
    operator unsigned() const { return get().z; }
  } z;
};
}  // namespace simt

inline const simt::Coordinates<[] { return simt::block().running().index; }> threadIdx;
inline const simt::Coordinates<[] { return simt::block().index(); }> blockIdx;
inline const simt::Coordinates<[] { return simt::block().size(); }> blockDim;
inline const simt::Coordinates<[] { return simt::grid(); }> gridDim;

// nvcc: __shared__ T name[length]
#define GPFAST_SHARED(T, name, length)       \
  static const char name##_is_shared = 0;    \
  T(&name)[length] = *static_cast<T(*)[length]>(simt::block().shared(&name##_is_shared, sizeof(T[length])))
// nvcc: the launch's dynamic shared memory
#define GPFAST_DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(simt::block().dynamic())

inline void __syncthreads(simt::Place place = simt::Place::current()) { simt::block().barrier(place); }
inline void __syncwarp(uint32_t mask = ~0u, simt::Place place = simt::Place::current()) {
  simt::block().exchange(mask, 0, place);
}

namespace simt {
// What lane `source` gave; a lane that is not in the mask gave nothing that can be meant, which reads as NaN.
template <typename T>
T shuffle(uint32_t mask, T value, unsigned source, Place place) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t given = 0;
  std::memcpy(&given, &value, sizeof(T));
  const uint64_t* all = block().exchange(mask, given, place);
  const uint64_t received = mask >> source & 1 ? all[source] : ~uint64_t{0};
  std::memcpy(&value, &received, sizeof(T));
  return value;
}
inline unsigned lane() { return block().running().lane(); }
}  // namespace simt

template <typename T>
T __shfl_sync(uint32_t mask, T value, int source, int = 32, simt::Place place = simt::Place::current()) {
  return simt::shuffle(mask, value, static_cast<unsigned>(source) % simt::kWarp, place);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes, int = 32, simt::Place place = simt::Place::current()) {
  return simt::shuffle(mask, value, simt::lane() ^ static_cast<unsigned>(lanes), place);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned lanes, int = 32, simt::Place place = simt::Place::current()) {
  const unsigned source = simt::lane() + lanes;
  return simt::shuffle(mask, value, source < simt::kWarp ? source : simt::lane(), place);
}
inline unsigned __ballot_sync(uint32_t mask, int predicate, simt::Place place = simt::Place::current()) {
  const uint64_t* all = simt::block().exchange(mask, predicate != 0, place);
  unsigned set = 0;
  for (unsigned k = 0; k < simt::kWarp; ++k) set |= (mask >> k & 1 ? static_cast<unsigned>(all[k]) : 0u) << k;
  return set;
}

// Rounded after each operation: the compiler is told not to contract.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }

#pragma once
// What the CPU kernels share: one macro for function multiversioning, conversions that compilers vectorise, and a sum whose bits
// do not depend on the number of threads.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <c10/util/bit_cast.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "ops/inline.h"

// A function marked so is compiled once for each instruction set, and the loader picks. It must not be a template; the templates
// it calls are GPFAST_INLINE, and so become part of each version.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define GPFAST_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define GPFAST_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define GPFAST_CLONES
#endif

#define GPFAST_FOR_EACH_DTYPE(_) _(double) _(float) _(at::Half) _(at::BFloat16)

namespace gpfast {

// The type that a dtype is computed in.
template <typename T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

GPFAST_INLINE double widen(double x) { return x; }
GPFAST_INLINE float widen(float x) { return x; }
GPFAST_INLINE float widen(c10::BFloat16 x) { return c10::bit_cast<float>(uint32_t{x.x} << 16); }
GPFAST_INLINE float widen(c10::Half x) {
  const uint32_t magnitude = x.x & 0x7fffu;
  const uint32_t rebased = (magnitude << 13) + (112u << 23) + (magnitude >= 0x7c00u ? 112u << 23 : 0u);
  const uint32_t subnormal = c10::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  return c10::bit_cast<float>((magnitude < 0x0400u ? subnormal : rebased) | ((uint32_t{x.x} & 0x8000u) << 16));
}

template <typename T>
GPFAST_INLINE T narrow(Accumulate<T> x) {
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
    const uint32_t bits = c10::bit_cast<uint32_t>(x);
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return T((bits & 0x7fffffffu) > 0x7f800000u ? uint16_t{0x7fc0} : static_cast<uint16_t>(rounded), T::from_bits());
  } else if constexpr (std::is_same_v<T, c10::Half>) {
    const uint32_t bits = c10::bit_cast<uint32_t>(x);
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t rounded = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
    // Adding 1/2 leaves the multiples of 2^-24, the subnormals of fp16, in the low bits, rounded to nearest even.
    const uint32_t subnormal = c10::bit_cast<uint32_t>(c10::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t half = magnitude < 0x38800000u ? subnormal : rounded;
    half = magnitude >= 0x47800000u ? 0x7c00u : half;
    half = magnitude > 0x7f800000u ? 0x7e00u : half;
    return T(static_cast<uint16_t>(half | (bits >> 16 & 0x8000u)), T::from_bits());
  } else {
    return x;
  }
}

constexpr int64_t kChunk = 4096;  // elements that are summed in A; chunks are added up in double
constexpr int64_t kGrain = 32768;  // elements worth a thread

// 64 lanes in four registers hide the latency of the additions.
template <bool square, typename A>
GPFAST_INLINE double sum_lanes(const A* __restrict__ x, int64_t n) {
  constexpr int64_t kLanes = 64 / sizeof(A);
  typedef A Vector __attribute__((vector_size(64)));
  double total = 0;
  int64_t i = 0;
  if (n >= kLanes) {
    Vector lanes[4] = {};
    for (; i + 4 * kLanes <= n; i += 4 * kLanes)
      for (int k = 0; k < 4; ++k) {
        Vector v;
        std::memcpy(&v, x + i + k * kLanes, sizeof(v));
        lanes[k] += square ? v * v : v;
      }
    for (; i + kLanes <= n; i += kLanes) {
      Vector v;
      std::memcpy(&v, x + i, sizeof(v));
      lanes[0] += square ? v * v : v;
    }
    const Vector sum = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
    for (int k = 0; k < kLanes; ++k) total += sum[k];
  }
  A rest = 0;
  for (; i < n; ++i) rest += square ? x[i] * x[i] : x[i];
  return total + rest;
}

// The sum of squares of n <= kChunk elements.
template <typename T>
GPFAST_INLINE double chunk_sum_of_squares(const T* __restrict__ x, int64_t n) {
  using A = Accumulate<T>;
  if constexpr (std::is_same_v<T, A>) {
    return sum_lanes<true>(x, n);
  } else {
    A wide[kChunk];
    for (int64_t i = 0; i < n; ++i) wide[i] = widen(x[i]);
    return sum_lanes<true>(wide, n);
  }
}

}  // namespace gpfast

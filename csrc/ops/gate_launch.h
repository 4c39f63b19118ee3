#pragma once
// What a gate is, without torch's headers; and the CUDA kernels' launchers, between gate_cuda.cpp and gate.cu.
#include <cstdint>

#include "ops/dtype.h"

namespace gpfast {

// When an element's bit is set. None is for a NaN.
enum class Test : int64_t {
  kAbove,    // lower < h
  kBetween,  // lower < h < upper
  kWithin,   // lower <= h <= upper
  kBelow,    // h < upper
};

// An element is multiplied by `on` where its bit is set, by `off` elsewhere. A slope of zero gives zero, whatever the element.
struct Slopes {
  double on, off;
};

struct Gate {
  Test test;
  double lower, upper;
  Slopes slopes;
};

// Instead of `off`, where channels is not 0: slopes[i / inner % channels] for element i. slopes: (channels,), float, or double
// for Dtype::kDouble.
struct OffSlopes {
  const void* slopes;
  int64_t channels, inner;
};

}  // namespace gpfast

// z, h and out: n elements of dtype in the same order; out may be z. bits: (n + 7) / 8 bytes, which begin where a 4-byte word may,
// the first element in the lowest bit of the first one. Both return the CUDA error of the launch.
// Writes the bits of h, and z by its slopes.
extern "C" int gpfast_gate_cuda(gpfast::Dtype dtype, const void* z, const void* h, void* out, void* bits, int64_t n,
                                const gpfast::Gate* by, const gpfast::OffSlopes* off, void* stream);
// z by the slopes of bits that are there.
extern "C" int gpfast_gated_cuda(gpfast::Dtype dtype, const void* z, const void* bits, void* out, int64_t n,
                                 const gpfast::Slopes* by, const gpfast::OffSlopes* off, void* stream);

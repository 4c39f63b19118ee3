#pragma once
// Between interpolate.cpp, compiled with torch's headers, and interpolate.cu, compiled without them.
#include <cstdint>

#include "ops/dtype.h"

// out[i, j] = alpha_i * real[i, j] + (1 - alpha_i) * fake[i, j]; real, fake, out: (rows, cols) of dtype; alpha: (rows,), float, or
// double for kDouble. Returns the CUDA error of the launch.
extern "C" int gpfast_interpolate_cuda(gpfast::Dtype dtype, const void* real, const void* fake, const void* alpha, void* out,
                                       int64_t rows, int64_t cols, void* stream);

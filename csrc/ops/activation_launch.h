#pragma once
// The smooth activations, without torch's headers; and the CUDA kernels' launchers, between activation_cuda.cpp and activation.cu.
#include <cstdint>

#include "ops/dtype.h"

namespace gpfast {

// Each is a struct of formulas in ops/activation_formulas.h, where the parameters are explained.
#define GPFAST_FOR_EACH_FUSED_ACTIVATION(_)                                                                              \
  _(Tanh) _(Sigmoid) _(Softplus) _(Elu) _(EluOfResult) _(Silu) _(Gelu) _(GeluTanh) _(Mish) _(Hardswish) _(Exponential)   \
  _(Logarithm) _(Sqrt) _(Rsqrt) _(Reciprocal) _(Square) _(Cube) _(Tan) _(Atan) _(Erf)
// Of these the functions are calls; on the CPU PyTorch's operators compute powers.
#define GPFAST_FOR_EACH_OTHER_ACTIVATION(_) _(Power) _(Sin) _(Cos) _(Sinh) _(Cosh)
#define GPFAST_FOR_EACH_ACTIVATION(_) GPFAST_FOR_EACH_FUSED_ACTIVATION(_) GPFAST_FOR_EACH_OTHER_ACTIVATION(_)

enum class Activation : int64_t {
#define GPFAST_NAME(name) k##name,
  GPFAST_FOR_EACH_ACTIVATION(GPFAST_NAME)
#undef GPFAST_NAME
};
inline bool fused(Activation kind) { return kind < Activation::kPower; }
// Whether there is a CPU kernel that compilers vectorise.
inline bool vectorised(Activation kind) { return kind != Activation::kPower && kind <= Activation::kCosh; }

struct Curve {
  Activation kind;
  double p = 0, q = 0, r = 0;
};

}  // namespace gpfast

// All pointers but the last two are to n elements of dtype in the same order; what is written may be what is read. Each returns
// the CUDA error of its launch.
// out = s z
extern "C" int gpfast_slope_cuda(gpfast::Dtype dtype, const void* z, const void* saved, void* out, int64_t n,
                                 const gpfast::Curve* by, void* stream);
// out = s t and bend = c a t
extern "C" int gpfast_slope_and_curve_cuda(gpfast::Dtype dtype, const void* t, const void* a, const void* saved, void* out,
                                           void* bend, int64_t n, const gpfast::Curve* by, void* stream);
// into += s z
extern "C" int gpfast_add_slope_cuda(gpfast::Dtype dtype, void* into, const void* z, const void* saved, int64_t n,
                                     const gpfast::Curve* by, void* stream);

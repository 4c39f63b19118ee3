#pragma once
// Smooth activations: their first and second derivatives s and c, of what the activation saved, its input or its result.
#include <ATen/core/Tensor.h>

#include <tuple>

#include "ops/activation_launch.h"

namespace gpfast {

// In all of these the tensors are dense and alike.
// s z; in place where told.
at::Tensor slope(const at::Tensor& z, const at::Tensor& saved, const Curve& by, bool in_place);
// (s t, c a t), in the memory of t and of a where told: of t only beside a.
std::tuple<at::Tensor, at::Tensor> slope_and_curve(const at::Tensor& t, const at::Tensor& a, const at::Tensor& saved,
                                                   const Curve& by, bool in_t, bool in_a);
// into += s z.
void add_slope(const at::Tensor& into, const at::Tensor& z, const at::Tensor& saved, const Curve& by);

// s or c by PyTorch's operators; of float16 and bfloat16 in float32.
at::Tensor derivative(const at::Tensor& saved, const Curve& by, bool second);
// s and, where it is not null, c of n numbers, on the CPU; not of every activation: where vectorised(by.kind).
void derivatives(const float* saved, const Curve& by, float* slope, float* curve, int64_t n);
void derivatives(const double* saved, const Curve& by, double* slope, double* curve, int64_t n);

// The kernels behind them: s z is written to out, which may be z, and c a t to bend, which may be a.
void slope_cpu(const at::Tensor& z, const at::Tensor& saved, const Curve& by, const at::Tensor& out);
void slope_and_curve_cpu(const at::Tensor& t, const at::Tensor& a, const at::Tensor& saved, const Curve& by,
                         const at::Tensor& out, const at::Tensor& bend);
void add_slope_cpu(const at::Tensor& into, const at::Tensor& z, const at::Tensor& saved, const Curve& by);
#ifdef GPFAST_WITH_CUDA
void slope_cuda(const at::Tensor& z, const at::Tensor& saved, const Curve& by, const at::Tensor& out);
void slope_and_curve_cuda(const at::Tensor& t, const at::Tensor& a, const at::Tensor& saved, const Curve& by,
                          const at::Tensor& out, const at::Tensor& bend);
void add_slope_cuda(const at::Tensor& into, const at::Tensor& z, const at::Tensor& saved, const Curve& by);
#endif
// The same in PyTorch's own operators, for every device.
void slope_plain(const at::Tensor& z, const at::Tensor& saved, const Curve& by, const at::Tensor& out);
void slope_and_curve_plain(const at::Tensor& t, const at::Tensor& a, const at::Tensor& saved, const Curve& by,
                           const at::Tensor& out, const at::Tensor& bend);
void add_slope_plain(const at::Tensor& into, const at::Tensor& z, const at::Tensor& saved, const Curve& by);

}  // namespace gpfast

#include "ops/interpolate.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "ops/rows.h"
#include "ops/simd.h"

#ifdef GPFAST_WITH_CUDA
#include <c10/core/DeviceGuard.h>

#include "ops/cuda_launch.h"
#include "ops/interpolate_launch.h"
#endif

namespace gpfast {
namespace {

// Elements [begin, end) of the flat (rows, cols) block; alpha: (rows,).
template <typename T, typename A = Accumulate<T>>
GPFAST_INLINE void mix_range(const T* __restrict__ real, const T* __restrict__ fake, const A* __restrict__ alpha,
                             T* __restrict__ out, int64_t cols, int64_t begin, int64_t end) {
  for (int64_t row = begin / cols; begin < end; ++row) {
    const int64_t stop = std::min(end, (row + 1) * cols);
    const A a = alpha[row], b = A(1) - a;
    for (int64_t i = begin; i < stop; ++i) out[i] = narrow<T>(a * widen(real[i]) + b * widen(fake[i]));
    begin = stop;
  }
}

#define GPFAST_DEFINE(T)                                                                                                     \
  GPFAST_CLONES void mix(const T* real, const T* fake, const Accumulate<T>* alpha, T* out, int64_t cols, int64_t begin,      \
                         int64_t end) {                                                                                      \
    mix_range(real, fake, alpha, out, cols, begin, end);                                                                     \
  }
GPFAST_FOR_EACH_DTYPE(GPFAST_DEFINE)
#undef GPFAST_DEFINE

// The operands in the output's dtype, alpha in the type it is computed in; rows is 1 where alpha is shared.
struct Operands {
  at::Tensor real, fake, alpha, out;
  int64_t rows, cols;
};

Operands prepare(const at::Tensor& real, const at::Tensor& fake, const at::Tensor& alpha) {
  TORCH_CHECK(real.sizes() == fake.sizes(), "interpolate: real is ", real.sizes(), " and fake is ", fake.sizes());
  TORCH_CHECK(real.device() == fake.device() && real.device() == alpha.device(), "interpolate: real is on ", real.device(),
              ", fake on ", fake.device(), ", alpha on ", alpha.device());
  TORCH_CHECK(alpha.dim() == 0 || (alpha.dim() == 1 && real.dim() > 0 && alpha.size(0) == real.size(0)),
              "interpolate: alpha must be () or (B,), and is ", alpha.sizes(), " for real ", real.sizes());
  for (int64_t d = 0; d < real.dim(); ++d)
    TORCH_CHECK(real.size(d) == 1 || real.numel() == 0 || real.stride(d) == fake.stride(d), "interpolate: real has strides ",
                real.strides(), " and fake has ", fake.strides());
  const Rows block = dense_rows(real, std::min<int64_t>(real.dim(), 1), "interpolate: real");
  const auto dtype = c10::promoteTypes(real.scalar_type(), fake.scalar_type());
  const auto as = [](const at::Tensor& tensor, at::ScalarType type) { return tensor.scalar_type() == type ? tensor : tensor.to(type); };
  Operands o{as(real, dtype), as(fake, dtype), as(alpha, dtype == at::kDouble ? at::kDouble : at::kFloat).contiguous(), {},
             block.rows, block.cols};
  o.out = at::empty_like(o.real);
  if (alpha.dim() == 0) {
    o.cols *= o.rows;
    o.rows = 1;
  }
  return o;
}

}  // namespace

at::Tensor interpolate_cpu(const at::Tensor& real, const at::Tensor& fake, const at::Tensor& alpha) {
  const Operands o = prepare(real, fake, alpha);
  if (o.out.numel() == 0) return o.out;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, o.out.scalar_type(), "interpolate", [&] {
    const auto* r = o.real.const_data_ptr<scalar_t>();
    const auto* f = o.fake.const_data_ptr<scalar_t>();
    const auto* a = o.alpha.const_data_ptr<Accumulate<scalar_t>>();
    auto* out = o.out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, o.rows * o.cols, kGrain, [&](int64_t begin, int64_t end) { mix(r, f, a, out, o.cols, begin, end); });
  });
  return o.out;
}

TORCH_LIBRARY_IMPL(gpfast, CPU, m) { m.impl("interpolate", &interpolate_cpu); }

#ifdef GPFAST_WITH_CUDA
namespace {

at::Tensor interpolate_cuda(const at::Tensor& real, const at::Tensor& fake, const at::Tensor& alpha) {
  const c10::DeviceGuard guard(real.device());
  const Operands o = prepare(real, fake, alpha);
  if (o.out.numel() == 0) return o.out;
  const int error = gpfast_interpolate_cuda(dtype_of(o.out, "interpolate"), o.real.const_data_ptr(), o.fake.const_data_ptr(),
                                            o.alpha.const_data_ptr(), o.out.mutable_data_ptr(), o.rows, o.cols,
                                            current_stream(real));
  check_launch(error, "interpolate");
  return o.out;
}

}  // namespace

TORCH_LIBRARY_IMPL(gpfast, CUDA, m) { m.impl("interpolate_cuda", &interpolate_cuda); }
#endif

}  // namespace gpfast

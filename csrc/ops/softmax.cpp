#include "ops/softmax.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "ops/simd.h"

namespace gpfast {
namespace {

using at::Tensor;

constexpr int64_t kWidth = 64;

// One row, contiguous. bend may be a.
template <typename T, typename A = Accumulate<T>>
GPFAST_INLINE void row_of(const T* t, const T* a, const T* y, T* out, T* bend, int64_t n) {
  A sum_t = 0, sum_a = 0;
#pragma omp simd reduction(+ : sum_t, sum_a)
  for (int64_t k = 0; k < n; ++k) {
    const A p = widen(y[k]);
    sum_t += p * widen(t[k]);
    sum_a += p * widen(a[k]);
  }
#pragma omp simd
  for (int64_t k = 0; k < n; ++k) {
    const A rest = widen(t[k]) - sum_t;
    bend[k] = narrow<T>((widen(a[k]) - sum_a) * rest);
    out[k] = narrow<T>(widen(y[k]) * rest);
  }
}

// At most kWidth rows side by side: element k of row i is at k * stride + i.
template <typename T, typename A = Accumulate<T>>
GPFAST_INLINE void rows_of(const T* t, const T* a, const T* y, T* out, T* bend, int64_t n, int64_t stride, int64_t width) {
  A sum_t[kWidth] = {}, sum_a[kWidth] = {};
  for (int64_t k = 0; k < n * stride; k += stride)
    for (int64_t i = 0; i < width; ++i) {
      const A p = widen(y[k + i]);
      sum_t[i] += p * widen(t[k + i]);
      sum_a[i] += p * widen(a[k + i]);
    }
  for (int64_t k = 0; k < n * stride; k += stride)
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const A rest = widen(t[k + i]) - sum_t[i];
      bend[k + i] = narrow<T>((widen(a[k + i]) - sum_a[i]) * rest);
      out[k + i] = narrow<T>(widen(y[k + i]) * rest);
    }
}

#define GPFAST_DEFINE(T)                                                                                                \
  GPFAST_CLONES void row(const T* t, const T* a, const T* y, T* out, T* bend, int64_t n) {                              \
    row_of(t, a, y, out, bend, n);                                                                                      \
  }                                                                                                                     \
  GPFAST_CLONES void rows(const T* t, const T* a, const T* y, T* out, T* bend, int64_t n, int64_t stride, int64_t width) { \
    rows_of(t, a, y, out, bend, n, stride, width);                                                                      \
  }
GPFAST_FOR_EACH_DTYPE(GPFAST_DEFINE)
#undef GPFAST_DEFINE

// In memory the tensors are (outer, n, inner), whatever their strides: n is the size of dim.
void softmax_tangent_cpu(const Tensor& t, const Tensor& a, const Tensor& y, int64_t dim, const Tensor& out, const Tensor& bend) {
  if (t.numel() == 0) return;
  const int64_t n = t.dim() ? t.size(dim) : 1, inner = n == 1 ? 1 : t.stride(dim), outer = t.numel() / n / inner;
  const int64_t tiles = (inner + kWidth - 1) / kWidth;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, t.scalar_type(), "softmax_tangent", [&] {
    const auto *from = t.const_data_ptr<scalar_t>(), *adjoint = a.const_data_ptr<scalar_t>();
    const auto* result = y.const_data_ptr<scalar_t>();
    auto *to = out.mutable_data_ptr<scalar_t>(), *second = bend.mutable_data_ptr<scalar_t>();
    const int64_t grain = std::max<int64_t>(1, kGrain / (n * std::min(inner, kWidth)));
    at::parallel_for(0, outer * tiles, grain, [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t column = tile % tiles * kWidth, i = tile / tiles * n * inner + column;
        if (inner == 1) row(from + i, adjoint + i, result + i, to + i, second + i, n);
        else rows(from + i, adjoint + i, result + i, to + i, second + i, n, inner, std::min(kWidth, inner - column));
      }
    });
  });
}

void softmax_tangent_plain(const Tensor& t, const Tensor& a, const Tensor& y, int64_t dim, const Tensor& out,
                           const Tensor& bend) {
  const auto rest = t.sub(y.mul(t).sum(dim, /*keepdim=*/true));
  bend.copy_(a.sub(y.mul(a).sum(dim, /*keepdim=*/true)).mul_(rest));
  out.copy_(rest.mul_(y));
}

void check(const Tensor& a, const Tensor& b) {
  bool alike = a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type() && a.is_non_overlapping_and_dense();
  for (int64_t d = 0; alike && a.numel() && d < a.dim(); ++d) alike = a.size(d) == 1 || a.stride(d) == b.stride(d);
  TORCH_CHECK(alike, "gpfast::softmax_tangent: operands must be alike and dense; got ", a.sizes(), " with strides ", a.strides(),
              " and ", b.sizes(), " with strides ", b.strides());
}

template <auto kernel>
std::tuple<Tensor, Tensor> softmax_tangent_op(const Tensor& t, const Tensor& a, const Tensor& y, int64_t dim) {
  check(t, a);
  check(t, y);
  std::tuple<Tensor, Tensor> made{at::empty_like(t), at::empty_like(a)};
  kernel(t, a, y, dim, std::get<0>(made), std::get<1>(made));
  return made;
}

template <auto kernel>
Tensor softmax_tangent_in_a(const Tensor& t, const Tensor& a, const Tensor& y, int64_t dim) {
  check(t, a);
  check(t, y);
  const auto out = at::empty_like(t);
  kernel(t, a, y, dim, out, a);
  return out;
}

}  // namespace

std::tuple<Tensor, Tensor> softmax_tangent(const Tensor& t, const Tensor& a, const Tensor& y, int64_t dim, bool in_a) {
  auto& dispatcher = c10::Dispatcher::singleton();
  static const auto op = dispatcher.findSchemaOrThrow("gpfast::softmax_tangent", "")
                             .typed<decltype(softmax_tangent_op<softmax_tangent_cpu>)>();
  static const auto op_ = dispatcher.findSchemaOrThrow("gpfast::softmax_tangent_", "")
                              .typed<decltype(softmax_tangent_in_a<softmax_tangent_cpu>)>();
  if (in_a) return {op_.call(t, a, y, dim), a};
  return op.call(t, a, y, dim);
}

TORCH_LIBRARY_FRAGMENT(gpfast, m) {
  m.def("softmax_tangent(Tensor t, Tensor a, Tensor y, int dim) -> (Tensor, Tensor)");
  m.def("softmax_tangent_(Tensor t, Tensor(a!) a, Tensor y, int dim) -> Tensor");
}
TORCH_LIBRARY_IMPL(gpfast, CPU, m) {
  m.impl("softmax_tangent", &softmax_tangent_op<softmax_tangent_cpu>);
  m.impl("softmax_tangent_", &softmax_tangent_in_a<softmax_tangent_cpu>);
}
TORCH_LIBRARY_IMPL(gpfast, CompositeExplicitAutograd, m) {
  m.impl("softmax_tangent", &softmax_tangent_op<softmax_tangent_plain>);
  m.impl("softmax_tangent_", &softmax_tangent_in_a<softmax_tangent_plain>);
}

}  // namespace gpfast

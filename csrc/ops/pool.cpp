#include "ops/pool.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/avg_pool2d_backward.h>
#include <ATen/ops/avg_pool3d.h>
#include <ATen/ops/avg_pool3d_backward.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "ops/simd.h"

namespace gpfast {
namespace {

constexpr int64_t kLanes = 256;  // sums that are held at once

// Of the small tensor (outer, d, h, w, inner) and the large one (outer, d * kd, h * kh, w * kw, inner), both dense.
struct Tiles {
  int64_t outer, d, h, w, kd, kh, kw, inner;
  int64_t rows() const { return outer * d * h; }
  int64_t small() const { return w * inner; }
  int64_t large() const { return small() * kw; }
  // The large row that is the i-th of the kd * kh rows of a small one.
  GPFAST_INLINE int64_t row(int64_t small, int64_t i) const {
    return ((small / h * kd + i / kh) * h + small % h) * kh + i % kh;
  }
};

// sums[i] += the sum of x[i * kw ...] over a tile's width.
template <int fixed, typename T, typename A>
GPFAST_INLINE void add_across(const T* __restrict__ x, A* __restrict__ sums, int64_t n, int64_t width) {
  const int64_t kw = fixed ? fixed : width;
  for (int64_t i = 0; i < n; ++i) {
    A sum = widen(x[i * kw]);
    for (int64_t j = 1; j < kw; ++j) sum += widen(x[i * kw + j]);
    sums[i] += sum;
  }
}

// Tiles of 2x2, nearly all that there are: two large rows into a small one.
template <typename T, typename A>
GPFAST_INLINE void sum_pairs(const T* __restrict__ upper, const T* __restrict__ lower, T* __restrict__ out, const Tiles& s,
                             A scale) {
  if (s.inner == 1)
    for (int64_t i = 0; i < s.w; ++i)
      out[i] = narrow<T>((widen(upper[2 * i]) + widen(upper[2 * i + 1]) + widen(lower[2 * i]) + widen(lower[2 * i + 1])) * scale);
  else
    for (int64_t i = 0; i < s.w; ++i, upper += 2 * s.inner, lower += 2 * s.inner, out += s.inner)
      for (int64_t c = 0; c < s.inner; ++c)
        out[c] = narrow<T>((widen(upper[c]) + widen(upper[s.inner + c]) + widen(lower[c]) + widen(lower[s.inner + c])) * scale);
}

template <typename T, typename A>
GPFAST_INLINE void sum_row(const T* __restrict__ x, T* __restrict__ out, const Tiles& s, A scale, int64_t row) {
  // One tile across at a time where channels lie innermost, else as many as are held at once.
  const int64_t steps = s.inner == 1 ? 1 : s.w, length = s.inner == 1 ? s.w : s.inner;
  for (int64_t step = 0; step < steps; ++step)
    for (int64_t from = 0; from < length; from += kLanes) {
      const int64_t n = std::min(kLanes, length - from);
      A sums[kLanes] = {};
      for (int64_t i = 0; i < s.kd * s.kh; ++i) {
        const T* line = x + s.row(row, i) * s.large();
        if (s.inner > 1)
          for (int64_t j = 0; j < s.kw; ++j) {
            const T* tap = line + (step * s.kw + j) * s.inner + from;
            for (int64_t c = 0; c < n; ++c) sums[c] += widen(tap[c]);
          }
        else if (s.kw == 2)
          add_across<2>(line + from * 2, sums, n, 2);
        else
          add_across<0>(line + from * s.kw, sums, n, s.kw);
      }
      T* into = out + row * s.small() + step * s.inner + from;
      for (int64_t i = 0; i < n; ++i) into[i] = narrow<T>(sums[i] * scale);
    }
}

template <typename T>
GPFAST_INLINE void sum_rows(const T* x, T* out, const Tiles& s, int64_t divisor, int64_t begin, int64_t end) {
  const auto scale = Accumulate<T>(1) / static_cast<Accumulate<T>>(divisor);
  const bool pairs = s.kd * s.kh == 2 && s.kw == 2;
  for (int64_t row = begin; row < end; ++row) {
    if (pairs)
      sum_pairs(x + s.row(row, 0) * s.large(), x + s.row(row, 1) * s.large(), out + row * s.small(), s, scale);
    else
      sum_row(x, out, s, scale, row);
  }
}

template <int fixed, typename T, typename A>
GPFAST_INLINE void repeat_across(const T* __restrict__ x, T* __restrict__ out, int64_t n, int64_t width, A scale) {
  const int64_t kw = fixed ? fixed : width;
  for (int64_t i = 0; i < n; ++i) {
    const T value = narrow<T>(widen(x[i]) * scale);
    for (int64_t j = 0; j < kw; ++j) out[i * kw + j] = value;
  }
}

template <typename T>
GPFAST_INLINE void repeat_rows(const T* __restrict__ x, T* __restrict__ out, const Tiles& s, int64_t divisor, int64_t begin,
                               int64_t end) {
  using A = Accumulate<T>;
  const A scale = A(1) / static_cast<A>(divisor);
  for (int64_t row = begin; row < end; ++row) {
    const T* from = x + row * s.small();
    T* first = out + s.row(row, 0) * s.large();
    if (s.inner > 1)
      for (int64_t i = 0; i < s.w; ++i) {
        T* tile = first + i * s.kw * s.inner;
        for (int64_t c = 0; c < s.inner; ++c) tile[c] = narrow<T>(widen(from[i * s.inner + c]) * scale);
        for (int64_t j = 1; j < s.kw; ++j) std::memcpy(tile + j * s.inner, tile, s.inner * sizeof(T));
      }
    else if (s.kw == 2)
      repeat_across<2>(from, first, s.w, 2, scale);
    else
      repeat_across<0>(from, first, s.w, s.kw, scale);
    for (int64_t i = 1; i < s.kd * s.kh; ++i) std::memcpy(out + s.row(row, i) * s.large(), first, s.large() * sizeof(T));
  }
}

#define GPFAST_DEFINE(T)                                                                                                      \
  GPFAST_CLONES void sum_range(const T* x, T* out, const Tiles& s, int64_t divisor, int64_t begin, int64_t end) {             \
    sum_rows(x, out, s, divisor, begin, end);                                                                                 \
  }                                                                                                                           \
  GPFAST_CLONES void repeat_range(const T* x, T* out, const Tiles& s, int64_t divisor, int64_t begin, int64_t end) {          \
    repeat_rows(x, out, s, divisor, begin, end);                                                                              \
  }
GPFAST_FOR_EACH_DTYPE(GPFAST_DEFINE)
#undef GPFAST_DEFINE

at::MemoryFormat format(const at::Tensor& x, at::IntArrayRef tile, bool channels_last) {
  TORCH_CHECK(tile.size() == 2 || tile.size() == 3, "tiles: a tile has 2 or 3 dimensions, and is ", tile);
  const int64_t spatial = tile.size();
  TORCH_CHECK(x.dim() == spatial + 1 || x.dim() == spatial + 2, "tiles: x is ", x.sizes(), " for a tile ", tile);
  if (!channels_last || x.dim() == spatial + 1) return at::MemoryFormat::Contiguous;
  return spatial == 2 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::ChannelsLast3d;
}

// `small` are the sizes of the small tensor.
Tiles tiles(at::IntArrayRef small, at::IntArrayRef tile, at::MemoryFormat layout) {
  const size_t spatial = tile.size(), batch = small.size() - spatial;
  Tiles s{1, 1, small[batch + spatial - 2], small.back(), 1, tile[spatial - 2], tile.back(), 1};
  if (spatial == 3) s.d = small[batch], s.kd = tile[0];
  const bool contiguous = layout == at::MemoryFormat::Contiguous;
  s.outer = contiguous && batch == 2 ? small[0] * small[1] : small[0];
  if (!contiguous) s.inner = small[1];
  return s;
}

template <typename F>
void for_each_row(const Tiles& s, F f) {
  const int64_t row = std::max<int64_t>(1, s.large() * s.kd * s.kh);
  at::parallel_for(0, s.rows(), std::max<int64_t>(1, kGrain / row), f);
}

at::Tensor sum_tiles_cpu(const at::Tensor& large, at::IntArrayRef tile, int64_t divisor, bool channels_last) {
  const auto layout = format(large, tile, channels_last);
  std::vector<int64_t> sizes = large.sizes().vec();
  for (size_t i = 0; i < tile.size(); ++i) {
    auto& size = sizes[sizes.size() - tile.size() + i];
    TORCH_CHECK(tile[i] > 0 && size % tile[i] == 0, "sum_tiles: tiles ", tile, " do not cover x of ", large.sizes());
    size /= tile[i];
  }
  const at::Tensor x = large.contiguous(layout);
  at::Tensor out = at::empty(sizes, x.options(), layout);
  const Tiles s = tiles(sizes, tile, layout);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "sum_tiles", [&] {
    const auto* from = x.const_data_ptr<scalar_t>();
    auto* to = out.mutable_data_ptr<scalar_t>();
    for_each_row(s, [&](int64_t begin, int64_t end) { sum_range(from, to, s, divisor, begin, end); });
  });
  return out;
}

std::vector<int64_t> repeated(at::IntArrayRef sizes, at::IntArrayRef tile) {
  std::vector<int64_t> out = sizes.vec();
  for (size_t i = 0; i < tile.size(); ++i) out[out.size() - tile.size() + i] *= tile[i];
  return out;
}

at::Tensor repeat_tiles_cpu(const at::Tensor& small, at::IntArrayRef tile, int64_t divisor, bool channels_last) {
  const auto layout = format(small, tile, channels_last);
  const at::Tensor x = small.contiguous(layout);
  at::Tensor out = at::empty(repeated(x.sizes(), tile), x.options(), layout);
  const Tiles s = tiles(x.sizes(), tile, layout);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "repeat_tiles", [&] {
    const auto* from = x.const_data_ptr<scalar_t>();
    auto* to = out.mutable_data_ptr<scalar_t>();
    for_each_row(s, [&](int64_t begin, int64_t end) { repeat_range(from, to, s, divisor, begin, end); });
  });
  return out;
}

at::Tensor sum_tiles_plain(const at::Tensor& large, at::IntArrayRef tile, int64_t divisor, bool channels_last) {
  const auto layout = format(large, tile, channels_last);
  const at::Tensor x = large.contiguous(layout);
  if (tile.size() == 2) return at::avg_pool2d(x, tile, tile, 0, false, true, divisor);
  return at::avg_pool3d(x, tile, tile, 0, false, true, divisor).contiguous(layout);
}

at::Tensor repeat_tiles_plain(const at::Tensor& small, at::IntArrayRef tile, int64_t divisor, bool channels_last) {
  const auto layout = format(small, tile, channels_last);
  // Of the pooled tensor the backward reads sizes and layout: what it writes serves as that.
  const bool plane = tile.size() == 2;
  at::Tensor out = at::empty(repeated(small.sizes(), tile), small.options(), plane ? layout : at::MemoryFormat::Contiguous);
  if (plane) return at::avg_pool2d_backward_out(out, small.contiguous(layout), out, tile, tile, 0, false, true, divisor);
  return at::avg_pool3d_backward_out(out, small, out, tile, tile, 0, false, true, divisor).contiguous(layout);
}

auto operation(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<decltype(sum_tiles)>();
}

}  // namespace

at::Tensor sum_tiles(const at::Tensor& x, at::IntArrayRef tile, int64_t divisor, bool channels_last) {
  static const auto op = operation("gpfast::sum_tiles");
  return op.call(x, tile, divisor, channels_last);
}

at::Tensor repeat_tiles(const at::Tensor& x, at::IntArrayRef tile, int64_t divisor, bool channels_last) {
  static const auto op = operation("gpfast::repeat_tiles");
  return op.call(x, tile, divisor, channels_last);
}

TORCH_LIBRARY_FRAGMENT(gpfast, m) {
  m.def("sum_tiles(Tensor x, int[] tile, int divisor, bool channels_last=False) -> Tensor");
  m.def("repeat_tiles(Tensor x, int[] tile, int divisor, bool channels_last=False) -> Tensor");
}

TORCH_LIBRARY_IMPL(gpfast, CPU, m) {
  m.impl("sum_tiles", &sum_tiles_cpu);
  m.impl("repeat_tiles", &repeat_tiles_cpu);
}

TORCH_LIBRARY_IMPL(gpfast, CompositeExplicitAutograd, m) {
  m.impl("sum_tiles", &sum_tiles_plain);
  m.impl("repeat_tiles", &repeat_tiles_plain);
}

}  // namespace gpfast

#include "ops/gradient_norm.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <cmath>
#include <vector>

#include "ops/rows.h"
#include "ops/simd.h"

namespace gpfast {
namespace {

// phi(n) and phi'(n)/n of one norm, computed in A.
template <typename A>
struct Penalty {
  A center;
  bool one_sided;

  // No max(): a NaN compares false, and passes.
  GPFAST_INLINE A excess(A norm) const { return one_sided && norm - center <= 0 ? A(0) : norm - center; }
  GPFAST_INLINE A value(A norm, A square) const { return center == 0 ? square : excess(norm) * excess(norm); }
  GPFAST_INLINE A coefficient(A norm) const {
    if (center == 0) return 2;
    return norm == 0 ? A(0) : 2 * excess(norm) / norm;
  }
  GPFAST_INLINE bool vanishes(A norm) const { return center != 0 && (norm == 0 || (one_sided && norm - center <= 0)); }
};

template <typename T>
GPFAST_INLINE void scale_range(const T* __restrict__ in, Accumulate<T> factor, T* __restrict__ out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = narrow<T>(factor * widen(in[i]));
}

// From a row's sum of squares to its norm, its penalty and the factor of its seed.
template <typename A>
struct Finish {
  Penalty<A> penalty;
  double eps, scale;
  A *norms, *values;

  GPFAST_INLINE A operator()(int64_t row, double sum) const {
    const A norm = static_cast<A>(std::sqrt(sum + eps));
    norms[row] = norm;
    values[row] = penalty.value(norm, static_cast<A>(sum + eps));
    return static_cast<A>(scale * penalty.coefficient(norm));
  }
};

// Rows [begin, end): a row's seed is written while the row is in the cache. seed: like gradient, or null.
template <typename T>
GPFAST_INLINE void finish_rows(const T* gradient, const Finish<Accumulate<T>>& finish, T* seed, int64_t cols, int64_t begin,
                               int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* g = gradient + row * cols;
    double sum = 0;
    for (int64_t i = 0; i < cols; i += kChunk) sum += chunk_sum_of_squares(g + i, std::min(kChunk, cols - i));
    const auto factor = finish(row, sum);
    if (seed) scale_range(g, factor, seed + row * cols, cols);
  }
}

// The factor of a row's seed, from the norm that was saved and what arrives in backward.
template <typename A>
struct SeedFactor {
  Penalty<A> penalty;
  double scale;
  const A *norms, *cotangent;
  bool shared;  // one cotangent for all rows

  GPFAST_INLINE A operator()(int64_t row) const {
    // An exact zero, whatever the cotangent.
    if (penalty.vanishes(norms[row])) return 0;
    return static_cast<A>(scale * cotangent[shared ? 0 : row] * penalty.coefficient(norms[row]));
  }
};

template <typename T>
GPFAST_INLINE void seed_range(const T* gradient, const SeedFactor<Accumulate<T>>& factor, T* seed, int64_t cols, int64_t begin,
                              int64_t end) {
  for (int64_t row = begin / cols; begin < end; ++row) {
    const int64_t stop = std::min(end, (row + 1) * cols);
    scale_range(gradient + begin, factor(row), seed + begin, stop - begin);
    begin = stop;
  }
}

#define GPFAST_DEFINE(T)                                                                                                     \
  GPFAST_CLONES void whole_rows(const T* gradient, const Finish<Accumulate<T>>& finish, T* seed, int64_t cols, int64_t begin, \
                                int64_t end) {                                                                               \
    finish_rows(gradient, finish, seed, cols, begin, end);                                                                   \
  }                                                                                                                          \
  GPFAST_CLONES void seed_elements(const T* gradient, const SeedFactor<Accumulate<T>>& factor, T* seed, int64_t cols,        \
                                   int64_t begin, int64_t end) {                                                             \
    seed_range(gradient, factor, seed, cols, begin, end);                                                                    \
  }                                                                                                                          \
  GPFAST_CLONES double sum_of_squares(const T* x, int64_t n) { return chunk_sum_of_squares(x, n); }                          \
  GPFAST_CLONES void scale_by(Accumulate<T> factor, const T* in, T* out, int64_t n) { scale_range(in, factor, out, n); }
GPFAST_FOR_EACH_DTYPE(GPFAST_DEFINE)
#undef GPFAST_DEFINE

#define GPFAST_DEFINE(A) \
  GPFAST_CLONES double sum(const A* x, int64_t n) { return sum_lanes<false>(x, n); }
GPFAST_DEFINE(float)
GPFAST_DEFINE(double)
#undef GPFAST_DEFINE

// Calls work(row, first column, columns) for every chunk of every row.
template <typename F>
void for_each_chunk(Rows block, const F& work) {
  const int64_t chunks = (block.cols + kChunk - 1) / kChunk;
  at::parallel_for(0, block.rows * chunks, kGrain / kChunk, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t first = c % chunks * kChunk;
      work(c / chunks, first, std::min(kChunk, block.cols - first));
    }
  });
}

// As finish_rows, with the same bits, where there are fewer rows than keep the threads busy: threads share the chunks of a row.
template <typename T>
void split_rows(const T* gradient, const Finish<Accumulate<T>>& finish, T* seed, Rows block) {
  const int64_t chunks = (block.cols + kChunk - 1) / kChunk;
  std::vector<double> sums(block.rows * chunks);
  for_each_chunk(block, [&](int64_t row, int64_t first, int64_t n) {
    sums[row * chunks + first / kChunk] = sum_of_squares(gradient + row * block.cols + first, n);
  });
  std::vector<Accumulate<T>> factors(block.rows);
  for (int64_t row = 0; row < block.rows; ++row) {
    double total = 0;
    for (int64_t c = 0; c < chunks; ++c) total += sums[row * chunks + c];
    factors[row] = finish(row, total);
  }
  if (!seed) return;
  for_each_chunk(block, [&](int64_t row, int64_t first, int64_t n) {
    scale_by(factors[row], gradient + row * block.cols + first, seed + row * block.cols + first, n);
  });
}

int64_t rows_a_thread(Rows block) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, block.cols)); }

template <typename A>
double total(const A* values, int64_t n) {
  std::vector<double> sums((n + kChunk - 1) / kChunk);
  for_each_chunk({1, n}, [&](int64_t, int64_t first, int64_t m) { sums[first / kChunk] = sum(values + first, m); });
  double all = 0;
  for (const double s : sums) all += s;
  return all;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> gradient_norm_cpu(const at::Tensor& gradient, int64_t keep, double center,
                                                                 bool one_sided, double eps, std::string_view reduction,
                                                                 bool with_seed, double weight) {
  const Rows block = dense_rows(gradient, keep, "gradient_norm: gradient");
  const bool mean = reduction == "mean";
  TORCH_CHECK(mean || reduction == "sum" || reduction == "none", "gradient_norm: unknown reduction ", reduction);
  const auto options = gradient.options().dtype(gradient.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  const auto norms = at::empty(gradient.sizes().slice(0, keep), options);
  auto value = at::empty(norms.sizes(), options);
  const auto seed = with_seed ? at::empty_like(gradient) : at::empty({0}, gradient.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, gradient.scalar_type(), "gradient_norm", [&] {
    using A = Accumulate<scalar_t>;
    const auto* g = gradient.const_data_ptr<scalar_t>();
    auto* s = with_seed ? seed.mutable_data_ptr<scalar_t>() : nullptr;
    auto* values = value.mutable_data_ptr<A>();
    const Finish<A> finish{{static_cast<A>(center), one_sided}, eps, mean ? weight / static_cast<double>(block.rows) : weight,
                           norms.mutable_data_ptr<A>(), values};
    const int threads = at::get_num_threads();
    if (threads > 1 && block.rows < 4 * threads && block.rows * block.cols >= 2 * kGrain) {
      split_rows(g, finish, s, block);
    } else {
      at::parallel_for(0, block.rows, rows_a_thread(block),
                       [&](int64_t begin, int64_t end) { whole_rows(g, finish, s, block.cols, begin, end); });
    }
    if (reduction == "none") {
      if (weight != 1) value.mul_(weight);
      return;
    }
    const double all = total(values, block.rows);
    value = at::empty({}, options);
    *value.mutable_data_ptr<A>() = static_cast<A>(weight * (mean ? all / static_cast<double>(block.rows) : all));
  });
  return {value, norms, seed};
}

at::Tensor gradient_norm_seed_cpu(const at::Tensor& gradient, const at::Tensor& norms, const at::Tensor& cotangent, int64_t keep,
                                  double center, bool one_sided, double scale) {
  const Rows block = dense_rows(gradient, keep, "gradient_norm_seed: gradient");
  TORCH_CHECK(norms.sizes() == gradient.sizes().slice(0, keep), "gradient_norm_seed: norms is ", norms.sizes(),
              " for a gradient of ", gradient.sizes(), " and keep ", keep);
  TORCH_CHECK(cotangent.dim() == 0 || cotangent.sizes() == norms.sizes(), "gradient_norm_seed: cotangent is ", cotangent.sizes(),
              " for norms of ", norms.sizes());
  const auto seed = at::empty_like(gradient);
  if (seed.numel() == 0) return seed;
  const auto n = norms.contiguous(), weights = cotangent.contiguous();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, gradient.scalar_type(), "gradient_norm_seed", [&] {
    using A = Accumulate<scalar_t>;
    const auto* g = gradient.const_data_ptr<scalar_t>();
    auto* out = seed.mutable_data_ptr<scalar_t>();
    const SeedFactor<A> factor{{static_cast<A>(center), one_sided}, scale, n.const_data_ptr<A>(), weights.const_data_ptr<A>(),
                               cotangent.dim() == 0};
    at::parallel_for(0, block.rows * block.cols, kGrain,
                     [&](int64_t begin, int64_t end) { seed_elements(g, factor, out, block.cols, begin, end); });
  });
  return seed;
}

TORCH_LIBRARY_IMPL(gpfast, CPU, m) {
  m.impl("gradient_norm", &gradient_norm_cpu);
  m.impl("gradient_norm_seed", &gradient_norm_seed_cpu);
}

}  // namespace gpfast

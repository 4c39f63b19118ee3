// The CPU kernels of the smooth activations: a piece's derivatives are laid out in the cache, then applied.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/as_strided.h>

#include <algorithm>

#include "ops/activation.h"
#include "ops/activation_formulas.h"
#include "ops/simd.h"

namespace gpfast {
namespace {

constexpr int64_t kPiece = 512;

template <template <typename> class Formula, typename A>
GPFAST_INLINE void fill(const A* __restrict__ x, formulas::Parameters<A> by, A* __restrict__ slope, A* __restrict__ curve,
                        int64_t n) {
  if (curve) {
    for (int64_t i = 0; i < n; ++i) {
      slope[i] = Formula<A>::slope(x[i], by);
      curve[i] = Formula<A>::curve(x[i], by);
    }
  } else {
    for (int64_t i = 0; i < n; ++i) slope[i] = Formula<A>::slope(x[i], by);
  }
}

// The formulas whose functions are calls, of functions that compilers vectorise: of sines up to kFarthest.
namespace in_loops {

template <typename A>
struct Sin {
  GPFAST_INLINE static A slope(A h, formulas::Parameters<A>) { return formulas::sines(h).cosine; }
  GPFAST_INLINE static A curve(A h, formulas::Parameters<A>) { return -formulas::sines(h).sine; }
};

template <typename A>
struct Cos {
  GPFAST_INLINE static A slope(A h, formulas::Parameters<A>) { return -formulas::sines(h).sine; }
  GPFAST_INLINE static A curve(A h, formulas::Parameters<A>) { return -formulas::sines(h).cosine; }
};

template <typename A>
struct Sinh {
  GPFAST_INLINE static A slope(A h, formulas::Parameters<A>) { return formulas::hyperbolics(h).cosine; }
  GPFAST_INLINE static A curve(A h, formulas::Parameters<A>) { return formulas::hyperbolics(h).sine; }
};

template <typename A>
struct Cosh {
  GPFAST_INLINE static A slope(A h, formulas::Parameters<A>) { return formulas::hyperbolics(h).sine; }
  GPFAST_INLINE static A curve(A h, formulas::Parameters<A>) { return formulas::hyperbolics(h).cosine; }
};

}  // namespace in_loops

// What lies beyond kFarthest, by the library.
template <template <typename> class Formula, typename A>
GPFAST_INLINE void fill_far(const A* x, formulas::Parameters<A> by, A* slope, A* curve, int64_t n) {
  constexpr A kFarthest = formulas::kFarthest<A>;
  int far = 0;
  for (int64_t i = 0; i < n; ++i) far |= x[i] > kFarthest || x[i] < -kFarthest;
  for (int64_t i = 0; far && i < n; ++i) {
    if (std::abs(x[i]) <= kFarthest) continue;
    slope[i] = Formula<A>::slope(x[i], by);
    if (curve) curve[i] = Formula<A>::curve(x[i], by);
  }
}

// s and, where it is not null, c of n numbers.
template <typename A>
GPFAST_INLINE void derivatives_of(const A* x, const Curve& by, A* slope, A* curve, int64_t n) {
  const formulas::Parameters<A> parameters{static_cast<A>(by.p), static_cast<A>(by.q), static_cast<A>(by.r)};
  switch (by.kind) {
#define GPFAST_CASE(name) \
  case Activation::k##name: return fill<formulas::name>(x, parameters, slope, curve, n);
    GPFAST_FOR_EACH_FUSED_ACTIVATION(GPFAST_CASE)
#undef GPFAST_CASE
    case Activation::kSin:
      fill<in_loops::Sin>(x, parameters, slope, curve, n);
      return fill_far<formulas::Sin>(x, parameters, slope, curve, n);
    case Activation::kCos:
      fill<in_loops::Cos>(x, parameters, slope, curve, n);
      return fill_far<formulas::Cos>(x, parameters, slope, curve, n);
    case Activation::kSinh: return fill<in_loops::Sinh>(x, parameters, slope, curve, n);
    case Activation::kCosh: return fill<in_loops::Cosh>(x, parameters, slope, curve, n);
    default: TORCH_INTERNAL_ASSERT(false);
  }
}

// In the loops below every operand may be written where it is read.

template <typename T, typename A>
GPFAST_INLINE void multiply(const T* z, const A* s, T* out, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = narrow<T>(s[i] * widen(z[i]));
}

template <typename T, typename A>
GPFAST_INLINE void multiply_both(const T* t, const T* a, const A* s, const A* c, T* out, T* bend, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const A x = widen(t[i]);
    bend[i] = narrow<T>(c[i] * widen(a[i]) * x);
    out[i] = narrow<T>(s[i] * x);
  }
}

template <typename T, typename A>
GPFAST_INLINE void multiply_add(const T* z, const A* s, T* into, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) into[i] = narrow<T>(widen(into[i]) + s[i] * widen(z[i]));
}

template <typename T>
GPFAST_INLINE void widen_all(const T* x, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = widen(x[i]);
}

}  // namespace

#define GPFAST_DEFINE(A)                                                                                         \
  GPFAST_CLONES void derivatives(const A* saved, const Curve& by, A* slope, A* curve, int64_t n) {               \
    derivatives_of(saved, by, slope, curve, n);                                                                  \
  }
GPFAST_DEFINE(float)
GPFAST_DEFINE(double)
#undef GPFAST_DEFINE

namespace {

#define GPFAST_DEFINE(T) \
  GPFAST_CLONES void to_wide(const T* x, float* out, int64_t n) { widen_all(x, out, n); }
GPFAST_DEFINE(at::Half)
GPFAST_DEFINE(at::BFloat16)
#undef GPFAST_DEFINE

#define GPFAST_DEFINE(T)                                                                                         \
  GPFAST_CLONES void scale(const T* z, const Accumulate<T>* s, T* out, int64_t n) { multiply(z, s, out, n); }    \
  GPFAST_CLONES void scale_both(const T* t, const T* a, const Accumulate<T>* s, const Accumulate<T>* c, T* out, T* bend, \
                                int64_t n) {                                                                     \
    multiply_both(t, a, s, c, out, bend, n);                                                                     \
  }                                                                                                              \
  GPFAST_CLONES void add_scaled(const T* z, const Accumulate<T>* s, T* into, int64_t n) { multiply_add(z, s, into, n); }
GPFAST_FOR_EACH_DTYPE(GPFAST_DEFINE)
#undef GPFAST_DEFINE

template <typename T>
struct Derivatives {
  using A = Accumulate<T>;
  A wide[kPiece], slope[kPiece], curve[kPiece];

  void find(const T* saved, const Curve& by, bool second, int64_t n) {
    const A* x = wide;
    if constexpr (std::is_same_v<T, A>) x = saved;
    else to_wide(saved, wide, n);
    derivatives(x, by, slope, second ? curve : nullptr, n);
  }
};

// Calls apply(derivatives, begin, n) for pieces of what was saved.
template <typename T, typename F>
void with_derivatives(const at::Tensor& saved, const Curve& by, bool second, const F& apply) {
  const T* from = saved.const_data_ptr<T>();
  at::parallel_for(0, saved.numel(), kGrain, [&](int64_t begin, int64_t end) {
    Derivatives<T> found;
    for (int64_t i = begin; i < end; i += kPiece) {
      const int64_t n = std::min(kPiece, end - i);
      found.find(from + i, by, second, n);
      apply(found, i, n);
    }
  });
}

// For activations without a vectorised kernel: the plain formula on pieces that stay in the cache, with all that it makes on the way.
// apply(piece), where piece(tensor) is that part of it.
template <typename F>
void in_plain_pieces(const at::Tensor& saved, const F& apply) {
  constexpr int64_t kPlainPiece = 1 << 14;
  at::parallel_for(0, saved.numel(), kPlainPiece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kPlainPiece) {
      const int64_t n = std::min(kPlainPiece, end - i);
      apply([i, n](const at::Tensor& z) { return at::as_strided(z, {n}, {1}, z.storage_offset() + i); });
    }
  });
}

}  // namespace

void slope_cpu(const at::Tensor& z, const at::Tensor& saved, const Curve& by, const at::Tensor& out) {
  if (!vectorised(by.kind))
    return in_plain_pieces(saved, [&](const auto& piece) { slope_plain(piece(z), piece(saved), by, piece(out)); });
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, z.scalar_type(), "slope", [&] {
    const auto* from = z.const_data_ptr<scalar_t>();
    auto* to = out.mutable_data_ptr<scalar_t>();
    with_derivatives<scalar_t>(saved, by, false, [&](const auto& found, int64_t begin, int64_t n) {
      scale(from + begin, found.slope, to + begin, n);
    });
  });
}

void slope_and_curve_cpu(const at::Tensor& t, const at::Tensor& a, const at::Tensor& saved, const Curve& by,
                         const at::Tensor& out, const at::Tensor& bend) {
  if (!vectorised(by.kind))
    return in_plain_pieces(saved, [&](const auto& piece) {
      slope_and_curve_plain(piece(t), piece(a), piece(saved), by, piece(out), piece(bend));
    });
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, t.scalar_type(), "slope_and_curve", [&] {
    const auto* tangent = t.const_data_ptr<scalar_t>();
    const auto* adjoint = a.const_data_ptr<scalar_t>();
    auto *to = out.mutable_data_ptr<scalar_t>(), *second = bend.mutable_data_ptr<scalar_t>();
    with_derivatives<scalar_t>(saved, by, true, [&](const auto& found, int64_t begin, int64_t n) {
      scale_both(tangent + begin, adjoint + begin, found.slope, found.curve, to + begin, second + begin, n);
    });
  });
}

void add_slope_cpu(const at::Tensor& into, const at::Tensor& z, const at::Tensor& saved, const Curve& by) {
  if (!vectorised(by.kind))
    return in_plain_pieces(saved, [&](const auto& piece) { add_slope_plain(piece(into), piece(z), piece(saved), by); });
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, z.scalar_type(), "add_slope_", [&] {
    const auto* from = z.const_data_ptr<scalar_t>();
    auto* to = into.mutable_data_ptr<scalar_t>();
    with_derivatives<scalar_t>(saved, by, false, [&](const auto& found, int64_t begin, int64_t n) {
      add_scaled(from + begin, found.slope, to + begin, n);
    });
  });
}

}  // namespace gpfast

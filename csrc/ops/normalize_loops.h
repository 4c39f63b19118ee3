#pragma once
// The loops that evaluate the formulas of a norm on the CPU.
#include <algorithm>

#include "ops/normalize.h"
#include "ops/normalize_formulas.h"
#include "ops/simd.h"

namespace gpfast {

// What a loop reads at i: an element of a vector (A const*), one value for all, or one value times what another reads.
template <typename A>
struct Same {
  A value;
  GPFAST_INLINE A operator[](int64_t) const { return value; }
};
template <typename A>
GPFAST_INLINE Same<A> from(Same<A> same, int64_t) {
  return same;
}
template <typename A>
GPFAST_INLINE const A* from(const A* vector, int64_t first) {
  return vector + first;
}
template <typename W, typename A>
struct Times {
  W w;
  A factor;
  GPFAST_INLINE A operator[](int64_t i) const { return w[i] * factor; }
};

// sums += of w z and w z d.
template <typename T, typename W>
GPFAST_INLINE void add_line_sums(const T* z, const T* h, W w, Accumulate<T> mean, int64_t n, double* sums) {
  for (int64_t first = 0; first < n; first += kChunk) {
    const int64_t end = std::min(n, first + kChunk);
    Accumulate<T> of_z = 0, of_zd = 0;
#pragma omp simd reduction(+ : of_z, of_zd)
    for (int64_t i = first; i < end; ++i) {
      const auto u = w[i] * widen(z[i]);
      of_z += u;
      of_zd += u * (widen(h[i]) - mean);
    }
    sums[kZ] += of_z;
    sums[kZD] += of_zd;
  }
}

// sums += of t, t d, w a, w a d and w a t.
template <typename T, typename W>
GPFAST_INLINE void add_bend_sums(const T* t, const T* a, const T* h, W w, Accumulate<T> mean, int64_t n, double* sums) {
  for (int64_t first = 0; first < n; first += kChunk) {
    const int64_t end = std::min(n, first + kChunk);
    Accumulate<T> of_t = 0, of_td = 0, of_u = 0, of_ud = 0, of_ut = 0;
#pragma omp simd reduction(+ : of_t, of_td, of_u, of_ud, of_ut)
    for (int64_t i = first; i < end; ++i) {
      const auto x = widen(t[i]), u = w[i] * widen(a[i]), d = widen(h[i]) - mean;
      of_t += x;
      of_td += x * d;
      of_u += u;
      of_ud += u * d;
      of_ut += u * x;
    }
    sums[kT] += of_t;
    sums[kTD] += of_td;
    sums[kU] += of_u;
    sums[kUD] += of_ud;
    sums[kUT] += of_ut;
  }
}

// As above without weights, of one pixel of n channels, each with a mean and sums of its own: sums is (kLineSums, n).
template <typename T>
GPFAST_INLINE void add_pixel_line_sums(const T* z, const T* h, const Accumulate<T>* mean, int64_t n, Accumulate<T>* sums) {
#pragma GCC ivdep
  for (int64_t c = 0; c < n; ++c) {
    const auto x = widen(z[c]);
    sums[c] += x;
    sums[n + c] += x * (widen(h[c]) - mean[c]);
  }
}

template <typename T>
GPFAST_INLINE void add_pixel_bend_sums(const T* t, const T* a, const T* h, const Accumulate<T>* mean, int64_t n,
                                       Accumulate<T>* sums) {
#pragma GCC ivdep
  for (int64_t c = 0; c < n; ++c) {
    const auto x = widen(t[c]), u = widen(a[c]), d = widen(h[c]) - mean[c];
    sums[kT * n + c] += x;
    sums[kTD * n + c] += x * d;
    sums[kU * n + c] += u;
    sums[kUD * n + c] += u * d;
    sums[kUT * n + c] += u * x;
  }
}

// out = of_z z + of_d d + one (+ add). out may be z or add: elements are read before they are written, which ivdep promises.
template <typename T, typename Z, typename D, typename M>
GPFAST_INLINE void write_line(T* out, const T* z, const T* h, const T* add, Z of_z, D of_d, D one, M mean, int64_t n) {
  if (add) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i)
      out[i] = narrow<T>(of_z[i] * widen(z[i]) + of_d[i] * (widen(h[i]) - mean[i]) + one[i] + widen(add[i]));
  } else {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) out[i] = narrow<T>(of_z[i] * widen(z[i]) + of_d[i] * (widen(h[i]) - mean[i]) + one[i]);
  }
}

// out, which may be t, = w[0] t + w[1] d + w[2], and bent, which may be a, = w[3] a + p[0] t + p[1] d + p[2].
template <typename T, typename W, typename P, typename M>
GPFAST_INLINE void write_bend(T* out, T* bent, const T* t, const T* a, const T* h, const W* w, const P* p, M mean, int64_t n) {
  const W of_t = w[0], of_d = w[1], one = w[2], of_a = w[3];
  const P and_t = p[0], and_d = p[1], and_one = p[2];
  if (out) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      const auto x = widen(t[i]), u = widen(a[i]), d = widen(h[i]) - mean[i];
      out[i] = narrow<T>(of_t[i] * x + of_d[i] * d + one[i]);
      bent[i] = narrow<T>(of_a[i] * u + and_t[i] * x + and_d[i] * d + and_one[i]);
    }
  } else {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i)
      bent[i] = narrow<T>(of_a[i] * widen(a[i]) + and_t[i] * widen(t[i]) + and_d[i] * (widen(h[i]) - mean[i]) + and_one[i]);
  }
}

// What is the same for both kernels. mean and weight: or null.
template <typename T>
struct Norm {
  using A = Accumulate<T>;

  NormBlock block;
  const T* h;
  const A *mean, *rstd, *weight;

  A mean_of(int64_t group) const { return mean ? mean[group] : A(0); }
  A weight_of(int64_t channel) const { return weight ? weight[channel] : A(1); }
  Group<double> group(int64_t i) const {
    const int64_t members = block.depth * block.length * (block.order == BlockOrder::batch ? block.samples : 1);
    return {static_cast<double>(members), static_cast<double>(rstd[i]), mean != nullptr};
  }
};

// The coefficients of what a kernel writes in one group: those that a channel's weight multiplies, and the others.
template <typename A>
struct Coefficients {
  A weighted[4] = {}, plain[3] = {};
};

// out = J^T z + add. out, add and the parts: or null. Parts are sums for the parameters, (parts, C), to be added up.
template <typename T>
struct Adjoint : Norm<T> {
  using A = Accumulate<T>;
  static constexpr int kSums = kLineSums, kWeighted = 1, kPlain = 2, kFirstWeightedSum = kZ;

  T* out;
  const T *z, *add;
  A *weight_parts, *bias_parts;

  bool writes() const { return out; }
  template <typename W>
  GPFAST_INLINE void sum(int64_t at, W w, A mean, int64_t n, double* sums) const {
    add_line_sums(z + at, this->h + at, w, mean, n, sums);
  }
  GPFAST_INLINE void sum_pixel(int64_t at, const A* mean, int64_t n, A* sums) const {
    add_pixel_line_sums(z + at, this->h + at, mean, n, sums);
  }
  Coefficients<A> coefficients(Group<double> group, const double* sums) const {
    const auto line = line_of(group, sums[kZ], sums[kZD]);
    return {{static_cast<A>(line.of_z)}, {static_cast<A>(line.of_d), static_cast<A>(line.one)}};
  }
  // What a channel with these sums gives its parameters.
  void put_parts(int64_t at, const Coefficients<A>& line, const double* own) const {
    if (weight_parts) weight_parts[at] = static_cast<A>(own[kZD] * line.weighted[0]);
    if (bias_parts) bias_parts[at] = static_cast<A>(own[kZ]);
  }
  GPFAST_INLINE void add_row_parts(int64_t at, int64_t part, A mean, A rstd, const Coefficients<A>&, int64_t n) const {
    const T *x = z + at, *h = this->h + at;
    A *of_weight = weight_parts + part, *of_bias = bias_parts + part;
    if (weight_parts)
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) of_weight[i] += widen(x[i]) * ((widen(h[i]) - mean) * rstd);
    if (bias_parts)
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) of_bias[i] += widen(x[i]);
  }
  template <typename W, typename P, typename M>
  GPFAST_INLINE void write(int64_t at, const W* w, const P* p, M mean, int64_t n) const {
    write_line(out + at, z + at, this->h + at, add ? add + at : nullptr, w[0], p[0], p[1], mean, n);
  }
};

// out = J t, bent = d/dh <a, J t>. out, bent, a and weight_parts: or null; without a there are neither bent nor parts.
template <typename T>
struct Tangent : Norm<T> {
  using A = Accumulate<T>;
  static constexpr int kSums = kBendSums, kWeighted = 4, kPlain = 3, kFirstWeightedSum = kU;

  T *out, *bent;
  const T *t, *a;
  A* weight_parts;

  bool writes() const { return out || bent; }
  template <typename W>
  GPFAST_INLINE void sum(int64_t at, W w, A mean, int64_t n, double* sums) const {
    if (a)
      add_bend_sums(t + at, a + at, this->h + at, w, mean, n, sums);
    else
      add_line_sums(t + at, this->h + at, Same<A>{1}, mean, n, sums);
  }
  GPFAST_INLINE void sum_pixel(int64_t at, const A* mean, int64_t n, A* sums) const {
    if (a)
      add_pixel_bend_sums(t + at, a + at, this->h + at, mean, n, sums);
    else
      add_pixel_line_sums(t + at, this->h + at, mean, n, sums);
  }
  Coefficients<A> coefficients(Group<double> group, const double* sums) const {
    const auto bend = bend_of(group, sums);
    const A of_d = static_cast<A>(bend.line.of_d);
    return {{static_cast<A>(bend.line.of_z), of_d, static_cast<A>(bend.line.one), of_d},
            {static_cast<A>(bend.of_t), static_cast<A>(bend.of_d), static_cast<A>(bend.one)}};
  }
  void put_parts(int64_t at, const Coefficients<A>& line, const double* own) const {
    const A of_t = line.weighted[0], of_d = line.weighted[1], one = line.weighted[2];
    if (weight_parts) weight_parts[at] = static_cast<A>(of_t * own[kUT] + of_d * own[kUD] + one * own[kU]);
  }
  GPFAST_INLINE void add_row_parts(int64_t at, int64_t part, A mean, A, const Coefficients<A>& line, int64_t n) const {
    if (!weight_parts) return;
    const T *x = t + at, *u = a + at, *h = this->h + at;
    A* of_weight = weight_parts + part;
    const A of_t = line.weighted[0], of_d = line.weighted[1], one = line.weighted[2];
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i)
      of_weight[i] += widen(u[i]) * (of_t * widen(x[i]) + of_d * (widen(h[i]) - mean) + one);
  }
  template <typename W, typename P, typename M>
  GPFAST_INLINE void write(int64_t at, const W* w, const P* p, M mean, int64_t n) const {
    if (bent)
      write_bend(out ? out + at : nullptr, bent + at, t + at, a + at, this->h + at, w, p, mean, n);
    else
      write_line(out + at, t + at, this->h + at, static_cast<const T*>(nullptr), w[0], w[1], w[2], mean, n);
  }
};

}  // namespace gpfast

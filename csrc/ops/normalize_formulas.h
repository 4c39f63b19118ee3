#pragma once
// The formulas of the norms, for the CPU's kernels and the CUDA kernels. For a group of n elements h with mean m and inverse
// deviation r, and d = h - m, the Jacobian of h -> d r is symmetric: adjoint and tangent are the same line in z and d,
//   J z = r (z - mean(z) - d r p),  p = mean(z d) r
// and the derivative by h of <u, J t>, with q = mean(t d) r and s = mean(u t) - mean(u) mean(t), is a line in u, t and d:
//   -r^2 (q (u - mean(u)) + p (t - mean(t)) + (s - 3 p q) d r)
// A norm by root mean squares has d = h, and zero for the means of z, u and t alone.
#include "ops/inline.h"

namespace gpfast {

// Sums of a channel or a group; u is the adjoint a, times the weight where the sum is a group's.
enum { kZ, kZD, kLineSums };
enum { kT, kTD, kU, kUD, kUT, kBendSums };

// V: what coefficients are computed in.
template <typename V>
struct Group {
  V count, rstd;
  bool centered;

  GPFAST_INLINE V mean(V sum) const { return centered ? sum / count : 0; }
  GPFAST_INLINE V projection(V sum_of_zd) const { return sum_of_zd / count * rstd; }
};

// J z = of_z z + of_d d + one
template <typename V>
struct LineOf {
  V of_z, of_d, one;
};
template <typename V>
GPFAST_INLINE LineOf<V> line_of(Group<V> group, V sum_of_z, V sum_of_zd) {
  const V r = group.rstd;
  return {r, -r * r * group.projection(sum_of_zd), -r * group.mean(sum_of_z)};
}

// J t = line, d/dh <u, J t> = of_u u + of_t t + of_d d + one, where of_u is line.of_d
template <typename V>
struct BendOf {
  LineOf<V> line;
  V of_t, of_d, one;
};
template <typename V>
GPFAST_INLINE BendOf<V> bend_of(Group<V> group, const V* sums) {
  const V r = group.rstd, p = group.projection(sums[kUD]), q = group.projection(sums[kTD]);
  const V mean_t = group.mean(sums[kT]), mean_u = group.mean(sums[kU]);
  const V s = sums[kUT] / group.count - mean_u * mean_t;
  return {line_of(group, sums[kT], sums[kTD]), -r * r * p, -r * r * r * (s - 3 * p * q), r * r * (q * mean_u + p * mean_t)};
}

}  // namespace gpfast

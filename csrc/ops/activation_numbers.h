#pragma once
// What the formulas of smooth activations are made of, for numbers: on the CPU in loops that compilers vectorise, and in CUDA
// kernels. No torch headers.
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#if __has_include(<bit>)
#include <bit>
#endif

#include "ops/inline.h"

namespace gpfast::formulas {

template <typename A>
using IfNumber = std::enable_if_t<std::is_floating_point_v<A>>;

// Where a formula names these, numbers find them here and tensors find PyTorch's.
using std::cos, std::cosh, std::pow, std::sin, std::sinh;

template <typename To, typename From>
GPFAST_INLINE To bits_as(From from) {
#ifdef __cpp_lib_bit_cast
  return std::bit_cast<To>(from);
#else
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
#endif
}

// 1 / k!, k from 0
template <typename A, size_t n = sizeof(A) == 8 ? 14 : 8>
constexpr auto kInverseFactorials = [] {
  std::array<A, n> values{};
  double value = 1;
  for (size_t k = 0; k < values.size(); ++k, value /= static_cast<double>(k)) values[k] = static_cast<A>(value);
  return values;
}();

// exp to one unit in the last place, without branches. It stays finite and positive: beyond the ends it is that of the ends.
template <typename A, typename = IfNumber<A>>
GPFAST_INLINE A exp(A x) {
  constexpr bool kWide = sizeof(A) == 8;
  const A lowest = kWide ? -708 : -87, highest = kWide ? 709 : 88;
  x = x < lowest ? lowest : x > highest ? highest : x;
#ifdef __CUDA_ARCH__
  return ::exp(x);
#else
  constexpr int kMantissa = kWide ? 52 : 23;
  using Bits = std::conditional_t<kWide, uint64_t, uint32_t>;
  // x = n ln 2 + r. Adding 1.5 * 2^mantissa rounds to an integer, and leaves it in the low bits; n times the first part of ln 2
  // is exact.
  const A shift = kWide ? A(0x1.8p52) : A(0x1.8p23);
  const A shifted = x * A(1.4426950408889634) + shift, n = shifted - shift;
  const A r = x - n * (kWide ? A(0x1.62e42feep-1) : A(0x1.63p-1)) - n * (kWide ? A(0x1.a39ef35793c76p-33) : A(-0x1.bd0106p-13));
  constexpr auto& terms = kInverseFactorials<A>;
  A sum = terms.back();
  for (int k = static_cast<int>(terms.size()) - 2; k >= 0; --k) sum = sum * r + terms[k];
  const Bits one = bits_as<Bits>(A(1));
  return sum * bits_as<A>((bits_as<Bits>(shifted) << kMantissa) + one);
#endif
}

// The odd part of exp(x), or the even one; with every second term of the other sign those of exp(i x). For |x| <= 1.
template <bool odd, bool turning, typename A>
GPFAST_INLINE A half_of_exp(A x) {
  constexpr int kTerms = sizeof(A) == 8 ? 20 : 12;
  constexpr auto& terms = kInverseFactorials<A, kTerms>;
  const A square = turning ? -x * x : x * x;
  A sum = 0;
  for (int k = odd ? kTerms - 1 : kTerms - 2; k > 1; k -= 2) sum = (sum + terms[k]) * square;
  return odd ? x + x * sum : 1 + sum;
}

// sin x and cos x to one unit in the last place of 1, without branches, up to kFarthest: there pi / 2 times n is no longer exact.
template <typename A>
constexpr A kFarthest = sizeof(A) == 8 ? A(1e6) : A(12000);
template <typename A>
struct Sines {
  A sine, cosine;
};
template <typename A, typename = IfNumber<A>>
GPFAST_INLINE Sines<A> sines(A x) {
  constexpr bool kWide = sizeof(A) == 8;
  constexpr int kSign = kWide ? 62 : 30;
  using Bits = std::conditional_t<kWide, uint64_t, uint32_t>;
  // x = n pi / 2 + r, as in exp.
  const A shift = kWide ? A(0x1.8p52) : A(0x1.8p23);
  const A shifted = x * A(0.6366197723675814) + shift, n = shifted - shift;
  const A r = x - n * (kWide ? A(0x1.921fb544p0) : A(0x1.92p0)) - n * (kWide ? A(0x1.0b4611a6p-34) : A(0x1.fb4p-12)) -
              n * (kWide ? A(0x1.3198a2e037073p-69) : A(0x1.4442d2p-24));
  const A s = half_of_exp<true, true>(r), c = half_of_exp<false, true>(r);
  const auto quarter = bits_as<Bits>(shifted);
  const bool turned = (quarter & 1) != 0;
  const auto with_sign = [](A value, Bits sign) { return bits_as<A>(bits_as<Bits>(value) ^ (sign & 2) << kSign); };
  return {with_sign(turned ? c : s, quarter), with_sign(turned ? s : c, quarter + 1)};
}

// sinh x and cosh x to two units in the last place, without branches.
template <typename A>
struct Hyperbolics {
  A sine, cosine;
};
template <typename A, typename = IfNumber<A>>
GPFAST_INLINE Hyperbolics<A> hyperbolics(A x) {
  // exp(|x|) / 2, which is there where exp(|x|) no longer is.
  const A size = x < 0 ? -x : x;
  const bool far = size > (sizeof(A) == 8 ? 700 : 80);
  const A half = exp(far ? size - 16 : size) * (far ? A(0x1.0f2ebd0a8002p+22) : A(0.5)), rest = A(0.25) / half;
  const A large = x < 0 ? rest - half : half - rest;
  return {size < 1 ? half_of_exp<true, false>(x) : large, half + rest};
}

// sigmoid(x), and what it is short of 1, which a subtraction would round away.
template <typename V>
struct Sigmoids {
  V s, rest;
};
template <typename A, typename = IfNumber<A>>
GPFAST_INLINE Sigmoids<A> sigmoids(A x) {
  const A e = exp(-x), s = 1 / (1 + e);
  return {s, e * s};
}
template <typename A, typename = IfNumber<A>>
GPFAST_INLINE A constant(A, A value) {
  return value;
}
template <typename A, typename = IfNumber<A>>
GPFAST_INLINE A choose(bool condition, A yes, A no) {
  return condition ? yes : no;
}
// erfc(|h| / sqrt(2)) / 2, given exp(-h h / 2): (1 + 2 x) exp(x x) erfc(x) is a polynomial in (x - 3) / (x + 3).
GPFAST_INLINE float normal_tail(float h, float e) {
  constexpr float kTerms[] = {1.25300806f,     -0.1356211f,    -0.0475621561f,  0.129644721f,    -0.119275281f,   0.0683131967f,
                              -0.0237635597f, 0.00250677867f, 0.00187506025f, -0.00073408205f, -9.25376913e-5f, 8.00745497e-5f};
  const float x = std::abs(h) * 0.707106781f, u = (x - 3) / (x + 3);
  float sum = kTerms[11];
  for (int k = 10; k >= 0; --k) sum = sum * u + kTerms[k];
  return 0.5f * e * sum / (1 + 2 * x);
}
GPFAST_INLINE double normal_tail(double h, double) { return 0.5 * std::erfc(std::abs(h) * 0.7071067811865476); }
// The normal distribution's mass below h, given exp(-h h / 2).
template <typename A, typename = IfNumber<A>>
GPFAST_INLINE A normal_below(A h, A e) {
  const A tail = normal_tail(h, e);
  return h > 0 ? 1 - tail : tail;
}

}  // namespace gpfast::formulas

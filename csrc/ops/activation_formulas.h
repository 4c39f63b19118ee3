#pragma once
// The first and second derivatives of each smooth activation, written once: for numbers, on the CPU and in CUDA kernels, and, by
// way of ops/activation_tensors.h, for tensors. h is the activation's input, y its result.
#include "ops/activation_numbers.h"

namespace gpfast::formulas {

// A constant in the type that V is computed in.
template <typename V>
using Number = std::conditional_t<std::is_floating_point_v<V>, V, double>;

template <typename V>
struct Parameters {
  Number<V> p, q, r;
};

// 1 - y y, which near the ends only this form does not round away.
template <typename V>
struct Tanh {
  GPFAST_INLINE static V slope(V y, Parameters<V>) { return (1 - y) * (1 + y); }
  GPFAST_INLINE static V curve(V y, Parameters<V>) { return -2 * y * ((1 - y) * (1 + y)); }
};

template <typename V>
struct Sigmoid {
  GPFAST_INLINE static V slope(V y, Parameters<V>) { return y * (1 - y); }
  GPFAST_INLINE static V curve(V y, Parameters<V>) { return y * (1 - y) * (1 - 2 * y); }
};

// log(1 + exp(p h)) / p where p h < q, else h
template <typename V>
struct Softplus {
  GPFAST_INLINE static V slope(V h, Parameters<V> by) { return choose(h * by.p > by.q, Number<V>(1), sigmoids(h * by.p).s); }
  GPFAST_INLINE static V curve(V h, Parameters<V> by) {
    const auto [s, rest] = sigmoids(h * by.p);
    return choose(h * by.p < by.q, s * rest * by.p, Number<V>(0));
  }
};

// p (exp(q h) - 1) where h <= 0, else r h
template <typename V>
struct Elu {
  GPFAST_INLINE static V slope(V h, Parameters<V> by) { return choose(h <= 0, exp(h * by.q) * (by.p * by.q), by.r); }
  GPFAST_INLINE static V curve(V h, Parameters<V> by) {
    return choose(h < 0, exp(h * by.q) * (by.p * by.q * by.q), Number<V>(0));
  }
};

template <typename V>
struct EluOfResult {
  GPFAST_INLINE static V slope(V y, Parameters<V> by) { return choose(y <= 0, (y + by.p) * by.q, by.r); }
  GPFAST_INLINE static V curve(V y, Parameters<V> by) { return choose(y < 0, (y + by.p) * (by.q * by.q), Number<V>(0)); }
};

template <typename V>
struct Silu {
  GPFAST_INLINE static V slope(V h, Parameters<V>) {
    const auto [s, rest] = sigmoids(h);
    return s * (1 + h * rest);
  }
  GPFAST_INLINE static V curve(V h, Parameters<V>) {
    const auto [s, rest] = sigmoids(h);
    return s * rest * (2 + h * (rest - s));
  }
};

template <typename V>
constexpr Number<V> kDensity = 0.3989422804014327;  // 1 / sqrt(2 pi)

template <typename V>
struct Gelu {
  GPFAST_INLINE static V slope(V h, Parameters<V>) {
    const V e = exp(h * h * Number<V>(-0.5));
    return normal_below(h, e) + h * e * kDensity<V>;
  }
  GPFAST_INLINE static V curve(V h, Parameters<V>) {
    const V e = exp(h * h * Number<V>(-0.5));
    return e * kDensity<V> * (2 - h * h);
  }
};

// h (1 + tanh u) / 2 = h s with s = sigmoid(2 u), 2 u = k (h + 0.044715 h^3); v and w are the derivatives of 2 u.
template <typename V>
struct GeluTanh {
  static constexpr Number<V> k = 1.5957691216057308, k3 = 3 * 0.044715 * k;  // k = 2 sqrt(2 / pi)
  GPFAST_INLINE static V slope(V h, Parameters<V>) {
    const V square = h * h, v = k + k3 * square;
    const auto [s, rest] = sigmoids(h * (k + k3 / 3 * square));
    return s * (1 + h * rest * v);
  }
  GPFAST_INLINE static V curve(V h, Parameters<V>) {
    const V square = h * h, v = k + k3 * square, w = 2 * k3 * h;
    const auto [s, rest] = sigmoids(h * (k + k3 / 3 * square));
    return s * rest * (2 * v + h * ((rest - s) * v * v + w));
  }
};

// h w with w = tanh(log(1 + e)) = n / (n + 2), where e = exp(h) and n = e (e + 2). Beyond 40, w = 1.
template <typename V>
struct Mish {
  GPFAST_INLINE static V slope(V h, Parameters<V>) {
    const V e = exp(choose(h < 40, h, Number<V>(40))), n = e * (e + 2);
    return n / (n + 2) + h * (e / (1 + e)) * (4 * (n + 1) / ((n + 2) * (n + 2)));
  }
  GPFAST_INLINE static V curve(V h, Parameters<V>) {
    const V e = exp(choose(h < 40, h, Number<V>(40))), n = e * (e + 2), s = e / (1 + e);
    return s * (4 * (n + 1) / ((n + 2) * (n + 2))) * (2 + h * (1 - s - 2 * s * (n / (n + 2))));
  }
};

template <typename V>
struct Hardswish {
  GPFAST_INLINE static V slope(V h, Parameters<V>) {
    return choose(h > -3, choose(h < 3, h / 3 + Number<V>(0.5), Number<V>(1)), Number<V>(0));
  }
  GPFAST_INLINE static V curve(V h, Parameters<V>) {
    return choose(h > -3, choose(h < 3, constant(h, Number<V>(1.0 / 3)), Number<V>(0)), Number<V>(0));
  }
};

// exp(p h) - q
template <typename V>
struct Exponential {
  GPFAST_INLINE static V slope(V y, Parameters<V> by) { return (y + by.q) * by.p; }
  GPFAST_INLINE static V curve(V y, Parameters<V> by) { return (y + by.q) * (by.p * by.p); }
};

// p log(h + q)
template <typename V>
struct Logarithm {
  GPFAST_INLINE static V slope(V h, Parameters<V> by) { return by.p / (h + by.q); }
  GPFAST_INLINE static V curve(V h, Parameters<V> by) { return -by.p / ((h + by.q) * (h + by.q)); }
};

template <typename V>
struct Sqrt {
  GPFAST_INLINE static V slope(V y, Parameters<V>) { return Number<V>(0.5) / y; }
  GPFAST_INLINE static V curve(V y, Parameters<V>) { return Number<V>(-0.25) / (y * y * y); }
};

template <typename V>
struct Rsqrt {
  GPFAST_INLINE static V slope(V y, Parameters<V>) { return Number<V>(-0.5) * y * y * y; }
  GPFAST_INLINE static V curve(V y, Parameters<V>) { return Number<V>(0.75) * y * y * y * y * y; }
};

template <typename V>
struct Reciprocal {
  GPFAST_INLINE static V slope(V y, Parameters<V>) { return -y * y; }
  GPFAST_INLINE static V curve(V y, Parameters<V>) { return 2 * y * y * y; }
};

template <typename V>
struct Square {
  GPFAST_INLINE static V slope(V h, Parameters<V>) { return 2 * h; }
  GPFAST_INLINE static V curve(V h, Parameters<V>) { return constant(h, Number<V>(2)); }
};

template <typename V>
struct Cube {
  GPFAST_INLINE static V slope(V h, Parameters<V>) { return 3 * h * h; }
  GPFAST_INLINE static V curve(V h, Parameters<V>) { return 6 * h; }
};

// h^p, p neither 0 nor 1
template <typename V>
struct Power {
  GPFAST_INLINE static V slope(V h, Parameters<V> by) { return pow(h, by.p - 1) * by.p; }
  GPFAST_INLINE static V curve(V h, Parameters<V> by) { return pow(h, by.p - 2) * (by.p * (by.p - 1)); }
};

template <typename V>
struct Sin {
  GPFAST_INLINE static V slope(V h, Parameters<V>) { return cos(h); }
  GPFAST_INLINE static V curve(V h, Parameters<V>) { return -sin(h); }
};

template <typename V>
struct Cos {
  GPFAST_INLINE static V slope(V h, Parameters<V>) { return -sin(h); }
  GPFAST_INLINE static V curve(V h, Parameters<V>) { return -cos(h); }
};

template <typename V>
struct Tan {
  GPFAST_INLINE static V slope(V y, Parameters<V>) { return 1 + y * y; }
  GPFAST_INLINE static V curve(V y, Parameters<V>) { return 2 * y * (1 + y * y); }
};

template <typename V>
struct Sinh {
  GPFAST_INLINE static V slope(V h, Parameters<V>) { return cosh(h); }
  GPFAST_INLINE static V curve(V h, Parameters<V>) { return sinh(h); }
};

template <typename V>
struct Cosh {
  GPFAST_INLINE static V slope(V h, Parameters<V>) { return sinh(h); }
  GPFAST_INLINE static V curve(V h, Parameters<V>) { return cosh(h); }
};

template <typename V>
struct Atan {
  GPFAST_INLINE static V slope(V h, Parameters<V>) { return 1 / (1 + h * h); }
  GPFAST_INLINE static V curve(V h, Parameters<V>) { return -2 * h / ((1 + h * h) * (1 + h * h)); }
};

template <typename V>
struct Erf {
  GPFAST_INLINE static V slope(V h, Parameters<V>) { return Number<V>(1.1283791670955126) * exp(-(h * h)); }
  GPFAST_INLINE static V curve(V h, Parameters<V>) { return Number<V>(-2.2567583341910251) * h * exp(-(h * h)); }
};

}  // namespace gpfast::formulas

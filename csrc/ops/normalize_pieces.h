#pragma once
// What a thread of the CUDA kernels of the norms does with the elements of a 16-byte vector: their sums, and what is written.
#include "ops/cuda_kernels.h"
#include "ops/normalize_formulas.h"
#include "ops/normalize_launch.h"

namespace gpfast {

// A call, typed. What is written may be what is read.
template <typename T>
struct Call {
  using A = Wide<T>;

  NormBlock block;
  const T *in, *h, *other;
  T *out, *bent;
  const A *mean, *rstd, *weight;
  const uint8_t* bits;
  A on, off;
  bool tangent;  // a line's weight and gate come after the sums, not before
  bool wide;     // 16-byte accesses are possible

  __device__ A mean_of(int64_t statistic) const { return mean ? mean[statistic] : A(0); }
  __device__ A weight_of(int64_t channel) const { return weight ? weight[channel] : A(1); }
  __device__ A gated(bool set, A x) const {
    const A slope = set ? on : off;
    return slope == 0 ? A(0) : slope * x;
  }
  __device__ Group<A> group(int64_t statistic) const {
    const int64_t members = block.depth * block.length * (block.order == BlockOrder::batch ? block.samples : 1);
    return {static_cast<A>(members), rstd[statistic], mean != nullptr};
  }
};

template <typename T>
using Elements = Vector<T, kVector<T>>;

// Zero beyond `left`, which may be none.
template <typename T>
__device__ __forceinline__ Elements<T> read(const T* from, int64_t left, bool wide) {
  if (wide && left >= kVector<T>) return load(from);
  Elements<T> elements;
#pragma unroll
  for (int k = 0; k < kVector<T>; ++k) elements.lane[k] = k < left ? from[k] : T(0.0f);
  return elements;
}

// A store that nvcc does not take apart, as it does one of single elements where it takes both ways to write for one.
template <typename T>
__device__ __forceinline__ void store_whole(T* to, const Elements<T>& elements) {
#ifdef GPFAST_SIMT
  store(to, elements);
#else
  struct Words {
    unsigned x, y, z, w;
  };
  const Words words = __builtin_bit_cast(Words, elements);
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(words.x), "r"(words.y),
               "r"(words.z), "r"(words.w)
               : "memory");
#endif
}

template <typename T>
__device__ __forceinline__ void write(T* to, const Elements<T>& elements, int64_t left, bool wide) {
  if (wide && left >= kVector<T>) return store_whole(to, elements);
#pragma unroll
  for (int k = 0; k < kVector<T>; ++k)
    if (k < left) to[k] = elements.lane[k];
}

// kWidth numbers, of which a vector holds as many or fewer; ones beyond `left`.
template <int kWidth, typename A>
__device__ __forceinline__ void read_weights(const A* from, int64_t left, bool wide, A (&weights)[kWidth]) {
  constexpr int kStep = kVector<A>;
  static_assert(kWidth % kStep == 0);
  if (wide && left >= kWidth) {
#pragma unroll
    for (int first = 0; first < kWidth; first += kStep) {
      const auto some = load(from + first);
#pragma unroll
      for (int k = 0; k < kStep; ++k) weights[first + k] = some.lane[k];
    }
  } else {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) weights[k] = k < left ? from[k] : A(1);
  }
}

// out = J in, through a weight and a gate before or behind it, + other.
template <typename A>
struct Line {
  static constexpr bool kBends = false;
  static constexpr int kSums = kLineSums, kCoefficients = 3, kParameters = 2;
  using Number = A;
  using Of = LineOf<A>;

  __device__ static int first_weighted(bool tangent) { return tangent ? kSums : kZ; }
  __device__ static Of of(Group<A> group, const A* sums) { return line_of(group, sums[kZ], sums[kZD]); }
  __device__ static void add(A* sums, A x, A, A d, A w) {
    sums[kZ] += w * x;
    sums[kZD] += w * x * d;
  }
  __device__ static A line(const Of& of, A x, A d) { return of.of_z * x + of.of_d * d + of.one; }
  // What a channel with these sums, without a weight, gives its parameters.
  __device__ static A weight_gradient(const Of& of, const A* own) { return own[kZD] * of.of_z; }
  __device__ static A bias_gradient(const A* own) { return own[kZ]; }
  // What an element gives.
  __device__ static A weight_gradient(const Of& of, A x, A, A d) { return x * (d * of.of_z); }
};

// out = the gate of w J in, bent = d/dh <w other, J in>.
template <typename A>
struct Bend {
  static constexpr bool kBends = true;
  static constexpr int kSums = kBendSums, kCoefficients = 6, kParameters = 1;
  using Number = A;
  using Of = BendOf<A>;

  __device__ static int first_weighted(bool) { return kU; }
  __device__ static Of of(Group<A> group, const A* sums) { return bend_of(group, sums); }
  __device__ static void add(A* sums, A x, A a, A d, A w) {
    const A u = w * a;
    sums[kT] += x;
    sums[kTD] += x * d;
    sums[kU] += u;
    sums[kUD] += u * d;
    sums[kUT] += u * x;
  }
  __device__ static A line(const Of& of, A x, A d) { return of.line.of_z * x + of.line.of_d * d + of.line.one; }
  __device__ static A bend(const Of& of, A x, A u, A d) { return of.line.of_d * u + of.of_t * x + of.of_d * d + of.one; }
  __device__ static A weight_gradient(const Of& of, const A* own) {
    return of.line.of_z * own[kUT] + of.line.of_d * own[kUD] + of.line.one * own[kU];
  }
  __device__ static A bias_gradient(const A*) { return 0; }
  __device__ static A weight_gradient(const Of& of, A x, A a, A d) { return a * line(of, x, d); }
};

// What writes an element, besides itself.
template <typename Form>
struct OwnNorm {
  typename Form::Of of;
  typename Form::Number mean, weight;
};

// The elements from `at` on, as they lie in memory; zero beyond `left`.
template <typename T, typename Form>
struct Piece {
  using A = Wide<T>;
  static constexpr int kWidth = kVector<T>;
  Elements<T> in, h, a;
  unsigned gate;  // a bit each

  __device__ __forceinline__ void read(const Call<T>& call, int64_t at, int64_t left) {
    in = gpfast::read(call.in + at, left, call.wide);
    h = gpfast::read(call.h + at, left, call.wide);
    if constexpr (Form::kBends) a = gpfast::read(call.other + at, left, call.wide);
    if (!call.bits || left <= 0) return;
    if (call.wide) {
      gate = call.bits[at / 8] >> (at % 8);
    } else {
      gate = 0;
#pragma unroll
      for (int k = 0; k < kWidth; ++k)
        if (k < left) gate |= (call.bits[(at + k) / 8] >> ((at + k) % 8) & 1u) << k;
    }
  }

  __device__ __forceinline__ A x(const Call<T>& call, int k) const {
    const A x = widen(in.lane[k]);
    return call.bits && !call.tangent ? call.gated(gate >> k & 1, x) : x;
  }
  __device__ __forceinline__ A other(int k) const {
    if constexpr (Form::kBends) return widen(a.lane[k]);
    return 0;
  }

  // Zeros add nothing.
  __device__ __forceinline__ void add(const Call<T>& call, A (&sums)[Form::kSums], A mean, const A (&weights)[kWidth]) const {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) Form::add(sums, x(call, k), other(k), widen(h.lane[k]) - mean, weights[k]);
  }

  // norm(k): the OwnNorm of element k; asked for in order.
  template <typename Norm>
  __device__ __forceinline__ void write(const Call<T>& call, int64_t at, int64_t left, const Norm& norm) const {
    Elements<T> made, bent;
    const bool adds = !Form::kBends && call.other && call.out;
    if (adds) bent = gpfast::read(call.other + at, left, call.wide);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const OwnNorm<Form> own = norm(k);
      const A d = widen(h.lane[k]) - own.mean, w = own.weight, z = x(call, k);
      if constexpr (Form::kBends) {
        const A line = w * Form::line(own.of, z, d);
        made.lane[k] = narrow<T>(call.bits ? call.gated(gate >> k & 1, line) : line);
        bent.lane[k] = narrow<T>(Form::bend(own.of, z, w * other(k), d));
      } else {
        A line = call.tangent ? w * Form::line(own.of, z, d) : Form::line(own.of, w * z, d);
        if (call.bits && call.tangent) line = call.gated(gate >> k & 1, line);
        made.lane[k] = narrow<T>(adds ? line + widen(bent.lane[k]) : line);
      }
    }
    if (call.out) gpfast::write(call.out + at, made, left, call.wide);
    if constexpr (Form::kBends)
      if (call.bent) gpfast::write(call.bent + at, bent, left, call.wide);
  }
};

}  // namespace gpfast

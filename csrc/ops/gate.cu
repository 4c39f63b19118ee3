// The CUDA kernels of gate and gated: a 16-byte vector a thread; the last, incomplete one element by element, and so are all of
// them where a tensor does not begin at a 16-byte bound.
#include <cmath>
#include <limits>

#include "ops/cuda_kernels.h"
#include "ops/gate_launch.h"

namespace gpfast {
namespace {

constexpr int kBits = 32;  // of a word, which several threads put together

// Every test as one: lowest <= h <= highest. None passes where one of them is NaN.
template <typename A>
struct Interval {
  A lowest, highest;

  explicit Interval(const Gate& by) : lowest(-kInfinity), highest(kInfinity) {
    const A lower = static_cast<A>(by.lower), upper = static_cast<A>(by.upper);
    if (by.test == Test::kWithin) lowest = lower, highest = upper;
    if (by.test == Test::kAbove || by.test == Test::kBetween) lowest = lower == kInfinity ? kNan : std::nextafter(lower, kInfinity);
    if (by.test == Test::kBelow || by.test == Test::kBetween) highest = upper == -kInfinity ? kNan : std::nextafter(upper, -kInfinity);
  }
  __device__ bool holds(A h) const { return h >= lowest && h <= highest; }

 private:
  static constexpr A kInfinity = std::numeric_limits<A>::infinity(), kNan = std::numeric_limits<A>::quiet_NaN();
};

template <typename A>
struct Factors {
  A on, off;
  const A* off_slopes;
  int64_t channels, inner;

  Factors(const Slopes& by, const OffSlopes& many)
      : on(static_cast<A>(by.on)), off(static_cast<A>(by.off)), off_slopes(static_cast<const A*>(many.slopes)),
        channels(many.channels), inner(many.inner) {}
};

// Elements that follow each other, by their slopes.
template <typename A, bool kChannels>
class Scale {
 public:
  __device__ Scale(const Factors<A>& by, int64_t first) : by_(by) {
    if constexpr (kChannels) {
      const int64_t run = first / by.inner;
      channel_ = run % by.channels;
      left_ = by.inner - (first - run * by.inner);
      off_ = by.off_slopes[channel_];
    }
  }
  // The next element.
  __device__ A operator()(bool set, A x) {
    if constexpr (kChannels) {
      if (left_ == 0) {
        left_ = by_.inner;
        channel_ = channel_ + 1 == by_.channels ? 0 : channel_ + 1;
        off_ = by_.off_slopes[channel_];
      }
      --left_;
      return set ? by_.on * x : off_ * x;
    } else {
      const A slope = set ? by_.on : by_.off;
      return slope == 0 ? A(0) : slope * x;
    }
  }

 private:
  const Factors<A>& by_;
  int64_t channel_ = 0, left_ = 0;
  A off_ = 0;
};

// Every thread of a warp calls it, with the bits of the kWidth elements from `first` on, zero beyond the end.
template <int kWidth>
__device__ void store_bits(unsigned mine, int64_t first, int64_t n, uint8_t* __restrict__ bits) {
  const int place = static_cast<int>(first % kBits);
  unsigned word = mine << place;
#pragma unroll
  for (int lanes = 1; lanes < kBits / kWidth; lanes *= 2) word |= __shfl_xor_sync(0xffffffffu, word, lanes);
  if (place != 0 || first >= n) return;
  uint8_t* to = bits + first / 8;
  if (n - first >= kBits) {
    *reinterpret_cast<uint32_t*>(to) = word;
  } else {
    for (int64_t left = n - first; left > 0; left -= 8, word >>= 8) *to++ = static_cast<uint8_t>(word);
  }
}

template <typename T, bool kChannels>
__global__ void __launch_bounds__(kThreads) gate(const T* z, const T* h, T* out, uint8_t* __restrict__ bits, int64_t n,
                                                 bool wide, Interval<Wide<T>> set, Factors<Wide<T>> slopes) {
  constexpr int kWidth = kVector<T>;
  const int64_t first = first_element(kWidth), left = n - first;
  unsigned mine = 0;
  if (left > 0) {
    Scale<Wide<T>, kChannels> scale(slopes, first);
    const auto pass = [&](int k, T decider, T x) {
      const bool bit = set.holds(widen(decider));
      mine |= static_cast<unsigned>(bit) << k;
      return narrow<T>(scale(bit, widen(x)));
    };
    if (wide && left >= kWidth) {
      const auto deciders = load(h + first);
      auto values = load(z + first);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) values.lane[k] = pass(k, deciders.lane[k], values.lane[k]);
      store(out + first, values);
    } else {
      for (int k = 0; k < kWidth && k < left; ++k) out[first + k] = pass(k, h[first + k], z[first + k]);
    }
  }
  store_bits<kWidth>(mine, first, n, bits);
}

template <typename T, bool kChannels>
__global__ void __launch_bounds__(kThreads) gated(const T* z, const uint8_t* __restrict__ bits, T* out, int64_t n, bool wide,
                                                  Factors<Wide<T>> slopes) {
  constexpr int kWidth = kVector<T>;
  const int64_t first = first_element(kWidth), left = n - first;
  if (left <= 0) return;
  const unsigned mine = bits[first / 8] >> (first % 8);
  Scale<Wide<T>, kChannels> scale(slopes, first);
  const auto pass = [&](int k, T x) { return narrow<T>(scale(mine >> k & 1, widen(x))); };
  if (wide && left >= kWidth) {
    auto values = load(z + first);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) values.lane[k] = pass(k, values.lane[k]);
    store(out + first, values);
  } else {
    for (int k = 0; k < kWidth && k < left; ++k) out[first + k] = pass(k, z[first + k]);
  }
}

}  // namespace
}  // namespace gpfast

extern "C" int gpfast_gate_cuda(gpfast::Dtype dtype, const void* z, const void* h, void* out, void* bits, int64_t n,
                                const gpfast::Gate* by, const gpfast::OffSlopes* off, void* stream) {
  using namespace gpfast;
  return with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Wide<T>;
    return launch(off->channels ? gate<T, true> : gate<T, false>, n, kVector<T>, stream, static_cast<const T*>(z),
                  static_cast<const T*>(h), static_cast<T*>(out), static_cast<uint8_t*>(bits), n, aligned(z, h, out),
                  Interval<A>(*by), Factors<A>(by->slopes, *off));
  });
}

extern "C" int gpfast_gated_cuda(gpfast::Dtype dtype, const void* z, const void* bits, void* out, int64_t n,
                                 const gpfast::Slopes* by, const gpfast::OffSlopes* off, void* stream) {
  using namespace gpfast;
  return with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    return launch(off->channels ? gated<T, true> : gated<T, false>, n, kVector<T>, stream, static_cast<const T*>(z),
                  static_cast<const uint8_t*>(bits), static_cast<T*>(out), n, aligned(z, out), Factors<Wide<T>>(*by, *off));
  });
}

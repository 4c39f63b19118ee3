// The CPU kernels of gate and gated.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <array>
#include <vector>

#include "ops/gate.h"
#include "ops/gate_test.h"
#include "ops/relayout.h"
#include "ops/simd.h"

namespace gpfast {
namespace {

constexpr int64_t kWord = 64;  // elements that one word of bits is for
constexpr int64_t kStrip = 512;  // elements whose slopes are laid out at once

// Lanes as wide as the numbers that are compared.
template <typename T>
using Lane = std::conditional_t<sizeof(Accumulate<T>) == 8, uint64_t, uint32_t>;

// 1 << j, as a table: a shift that varies is compiled to a bit test, one element at a time.
template <typename L>
constexpr auto kPlaces = [] {
  std::array<L, 8 * sizeof(L)> places{};
  for (size_t j = 0; j < places.size(); ++j) places[j] = L{1} << j;
  return places;
}();

template <Test kTest, typename T>
GPFAST_INLINE void pack_words(const T* __restrict__ h, Accumulate<T> lower, Accumulate<T> upper, uint8_t* __restrict__ bits,
                              int64_t words) {
  using L = Lane<T>;
  constexpr int kLanes = 8 * sizeof(L);
  for (int64_t k = 0; k < words * kWord / kLanes; ++k) {
    L word = 0;
    for (int j = 0; j < kLanes; ++j)
      word |= holds<kTest>(widen(h[k * kLanes + j]), lower, upper) ? kPlaces<L>[j] : L{0};
    std::memcpy(bits + k * sizeof(L), &word, sizeof(L));
  }
}

template <typename T>
GPFAST_INLINE void pack(const T* h, const Gate& by, uint8_t* bits, int64_t words) {
  using A = Accumulate<T>;
  const A lower = static_cast<A>(by.lower), upper = static_cast<A>(by.upper);
  switch (by.test) {
    case Test::kAbove: return pack_words<Test::kAbove>(h, lower, upper, bits, words);
    case Test::kBelow: return pack_words<Test::kBelow>(h, lower, upper, bits, words);
    case Test::kBetween: return pack_words<Test::kBetween>(h, lower, upper, bits, words);
    case Test::kWithin: return pack_words<Test::kWithin>(h, lower, upper, bits, words);
  }
}

// The slope on one side of the bit: none, one for all elements, or one for each.
template <typename A>
struct NoSlope {
  GPFAST_INLINE A times(A, int64_t) const { return 0; }
};
template <typename A>
struct OneSlope {
  A slope;
  GPFAST_INLINE A times(A x, int64_t) const { return slope * x; }
};
template <typename A>
struct ManySlopes {
  const A* slopes;
  GPFAST_INLINE A times(A x, int64_t i) const { return slopes[i] * x; }
};

// out may be z: a word is read as a whole before it is written.
template <typename T, typename On, typename Off>
GPFAST_INLINE void scale_words(const T* z, const uint8_t* bits, On on, Off off, T* out, int64_t words) {
  using L = Lane<T>;
  constexpr int kLanes = 8 * sizeof(L);
  for (int64_t k = 0; k < words * kWord / kLanes; ++k) {
    L word;
    std::memcpy(&word, bits + k * sizeof(L), sizeof(L));
    Accumulate<T> scaled[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      const int64_t i = k * kLanes + j;
      const auto x = widen(z[i]);
      const auto high = on.times(x, i), low = off.times(x, i);
      scaled[j] = word & kPlaces<L>[j] ? high : low;
    }
    for (int j = 0; j < kLanes; ++j) out[k * kLanes + j] = narrow<T>(scaled[j]);
  }
}

// off: a slope an element, or null.
template <typename T, typename A = Accumulate<T>>
GPFAST_INLINE void scale(const T* z, const uint8_t* bits, Slopes slopes, const A* off, T* out, int64_t words) {
  const OneSlope<A> high{static_cast<A>(slopes.on)}, low{static_cast<A>(slopes.off)};
  if (off) {
    scale_words(z, bits, high, ManySlopes<A>{off}, out, words);
  } else if (slopes.off == 0) {
    scale_words(z, bits, high, NoSlope<A>{}, out, words);
  } else if (slopes.on == 0) {
    scale_words(z, bits, NoSlope<A>{}, low, out, words);
  } else {
    scale_words(z, bits, high, low, out, words);
  }
}

#define GPFAST_DEFINE(T)                                                                                                  \
  GPFAST_CLONES void pack_clones(const T* h, const Gate& by, uint8_t* bits, int64_t words) { pack(h, by, bits, words); } \
  GPFAST_CLONES void scale_clones(const T* z, const uint8_t* bits, Slopes slopes, const Accumulate<T>* off, T* out,       \
                                  int64_t words) {                                                                        \
    scale(z, bits, slopes, off, out, words);                                                                              \
  }
GPFAST_FOR_EACH_DTYPE(GPFAST_DEFINE)
#undef GPFAST_DEFINE

// The rest of a tensor, as a whole word.
template <typename T>
struct Rest {
  T values[kWord] = {};
  Rest(const T* from, int64_t n) { std::copy(from, from + n, values); }
};

// n elements; the bits beyond the last one are zero.
template <typename T>
void pack_bits(const T* h, const Gate& by, uint8_t* bits, int64_t n) {
  pack_clones(h, by, bits, n / kWord);
  const int64_t done = n / kWord * kWord, rest = n - done;
  if (rest == 0) return;
  const Rest<T> last(h + done, rest);
  uint8_t packed[kWord / 8];
  pack_clones(last.values, by, packed, 1);
  if (rest % 8) packed[rest / 8] &= static_cast<uint8_t>((1 << rest % 8) - 1);
  std::memcpy(bits + done / 8, packed, (rest + 7) / 8);
}

template <typename T>
void scale_by_bits(const T* z, const uint8_t* bits, Slopes slopes, const Accumulate<T>* off, T* out, int64_t n) {
  scale_clones(z, bits, slopes, off, out, n / kWord);
  const int64_t done = n / kWord * kWord, rest = n - done;
  if (rest == 0) return;
  Rest<T> last(z + done, rest);
  uint8_t packed[kWord / 8] = {};
  std::memcpy(packed, bits + done / 8, (rest + 7) / 8);
  const Rest<Accumulate<T>> low(off ? off + done : nullptr, off ? rest : 0);
  scale_clones(last.values, packed, slopes, off ? low.values : nullptr, last.values, 1);
  std::copy(last.values, last.values + rest, out + done);
}

// The slopes of elements whose bit is not set, where they differ: weight[i / inner % channels] in the order of z in memory.
template <typename A>
class ChannelSlopes {
 public:
  ChannelSlopes(const at::Tensor& weight, const at::Tensor& z) {
    if (!weight.defined()) return;
    weight_ = weight.to(c10::CppTypeToScalarType<A>::value).contiguous();
    channels_ = weight_.numel();
    inner_ = run_of_slope(weight, z);
  }

  // Of elements [begin, begin + n), or null.
  const A* read(int64_t begin, int64_t n, A* buffer) const {
    if (!weight_.defined()) return nullptr;
    const A* weight = weight_.template const_data_ptr<A>();
    int64_t channel = begin / inner_ % channels_;
    for (int64_t i = 0, run = inner_ == 1 ? channels_ - channel : inner_ - begin % inner_; i < n;) {
      const int64_t m = std::min(run, n - i);
      if (inner_ == 1) std::copy(weight + channel, weight + channel + m, buffer + i);
      else std::fill(buffer + i, buffer + i + m, weight[channel]);
      i += m;
      channel = inner_ == 1 || channel + 1 == channels_ ? 0 : channel + 1;
      run = inner_ == 1 ? channels_ : inner_;
    }
    return buffer;
  }

 private:
  at::Tensor weight_;
  int64_t channels_ = 1, inner_ = 1;
};

// A matrix of bits, a row a word: row i of the result is column i.
void transpose(uint64_t* words) {
  uint64_t mask = 0xffffffffull;
  for (int j = 32; j; j >>= 1, mask ^= mask << j)
    for (int k = 0; k < kWord; k = (k + j + 1) & ~j) {
      const uint64_t swapped = (words[k] >> j ^ words[k + j]) & mask;
      words[k] ^= swapped << j;
      words[k + j] ^= swapped;
    }
}

// Adds the low bits of a word at a position of a row of zero bits.
void put(uint64_t* bits, int64_t position, uint64_t word) {
  const int64_t shift = position % kWord;
  bits[position / kWord] |= word << shift;
  if (shift) bits[position / kWord + 1] |= word >> (kWord - shift);
}

// How the tensor that decides lies in memory, seen in the order of z, which is (outer, rows, cols): the same; or transposed,
// element (o, r, c) being at o * outer_stride + r + c * col_stride, as for a tensor in NCHW against one in channels_last.
struct Arrangement {
  bool same = true;
  int64_t outer = 1, rows = 1, cols = 1;
  int64_t outer_stride = 0, col_stride = 1;
};

struct Run {
  int64_t size, stride;
};
using Runs = c10::SmallVector<Run, 4>;

// The source's dimensions from the outermost to the innermost one of `like`, merged where its strides allow.
Runs runs_of(const at::Tensor& source, const at::Tensor& like) {
  c10::SmallVector<int64_t, 6> dims;
  for (int64_t d = 0; d < like.dim(); ++d)
    if (like.size(d) != 1) dims.push_back(d);
  std::sort(dims.begin(), dims.end(), [&](int64_t i, int64_t j) { return like.stride(i) > like.stride(j); });
  Runs runs;
  for (const int64_t d : dims) {
    const Run run{source.size(d), source.stride(d)};
    if (!runs.empty() && runs.back().stride == run.size * run.stride) {
      runs.back() = {runs.back().size * run.size, run.stride};
    } else {
      runs.push_back(run);
    }
  }
  return runs;
}

// Where it lies in yet another way it is replaced by a copy.
Arrangement arrangement_of(at::Tensor& source, const at::Tensor& like) {
  TORCH_CHECK(source.sizes() == like.sizes() && like.is_non_overlapping_and_dense(), "gpfast::gate: z is ", like.sizes(),
              " with strides ", like.strides(), " and the decider ", source.sizes());
  const Runs runs = runs_of(source, like);
  const size_t n = runs.size();
  if (n == 0 || source.numel() == 0 || (n == 1 && runs[0].stride == 1)) return {};
  if ((n == 2 || n == 3) && runs[n - 2].stride == 1) {
    const Run outer = n == 3 ? runs[0] : Run{1, 0};
    return {false, outer.size, runs[n - 2].size, runs[n - 1].size, outer.stride, runs[n - 1].stride};
  }
  source = relaid(source, order_by_strides(like, like.dim()));
  return {};
}

// The bits of at most 64 rows of z's order, from a tensor where the elements of a column follow each other.
template <typename T>
void pack_transposed(const T* decider, const Arrangement& in, const Gate& by, int64_t row, int64_t height, uint64_t* bits) {
  for (int64_t done = 0, m; done < height; done += m) {
    const int64_t outer = (row + done) / in.rows, r = (row + done) % in.rows;
    m = std::min(height - done, in.rows - r);
    for (int64_t c = 0; c < in.cols; c += kWord) {
      uint64_t tile[kWord] = {};
      const T* column = decider + outer * in.outer_stride + c * in.col_stride + r;
      for (int64_t j = 0; j < std::min(kWord, in.cols - c); ++j)
        pack_bits(column + j * in.col_stride, by, reinterpret_cast<uint8_t*>(tile + j), m);
      transpose(tile);
      for (int64_t i = 0; i < m; ++i) put(bits, (done + i) * in.cols + c, tile[i]);
    }
  }
}

// Calls work(begin, end) for shares of the elements that begin at multiples of `unit`, itself a multiple of 64.
template <typename F>
void share(int64_t numel, int64_t unit, const F& work) {
  at::parallel_for(0, (numel + unit - 1) / unit, std::max<int64_t>(1, kGrain / unit),
                   [&](int64_t first, int64_t last) { work(first * unit, std::min(numel, last * unit)); });
}

template <typename T>
struct Scaling {
  const T* z;
  T* out;
  Slopes slopes;
  ChannelSlopes<Accumulate<T>> off;

  void operator()(const uint8_t* bits, int64_t begin, int64_t end) const {
    Accumulate<T> low[kStrip];
    for (int64_t i = begin; i < end; i += kStrip) {
      const int64_t n = std::min(kStrip, end - i);
      scale_by_bits(z + i, bits + i / 8, slopes, off.read(i, n, low), out + i, n);
    }
  }
};

}  // namespace

at::Tensor gate_cpu(const at::Tensor& z, at::Tensor decider, const at::Tensor& weight, const Gate& by, const at::Tensor& out) {
  const Arrangement in = arrangement_of(decider, z);
  const int64_t numel = z.numel();
  auto bits = at::empty({bytes_of_bits(numel)}, z.options().dtype(at::kByte));
  auto* packed = bits.mutable_data_ptr<uint8_t>();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, z.scalar_type(), "gate", [&] {
    const auto* h = decider.const_data_ptr<scalar_t>();
    const Scaling<scalar_t> scaling{z.const_data_ptr<scalar_t>(), out.mutable_data_ptr<scalar_t>(), by.slopes, {weight, z}};
    if (in.same) {
      share(numel, kStrip, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i += kStrip) {
          const int64_t n = std::min(kStrip, end - i);
          pack_bits(h + i, by, packed + i / 8, n);
          scaling(packed, i, i + n);
        }
      });
      return;
    }
    const int64_t block = kWord * in.cols;
    share(numel, block, [&](int64_t begin, int64_t end) {
      std::vector<uint64_t> words(in.cols + 1);
      for (int64_t i = begin; i < end; i += block) {
        const int64_t n = std::min(block, end - i);
        std::fill(words.begin(), words.end(), 0);
        pack_transposed(h, in, by, i / in.cols, n / in.cols, words.data());
        std::memcpy(packed + i / 8, words.data(), bytes_of_bits(n));
        scaling(packed, i, i + n);
      }
    });
  });
  return bits;
}

void gated_cpu(const at::Tensor& z, const at::Tensor& bits, const at::Tensor& weight, const Slopes& by, const at::Tensor& out) {
  const auto* packed = bits.const_data_ptr<uint8_t>();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, z.scalar_type(), "gated", [&] {
    const Scaling<scalar_t> scaling{z.const_data_ptr<scalar_t>(), out.mutable_data_ptr<scalar_t>(), by, {weight, z}};
    share(z.numel(), kStrip, [&](int64_t begin, int64_t end) { scaling(packed, begin, end); });
  });
}

}  // namespace gpfast

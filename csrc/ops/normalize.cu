// The CUDA kernels of the norms. A group that is one run of memory, and fits, is held in registers between its sums and its
// lines: one pass (held). Any other takes two: sums of parts of it (run_sums, column_sums), what they make of the norm
// (coefficients), its lines (write_runs, write_columns). Gradients of parameters are parts, which add_parts adds up.
#include <algorithm>

#include "ops/cuda_sums.h"
#include "ops/normalize_pieces.h"

namespace gpfast {
namespace {

constexpr int kHeld = 4;          // vectors of each tensor that a thread holds
constexpr int kBlocks = 512;      // that keep a GPU busy: parts are as few as that allows
constexpr int kLeastVectors = 4;  // of a thread that makes a part of a sum
constexpr int kMostVectors = 16;

template <typename T>
constexpr int64_t kMostHeld = int64_t{kThreads} * kHeld * kVector<T>;

// Threads for a run: few, each with several vectors, but enough for the accesses of a warp to lie together.
int lanes_of_run(int64_t n, int width) {
  const int64_t vectors = parts_of(n, width);
  return std::max(lanes_for(vectors, 8), lanes_for(parts_of(vectors, kHeld), kThreads));
}

__device__ __forceinline__ int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Weights of the elements from `e` on in a run that begins with a channel.
template <typename T>
__device__ __forceinline__ void weights_in_run(const Call<T>& call, int64_t channel, int64_t e, int64_t left,
                                               Wide<T> (&weights)[kVector<T>]) {
  if (call.weight && call.block.length == 1) {
    read_weights(call.weight + channel + e, left, call.wide, weights);
    return;
  }
#pragma unroll
  for (int k = 0; k < kVector<T>; ++k) weights[k] = 1;
  if (!call.weight || left <= 0) return;
  // A run of several channels is held, so it is short.
  const int length = static_cast<int>(call.block.length), first = static_cast<int>(e) / length;
  int behind = static_cast<int>(e) - first * length;
  const Wide<T>* own = call.weight + channel + first;
#pragma unroll
  for (int k = 0; k < kVector<T>; ++k) {
    if (k >= left) break;
    weights[k] = *own;
    if (++behind == length) behind = 0, ++own;
  }
}

// Where the parts of the parameters' gradients go; null where one is not wanted.
template <typename A>
struct Parts {
  A *of_weight, *of_bias;
};

// Rows, or planes: each group is one run, of `lanes` threads. Parts: (blocks, channels) for rows, of one group each;
// (groups,) for planes, of one channel each.
template <typename T, typename Form, bool kParameters>
__global__ void __launch_bounds__(kThreads) held(Call<T> call, Parts<Wide<T>> parts, int lanes) {
  using A = Wide<T>;
  constexpr int kWidth = kVector<T>;
  const auto& b = call.block;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % lanes, slots = kThreads / lanes;
  const int64_t groups = b.samples * b.groups, n = b.depth * b.length;
  const bool rows = b.length == 1, of_channel = !rows && b.depth == 1;
  A of_weight[kParameters ? kHeld : 1][kWidth] = {}, of_bias[kParameters && !Form::kBends ? kHeld : 1][kWidth] = {};
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * slots; first < groups; first += static_cast<int64_t>(gridDim.x) * slots) {
    const int64_t group = first + thread / lanes;
    const bool mine = group < groups;
    const int64_t begin = group * n, channel = mine ? group % b.groups * b.depth : 0;
    const A mean = mine ? call.mean_of(group) : A(0), of_group = mine && of_channel ? call.weight_of(channel) : A(1);
    Piece<T, Form> pieces[kHeld];
    A sums[Form::kSums] = {};
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const int64_t e = (j * lanes + lane) * kWidth;
      pieces[j].read(call, begin + e, mine ? n - e : 0);
    }
    const auto weights_of = [&](int j, A(&weights)[kWidth]) {
      const int64_t e = (j * lanes + lane) * kWidth;
      if (of_channel) {
#pragma unroll
        for (int k = 0; k < kWidth; ++k) weights[k] = 1;
      } else {
        weights_in_run(call, channel, e, mine ? n - e : 0, weights);
      }
    };
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      A weights[kWidth];
      weights_of(j, weights);
      if (!Form::kBends && call.tangent) {
#pragma unroll
        for (int k = 0; k < kWidth; ++k) weights[k] = 1;
      }
      pieces[j].add(call, sums, mean, weights);
    }
    sum_rows(sums, lanes);
    if (!mine) continue;
    A own[Form::kSums];
#pragma unroll
    for (int k = 0; k < Form::kSums; ++k) {
      own[k] = sums[k];
      if (k >= Form::first_weighted(call.tangent)) sums[k] *= of_group;
    }
    const auto of = Form::of(call.group(group), sums);
    if (kParameters && of_channel && lane == 0) {
      if (parts.of_weight) parts.of_weight[group] = Form::weight_gradient(of, own);
      if (parts.of_bias) parts.of_bias[group] = Form::bias_gradient(own);
    }
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const int64_t e = (j * lanes + lane) * kWidth;
      if (e >= n) break;
      if (kParameters && rows) {
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          const A x = pieces[j].x(call, k), d = widen(pieces[j].h.lane[k]) - mean;
          of_weight[j][k] += Form::weight_gradient(of, x, pieces[j].other(k), d);
          if constexpr (kParameters && !Form::kBends) of_bias[j][k] += x;
        }
      }
      if (!call.out && !call.bent) continue;
      A weights[kWidth];
      weights_of(j, weights);
      pieces[j].write(call, begin + e, n - e, [&](int k) { return OwnNorm<Form>{of, mean, weights[k] * of_group}; });
    }
  }
  if constexpr (kParameters) {
    if (!rows) return;
    const auto put = [&](A(&values)[kWidth], int j, A* to) {
      sum_columns(values, lanes);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const int64_t e = (j * lanes + lane) * kWidth + k;
        if (thread < lanes && e < n) to[blockIdx.x * n + e] = values[k];
      }
    };
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      if (parts.of_weight) put(of_weight[j], j, parts.of_weight);
      if constexpr (!Form::kBends)
        if (parts.of_bias) put(of_bias[j], j, parts.of_bias);
    }
  }
}

// How runs are shared out: each in `chunks` of `chunk` elements, each of `lanes` threads.
struct Runs {
  int64_t count, length, chunks, chunk;
  int lanes;
};

// sums: (runs, chunks, kSums). Weights are in them where a run is a row, of several channels.
// With room for three blocks the compiler does not spill registers to fit more.
template <typename T, typename Form>
__global__ void __launch_bounds__(kThreads, 3) run_sums(Call<T> call, Wide<T>* sums, Runs runs) {
  using A = Wide<T>;
  constexpr int kWidth = kVector<T>;
  const auto& b = call.block;
  const int lanes = runs.lanes, thread = static_cast<int>(threadIdx.x), lane = thread % lanes;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * (kThreads / lanes) + thread / lanes;
  const int64_t run = unit / runs.chunks, chunk = unit - run * runs.chunks;
  const bool mine = run < runs.count, rows = b.length == 1;
  A own[Form::kSums] = {};
  if (mine) {
    const int64_t group = rows ? run : b.order == BlockOrder::batch ? run % b.groups : run / b.depth;
    const int64_t channel = rows ? run % b.groups * b.depth : 0;
    const int64_t begin = chunk * runs.chunk, end = least(runs.length, begin + runs.chunk);
    const A mean = call.mean_of(group);
    const bool weighted = rows && call.weight && (Form::kBends || !call.tangent);
    for (int64_t e = begin + lane * kWidth; e < end; e += lanes * kWidth) {
      Piece<T, Form> piece;
      piece.read(call, run * runs.length + e, end - e);
      A weights[kWidth];
      if (weighted) {
        read_weights(call.weight + channel + e, end - e, call.wide, weights);
      } else {
#pragma unroll
        for (int k = 0; k < kWidth; ++k) weights[k] = 1;
      }
      piece.add(call, own, mean, weights);
    }
  }
  sum_rows(own, lanes);
  if (!mine || lane != 0) return;
#pragma unroll
  for (int k = 0; k < Form::kSums; ++k) sums[unit * Form::kSums + k] = own[k];
}

// How rows of channels are shared out: tiles of `columns` threads, with a vector each, times chunks of rows.
struct Columns {
  int64_t channels, tiles, chunks, chunk;
  int columns;
};

// Pixels: the sums of each channel. sums: (samples, chunks, kSums, channels).
template <typename T, typename Form>
__global__ void __launch_bounds__(kThreads) column_sums(Call<T> call, Wide<T>* sums, Columns by) {
  using A = Wide<T>;
  constexpr int kWidth = kVector<T>;
  const auto& b = call.block;
  const int thread = static_cast<int>(threadIdx.x), slots = kThreads / by.columns;
  const int64_t tile = blockIdx.x % by.tiles, part = blockIdx.x / by.tiles, sample = part / by.chunks;
  const int64_t channel = (tile * by.columns + thread % by.columns) * kWidth, left = by.channels - channel;
  const int64_t begin = (part - sample * by.chunks) * by.chunk, end = least(b.length, begin + by.chunk);
  A own[kWidth][Form::kSums] = {}, mean[kWidth];
#pragma unroll
  for (int k = 0; k < kWidth; ++k) mean[k] = k < left ? call.mean_of(sample * b.groups + (channel + k) / b.depth) : A(0);
  if (left > 0) {
    for (int64_t pixel = begin + thread / by.columns; pixel < end; pixel += slots) {
      Piece<T, Form> piece;
      piece.read(call, (sample * b.length + pixel) * by.channels + channel, left);
#pragma unroll
      for (int k = 0; k < kWidth; ++k)
        Form::add(own[k], piece.x(call, k), piece.other(k), widen(piece.h.lane[k]) - mean[k], A(1));
    }
  }
#pragma unroll
  for (int s = 0; s < Form::kSums; ++s) {
    A of_channel[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) of_channel[k] = own[k][s];
    sum_columns(of_channel, by.columns);
    if (thread >= by.columns) continue;
#pragma unroll
    for (int k = 0; k < kWidth; ++k)
      if (k < left) sums[(part * Form::kSums + s) * by.channels + channel + k] = of_channel[k];
  }
}

// Where the sums of a group lie: `depth` channels of samples x chunks parts; the steps from one to the next.
struct Sources {
  int64_t depth, samples, chunks;
  int64_t of_sample_of_groups, of_group, of_channel, of_sample, of_chunk, of_sum;
  int lanes, channel_lanes;  // threads of a group; of them, those that are of different channels
};

// The coefficients of each group: made is (statistics, kCoefficients). Parts: (statistics, depth). Sums are added up in place.
template <typename T, typename Form>
__global__ void __launch_bounds__(kThreads) coefficients(Call<T> call, Wide<T>* sums, Wide<T>* made, Parts<Wide<T>> parts, Sources by) {
  using A = Wide<T>;
  const auto& b = call.block;
  const int thread = static_cast<int>(threadIdx.x), in_group = thread % by.lanes, members = by.lanes / by.channel_lanes;
  const int member = in_group % members, own_channel = in_group / members;
  const int64_t statistics = b.order == BlockOrder::batch ? b.groups : b.samples * b.groups;
  const int64_t group = static_cast<int64_t>(blockIdx.x) * (kThreads / by.lanes) + thread / by.lanes;
  const bool mine = group < statistics, rows = b.order == BlockOrder::pixels && b.length == 1;
  A* const from = sums + group / b.groups * by.of_sample_of_groups + group % b.groups * by.of_group;
  A total[Form::kSums] = {};
  for (int64_t first = 0; first < by.depth; first += by.channel_lanes) {
    const int64_t channel = first + own_channel;
    const bool there = mine && channel < by.depth;
    A own[Form::kSums] = {};
    for (int64_t i = member; there && i < by.samples * by.chunks; i += members) {
      const A* part = from + channel * by.of_channel + i / by.chunks * by.of_sample + i % by.chunks * by.of_chunk;
#pragma unroll
      for (int s = 0; s < Form::kSums; ++s) own[s] += part[s * by.of_sum];
    }
    sum_rows(own, members);
    if (!there || member != 0) continue;
    const A weight = rows ? A(1) : call.weight_of(group % b.groups * by.depth + channel);
#pragma unroll
    for (int s = 0; s < Form::kSums; ++s) {
      total[s] += (s >= Form::first_weighted(call.tangent) ? weight : A(1)) * own[s];
      from[channel * by.of_channel + s * by.of_sum] = own[s];  // which this thread read
    }
  }
  sum_rows(total, by.lanes);
  if (!mine) return;
  const auto of = Form::of(call.group(group), total);
  if (in_group == 0) *reinterpret_cast<typename Form::Of*>(made + group * Form::kCoefficients) = of;
  if (!(parts.of_weight || parts.of_bias) || member != 0) return;
  for (int64_t channel = own_channel; channel < by.depth; channel += by.channel_lanes) {
    A own[Form::kSums];
#pragma unroll
    for (int s = 0; s < Form::kSums; ++s) own[s] = from[channel * by.of_channel + s * by.of_sum];
    const int64_t to = group * by.depth + channel;
    if (parts.of_weight) parts.of_weight[to] = Form::weight_gradient(of, own);
    if (parts.of_bias) parts.of_bias[to] = Form::bias_gradient(own);
  }
}

template <typename A, typename Form>
__device__ __forceinline__ typename Form::Of coefficients_at(const A* made, int64_t group) {
  return *reinterpret_cast<const typename Form::Of*>(made + group * Form::kCoefficients);
}

// Planes and batch: the lines, a vector a thread, wherever runs end.
template <typename T, typename Form>
__global__ void __launch_bounds__(kThreads) write_runs(Call<T> call, const Wide<T>* made, int64_t n) {
  using A = Wide<T>;
  constexpr int kWidth = kVector<T>;
  const auto& b = call.block;
  const int64_t at = first_element(kWidth), channels = b.groups * b.depth;
  if (at >= n) return;
  Piece<T, Form> piece;
  piece.read(call, at, n - at);
  int64_t run = at / b.length, behind = at - run * b.length;
  const auto norm = [&] {
    const int64_t channel = run % channels, group = b.order == BlockOrder::batch ? channel : run / b.depth;
    return OwnNorm<Form>{coefficients_at<A, Form>(made, group), call.mean_of(group), call.weight_of(channel)};
  };
  auto own = norm();
  piece.write(call, at, n - at, [&](int k) {
    if (k > 0 && at + k < n && ++behind == b.length) behind = 0, ++run, own = norm();
    return own;
  });
}

// Pixels, and rows too long to be held: the lines, and the parts of the parameters' gradients where a row is a group: (chunks,
// channels).
template <typename T, typename Form, bool kParameters>
__global__ void __launch_bounds__(kThreads) write_columns(Call<T> call, const Wide<T>* made, Parts<Wide<T>> parts, Columns by) {
  using A = Wide<T>;
  constexpr int kWidth = kVector<T>;
  const auto& b = call.block;
  const int thread = static_cast<int>(threadIdx.x), slots = kThreads / by.columns;
  const int64_t tile = blockIdx.x % by.tiles, chunk = blockIdx.x / by.tiles, rows = b.samples * b.length;
  const int64_t channel = (tile * by.columns + thread % by.columns) * kWidth, left = by.channels - channel;
  const int64_t begin = chunk * by.chunk, end = least(rows, begin + by.chunk);
  A of_weight[kParameters ? kWidth : 1] = {}, of_bias[kParameters ? kWidth : 1] = {}, weights[kWidth], mean[kWidth];
  typename Form::Of of[kWidth];
  int64_t group[kWidth], next = 0;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) weights[k] = 1, group[k] = k < left ? (channel + k) / b.depth : 0;
  if (call.weight) read_weights(call.weight + channel, left, call.wide, weights);
  if (left > 0) {
    for (int64_t row = begin + thread / by.columns; row < end; row += slots) {
      if (row >= next) {
        const int64_t sample = row / b.length;
        next = (sample + 1) * b.length;
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          of[k] = coefficients_at<A, Form>(made, sample * b.groups + group[k]);
          mean[k] = call.mean_of(sample * b.groups + group[k]);
        }
      }
      Piece<T, Form> piece;
      piece.read(call, row * by.channels + channel, left);
      if constexpr (kParameters) {
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          const A x = piece.x(call, k);
          of_weight[k] += Form::weight_gradient(of[k], x, piece.other(k), widen(piece.h.lane[k]) - mean[k]);
          of_bias[k] += x;
        }
      }
      if (call.out || call.bent)
        piece.write(call, row * by.channels + channel, left, [&](int k) { return OwnNorm<Form>{of[k], mean[k], weights[k]}; });
    }
  }
  if constexpr (kParameters) {
    const auto put = [&](A(&values)[kWidth], A* to) {
      sum_columns(values, by.columns);
#pragma unroll
      for (int k = 0; k < kWidth; ++k)
        if (thread < by.columns && k < left) to[chunk * by.channels + channel + k] = values[k];
    };
    if (parts.of_weight) put(of_weight, parts.of_weight);
    if (parts.of_bias) put(of_bias, parts.of_bias);
  }
}

// (channels,) = already, or nothing, + the sum of parts, (count, channels), one after the other; sums are compensated.
template <typename A>
struct Parameter {
  const A *parts, *already;
  A* to;
};

// Of one parameter, or of two in one launch: `tiles` blocks each.
template <typename A>
__global__ void __launch_bounds__(kThreads) add_parts(Parameter<A> first, Parameter<A> second, int64_t count, int64_t channels,
                                                      int64_t tiles, int columns) {
  const bool is_second = blockIdx.x >= tiles;
  const A* const parts = is_second ? second.parts : first.parts;
  const A* const already = is_second ? second.already : first.already;
  A* const to = is_second ? second.to : first.to;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t channel = (blockIdx.x - (is_second ? tiles : 0)) * columns + thread % columns;
  A sum[1] = {0}, lost = 0;
  if (channel < channels) {
    for (int64_t part = thread / columns; part < count; part += kThreads / columns) {
      const A next = parts[part * channels + channel] - lost, more = sum[0] + next;
      lost = (more - sum[0]) - next;
      sum[0] = more;
    }
  }
  sum_columns(sum, columns);
  if (thread >= columns || channel >= channels) return;
  to[channel] = already ? already[channel] + sum[0] : sum[0];
}

// The host's part: which kernels a call takes, with how many blocks, and where in the workspace they put what.
template <typename T, typename Form>
class Plan {
 public:
  using A = Wide<T>;
  static constexpr int kWidth = kVector<T>;

  Plan(const NormCall& told, bool tangent) : told_(told), block_(simplest(told.block)) {
    const auto& b = block_;
    channels_ = b.groups * b.depth;
    statistics_ = b.order == BlockOrder::batch ? b.groups : b.samples * b.groups;
    numel_ = b.samples * channels_ * b.length;
    parameters_ = (told.of_weight != nullptr) + (told.of_bias != nullptr);
    rows_ = b.order == BlockOrder::pixels && b.length == 1;
    const bool one_run = rows_ || b.order == BlockOrder::planes;
    aligned_ = aligned(told.in, told.input, told.other, told.out, told.bent, told.weight);
    held_ = one_run && b.depth * b.length <= kMostHeld<T> && (!parameters_ || (rows_ ? b.groups : b.depth) == 1);
    call_ = {b, as<T>(told.in), as<T>(told.input), as<T>(told.other), as<T>(told.out), as<T>(told.bent), as<A>(told.mean),
             as<A>(told.rstd), as<A>(told.weight), static_cast<const uint8_t*>(told.bits), static_cast<A>(told.slopes.on),
             static_cast<A>(told.slopes.off), tangent, aligned_ && divisible()};
    if (held_) plan_held();
    else plan_split();
  }

  int64_t workspace() const { return sums_ + made_ + parameters_ * parts_ * channels_; }

  int run(void* stream) const {
    A* const sums = as<A>(told_.workspace);
    A* const made = sums + sums_;
    A* const first = made + made_;
    A* const second = told_.of_weight ? first + parts_ * channels_ : first;
    const Parts<A> parts{told_.of_weight ? first : nullptr, told_.of_bias ? second : nullptr};
    int error = cudaSuccess;
    if (numel_ > 0) error = held_ ? run_held(parts, stream) : run_split(sums, made, parts, stream);
    return error == cudaSuccess && parameters_ ? run_parts(parts, stream) : error;
  }

 private:
  template <typename To>
  static To* as(const void* pointer) {
    return static_cast<To*>(const_cast<void*>(pointer));
  }

  // The same block, told so that a run of one element never is one.
  static NormBlock simplest(NormBlock b) {
    if (b.order == BlockOrder::batch && b.length == 1) return {1, b.groups, 1, b.samples, BlockOrder::pixels};
    if (b.order == BlockOrder::batch && b.samples == 1) return {1, b.groups, 1, b.length, BlockOrder::planes};
    if (b.order == BlockOrder::planes && b.length == 1) return {b.samples, b.groups, b.depth, 1, BlockOrder::pixels};
    return b;
  }

  // Whether what a thread begins with is a whole number of vectors from where its tensor begins.
  bool divisible() const {
    const auto& b = block_;
    if (held_ || (rows_ && b.groups > 1)) return b.depth * b.length % kWidth == 0;
    return b.order == BlockOrder::pixels ? channels_ % kWidth == 0 : b.length % kWidth == 0;
  }

  void plan_held() {
    lanes_ = lanes_of_run(block_.depth * block_.length, kWidth);
    held_blocks_ = std::min<int64_t>(parts_of(statistics_, kThreads / lanes_), parameters_ && rows_ ? kBlocks : INT32_MAX);
    parts_ = rows_ ? held_blocks_ : block_.samples;
  }

  void plan_split() {
    const auto& b = block_;
    made_ = statistics_ * Form::kCoefficients;
    columns_ = lanes_for(parts_of(channels_, kWidth), kThreads);
    tiles_ = parts_of(channels_, int64_t{columns_} * kWidth);
    const int64_t slots = kThreads / columns_;
    parts_ = b.order == BlockOrder::batch ? 1 : b.samples;
    if (rows_ || b.order != BlockOrder::pixels) {
      runs_.length = rows_ ? b.depth : b.length;
      runs_.count = numel_ ? numel_ / runs_.length : 0;
      runs_.lanes = lanes_of_run(runs_.length, kWidth);
      const int64_t vector = int64_t{runs_.lanes} * kWidth, wanted = parts_of(kBlocks, std::max<int64_t>(1, runs_.count));
      const int64_t vectors = std::clamp<int64_t>(parts_of(runs_.length, vector * wanted), kLeastVectors, kMostVectors);
      runs_.chunk = vector * vectors;
      runs_.chunks = parts_of(runs_.length, runs_.chunk);
      sums_ = runs_.count * runs_.chunks * Form::kSums;
    } else {
      const int64_t wanted = parts_of(kBlocks, std::max<int64_t>(1, b.samples * tiles_));
      pixels_ = in_chunks(b.length, slots, wanted);
      sums_ = b.samples * pixels_.chunks * Form::kSums * channels_;
    }
    if (b.order == BlockOrder::pixels) {
      const int64_t all = b.samples * b.length;
      lines_ = in_chunks(all, slots, rows_ && parameters_ ? parts_of(kBlocks, tiles_) : INT64_MAX);
      if (rows_) parts_ = lines_.chunks;
    }
    plan_sources();
  }

  // `rows` of channels in at most `most` chunks, of a few rows a thread at least where there are enough.
  Columns in_chunks(int64_t rows, int64_t slots, int64_t most) const {
    const int64_t least = slots * (tiles_ * parts_of(rows, slots * kLeastVectors) >= kBlocks ? kLeastVectors : 1);
    const int64_t chunk = std::max(least, parts_of(rows, most));
    return {channels_, tiles_, parts_of(rows, chunk), chunk, columns_};
  }

  void plan_sources() {
    const auto& b = block_;
    if (b.order == BlockOrder::pixels && !rows_) {
      const int64_t chunk = Form::kSums * channels_;
      sources_ = {b.depth, 1, pixels_.chunks, pixels_.chunks * chunk, b.depth, 1, 0, chunk, channels_};
    } else {
      const int64_t run = runs_.chunks * Form::kSums, depth = rows_ ? 1 : b.depth;
      const bool batch = b.order == BlockOrder::batch;
      sources_ = {depth, batch ? b.samples : 1, runs_.chunks, batch ? 0 : b.groups * depth * run, depth * run, run,
                  batch ? b.groups * run : 0, Form::kSums, 1};
    }
    const int64_t members = sources_.samples * sources_.chunks;
    sources_.channel_lanes = lanes_for(sources_.depth, kThreads);
    sources_.lanes = sources_.channel_lanes * lanes_for(parts_of(members, 4), kThreads / sources_.channel_lanes);
  }

  int run_held(Parts<A> parts, void* stream) const {
    return launch_blocks(parameters_ ? held<T, Form, true> : held<T, Form, false>, held_blocks_, stream, call_, parts, lanes_);
  }

  int run_split(A* sums, A* made, Parts<A> parts, void* stream) const {
    const bool by_runs = rows_ || block_.order != BlockOrder::pixels;
    int error;
    if (by_runs)
      error = launch_blocks(run_sums<T, Form>, parts_of(runs_.count * runs_.chunks, kThreads / runs_.lanes), stream, call_, sums,
                            runs_);
    else
      error = launch_blocks(column_sums<T, Form>, block_.samples * pixels_.chunks * tiles_, stream, call_, sums, pixels_);
    if (error != cudaSuccess) return error;
    error = launch_blocks(coefficients<T, Form>, parts_of(statistics_, kThreads / sources_.lanes), stream, call_, sums, made,
                          rows_ ? Parts<A>{} : parts, sources_);
    if (error != cudaSuccess || !(told_.out || told_.bent || (rows_ && parameters_))) return error;
    if (block_.order != BlockOrder::pixels) {
      auto call = call_;
      call.wide = aligned_;  // wherever runs end
      return launch(write_runs<T, Form>, numel_, kWidth, stream, call, made, numel_);
    }
    return launch_blocks(rows_ && parameters_ ? write_columns<T, Form, true> : write_columns<T, Form, false>,
                         lines_.chunks * tiles_, stream, call_, made, parts, lines_);
  }

  int run_parts(Parts<A> parts, void* stream) const {
    const int columns = lanes_for(channels_, parts_ > kBlocks ? 8 : kWarp);
    const int64_t tiles = parts_of(channels_, columns);
    const Parameter<A> weight{parts.of_weight, as<A>(told_.already), as<A>(told_.of_weight)};
    const Parameter<A> bias{parts.of_bias, nullptr, as<A>(told_.of_bias)};
    return launch_blocks(add_parts<A>, parameters_ * tiles, stream, told_.of_weight ? weight : bias, bias, numel_ ? parts_ : 0,
                         channels_, tiles, columns);
  }

  const NormCall& told_;
  const NormBlock block_;
  Call<T> call_;
  int64_t channels_, statistics_, numel_, parts_ = 0, sums_ = 0, made_ = 0, tiles_ = 0, held_blocks_ = 0;
  int parameters_, lanes_ = 0, columns_ = 0;
  bool rows_, held_, aligned_;
  Runs runs_{};
  Columns pixels_{}, lines_{};
  Sources sources_{};
};

// Calls use(plan) with the kernels that a call takes.
template <typename F>
int with_plan(Dtype dtype, const NormCall& call, bool tangent, const F& use) {
  return with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    if (tangent && call.other) return use(Plan<T, Bend<Wide<T>>>(call, true));
    return use(Plan<T, Line<Wide<T>>>(call, tangent));
  });
}

int run(Dtype dtype, const NormCall& call, bool tangent, void* stream) {
  return with_plan(dtype, call, tangent, [&](const auto& plan) { return plan.run(stream); });
}
int workspace(Dtype dtype, const NormCall& call, bool tangent, int64_t* elements) {
  return with_plan(dtype, call, tangent, [&](const auto& plan) {
    *elements = plan.workspace();
    return cudaSuccess;
  });
}

}  // namespace
}  // namespace gpfast

extern "C" int gpfast_normalize_adjoint_cuda(gpfast::Dtype dtype, const gpfast::NormCall* call, void* stream) {
  return gpfast::run(dtype, *call, /*tangent=*/false, stream);
}
extern "C" int gpfast_normalize_tangent_cuda(gpfast::Dtype dtype, const gpfast::NormCall* call, void* stream) {
  return gpfast::run(dtype, *call, /*tangent=*/true, stream);
}
extern "C" int gpfast_normalize_adjoint_workspace_cuda(gpfast::Dtype dtype, const gpfast::NormCall* call, int64_t* elements) {
  return gpfast::workspace(dtype, *call, /*tangent=*/false, elements);
}
extern "C" int gpfast_normalize_tangent_workspace_cuda(gpfast::Dtype dtype, const gpfast::NormCall* call, int64_t* elements) {
  return gpfast::workspace(dtype, *call, /*tangent=*/true, elements);
}

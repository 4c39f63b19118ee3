// The CUDA kernels of the norms. A group that is one run of memory, and fits, is held in registers between its sums and its
// lines: one pass (held). One that is a few times as long is a block's all the same, which reads it twice (held, kTwice). Any
// other takes two passes: sums of parts of it (run_sums, column_sums), what they make of the norm (coefficients), its lines
// (write_runs, write_columns). Gradients of parameters are parts, which add_parts adds up, unless a block has all the rows.
#include "ops/cuda_sums.h"
#include "ops/normalize_pieces.h"
#include "ops/normalize_plan.h"

namespace gpfast {
namespace {

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
  // A run of several channels is a block's, so it is short.
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

// Where the parts of the parameters' gradients go; null where one is not wanted. already: what a part of the weight's gradient
// that is the whole of it is added to, or null.
template <typename A>
struct Parts {
  A *of_weight, *of_bias;
  const A* already;
};

// Rows, or planes: each group is one run, of `lanes` threads. Parts: (blocks, channels) for rows, of one group each;
// (groups,) for planes, of one channel each.
// kTwice: a group, a block's, is longer than what its threads hold at once. They read it piece by piece for the sums, and for the
// lines from its end, which they hold still, to its begin; or put the coefficients to `made`, (statistics, kCoefficients), where
// that is not null, and leave lines and rows' parameters to write_columns.
// With room for one block the compiler does not spill registers to fit more.
template <typename T, typename Form, bool kParameters, bool kTwice>
__global__ void __launch_bounds__(kThreads, 1) held(Call<T> call, Parts<Wide<T>> parts, int lanes, Wide<T>* made) {
  static_assert(!(kParameters && kTwice));
  using A = Wide<T>;
  constexpr int kWidth = kVector<T>;
  if (kTwice) lanes = kThreads;
  const auto& b = call.block;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % lanes, slots = kThreads / lanes;
  const int64_t groups = b.samples * b.groups, n = b.depth * b.length;
  const int64_t at_once = int64_t{kHeld} * lanes * kWidth, last = kTwice ? (n - 1) / at_once * at_once : 0;
  const bool rows = b.length == 1, of_channel = !rows && b.depth == 1;
  A of_weight[kParameters ? kHeld : 1][kWidth] = {}, of_bias[kParameters && !Form::kBends ? kHeld : 1][kWidth] = {};
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * slots; first < groups; first += static_cast<int64_t>(gridDim.x) * slots) {
    const int64_t group = first + thread / lanes;
    const bool mine = group < groups;
    const int64_t begin = group * n, channel = mine ? group % b.groups * b.depth : 0;
    const A mean = mine ? call.mean_of(group) : A(0), of_group = mine && of_channel ? call.weight_of(channel) : A(1);
    Piece<T, Form> pieces[kHeld];
    A sums[Form::kSums] = {};
    const auto element = [&](int64_t from, int j) { return from + (j * lanes + lane) * kWidth; };
    const auto read_pieces = [&](int64_t from) {
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        const int64_t e = element(from, j);
        pieces[j].read(call, begin + e, mine ? n - e : 0);
      }
    };
    const auto weights_of = [&](int64_t e, A(&weights)[kWidth]) {
      if (of_channel) {
#pragma unroll
        for (int k = 0; k < kWidth; ++k) weights[k] = 1;
      } else {
        weights_in_run(call, channel, e, mine ? n - e : 0, weights);
      }
    };
    for (int64_t from = 0;; from += at_once) {
      read_pieces(from);
      A some[Form::kSums] = {};
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        A weights[kWidth];
        weights_of(element(from, j), weights);
        if (!Form::kBends && call.tangent) {
#pragma unroll
          for (int k = 0; k < kWidth; ++k) weights[k] = 1;
        }
        pieces[j].add(call, some, mean, weights);
      }
#pragma unroll
      for (int k = 0; k < Form::kSums; ++k) sums[k] += some[k];
      if (!kTwice || from == last) break;
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
    if ((kParameters || kTwice) && of_channel && lane == 0) {
      if (parts.of_weight) parts.of_weight[group] = Form::weight_gradient(of, own);
      if (parts.of_bias) parts.of_bias[group] = Form::bias_gradient(own);
    }
    if (kTwice && made) {
      if (lane == 0) *reinterpret_cast<typename Form::Of*>(made + group * Form::kCoefficients) = of;
      continue;
    }
    if (kTwice && !call.out && !call.bent) continue;
    for (int64_t from = last;; from -= at_once) {
      if (from != last) read_pieces(from);
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        const int64_t e = element(from, j);
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
        weights_of(e, weights);
        pieces[j].write(call, begin + e, n - e, [&](int k) { return OwnNorm<Form>{of, mean, weights[k] * of_group}; });
      }
      if (!kTwice || from == 0) break;
    }
  }
  if constexpr (kParameters) {
    if (!rows) return;
    const auto put = [&](A(&values)[kWidth], int j, A* to) {
      sum_columns(values, lanes);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const int64_t e = int64_t{j * lanes + lane} * kWidth + k;
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

// The coefficients of each group: made is (statistics, kCoefficients). Parts: (statistics, depth). Sums are added up in place.
template <typename T, typename Form>
__global__ void __launch_bounds__(kThreads) coefficients(Call<T> call, Wide<T>* sums, Wide<T>* made, Parts<Wide<T>> parts,
                                                         Sources by) {
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

// Pixels, and rows that are not held: the lines, and the parts of the parameters' gradients where a row is a group: (chunks,
// channels), the whole of them where there is one chunk.
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
  const int64_t group = channel / b.depth;
  int64_t next_sample = 0;
  int beyond[kWidth];  // groups from the first element's to this one's
#pragma unroll
  for (int k = 0; k < kWidth; ++k) weights[k] = 1, beyond[k] = k < left ? static_cast<int>((channel + k) / b.depth - group) : 0;
  if (call.weight) read_weights(call.weight + channel, left, call.wide, weights);
  if (left > 0) {
    int64_t row = begin + thread / by.columns;
    Piece<T, Form> coming;  // read before what comes before it is written
    if (row < end) coming.read(call, row * by.channels + channel, left);
    for (; row < end; row += slots) {
      const Piece<T, Form> piece = coming;
      if (row + slots < end) coming.read(call, (row + slots) * by.channels + channel, left);
      if (row >= next_sample) {
        const int64_t sample = row / b.length;
        next_sample = (sample + 1) * b.length;
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          const int64_t statistic = sample * b.groups + group + beyond[k];
          of[k] = coefficients_at<A, Form>(made, statistic);
          mean[k] = call.mean_of(statistic);
        }
      }
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
    const auto put = [&](A(&values)[kWidth], A* to, const A* already) {
      sum_columns(values, by.columns);
#pragma unroll
      for (int k = 0; k < kWidth; ++k)
        if (thread < by.columns && k < left)
          to[chunk * by.channels + channel + k] = already ? already[channel + k] + values[k] : values[k];
    };
    if (parts.of_weight) put(of_weight, parts.of_weight, parts.already);
    if (parts.of_bias) put(of_bias, parts.of_bias, nullptr);
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

// The kernels of a call, by its plan.
template <typename T, typename Form>
class Norm {
 public:
  using A = Wide<T>;

  Norm(const NormCall& told, bool tangent) : told_(told), plan_(told, kVector<T>, Form::kSums, Form::kCoefficients) {
    call_ = {plan_.block, as<T>(told.in), as<T>(told.input), as<T>(told.other), as<T>(told.out), as<T>(told.bent),
             as<A>(told.mean), as<A>(told.rstd), as<A>(told.weight), static_cast<const uint8_t*>(told.bits),
             static_cast<A>(told.slopes.on), static_cast<A>(told.slopes.off), tangent,
             aligned(told.in, told.input, told.other, told.out, told.bent, told.weight)};
    flat_ = call_;  // a vector of its own for each thread, wherever runs end
    call_.wide = call_.wide && plan_.divisible();
  }

  int64_t workspace() const { return plan_.workspace(); }

  int run(void* stream) const {
    A* const sums = as<A>(told_.workspace);
    A* const made = sums + plan_.sums;
    A* const first = made + plan_.made;
    A* const second = told_.of_weight ? first + plan_.parts * plan_.channels : first;
    Parts<A> parts{told_.of_weight ? first : nullptr, told_.of_bias ? second : nullptr, nullptr};
    if (plan_.complete) parts = {as<A>(told_.of_weight), as<A>(told_.of_bias), as<A>(told_.already)};
    int error = cudaSuccess;
    if (plan_.numel > 0) error = plan_.held ? run_held(parts, stream) : run_passes(sums, made, parts, stream);
    return error == cudaSuccess && plan_.parameters && !plan_.complete ? run_parts(parts, stream) : error;
  }

 private:
  template <typename To>
  static To* as(const void* pointer) {
    return static_cast<To*>(const_cast<void*>(pointer));
  }

  int run_held(Parts<A> parts, void* stream) const {
    A* const none = nullptr;
    return launch_blocks(plan_.parameters ? held<T, Form, true, false> : held<T, Form, false, false>, plan_.blocks, stream, call_,
                         parts, plan_.lanes, none);
  }

  int run_passes(A* sums, A* made, Parts<A> parts, void* stream) const {
    const bool of_rows = plan_.rows && plan_.parameters;
    const Parts<A> of_groups = of_rows ? Parts<A>{} : parts;
    int error = cudaSuccess;
    if (plan_.twice) {
      A* const to = of_rows ? made : nullptr;
      error = launch_blocks(held<T, Form, false, true>, plan_.statistics, stream, call_, of_groups, kThreads, to);
      if (!of_rows) return error;
    } else {
      error = run_sums_of_parts(sums, stream);
      if (error != cudaSuccess) return error;
      error = launch_blocks(coefficients<T, Form>, parts_of(plan_.statistics, kThreads / plan_.sources.lanes), stream, call_,
                            sums, made, of_groups, plan_.sources);
    }
    if (error != cudaSuccess || !(told_.out || told_.bent || of_rows)) return error;
    if (!plan_.rows && !plan_.pixels)
      return launch(write_runs<T, Form>, plan_.numel, kVector<T>, stream, flat_, made, plan_.numel);
    return launch_blocks(of_rows ? write_columns<T, Form, true> : write_columns<T, Form, false>,
                         plan_.all.chunks * plan_.all.tiles, stream, call_, made, parts, plan_.all);
  }

  int run_sums_of_parts(A* sums, void* stream) const {
    const Runs& runs = plan_.runs;
    const Columns& by = plan_.of_sample;
    if (plan_.pixels)
      return launch_blocks(column_sums<T, Form>, plan_.block.samples * by.chunks * by.tiles, stream, call_, sums, by);
    return launch_blocks(run_sums<T, Form>, parts_of(runs.count * runs.chunks, kThreads / runs.lanes), stream, call_, sums, runs);
  }

  int run_parts(Parts<A> parts, void* stream) const {
    const int columns = lanes_for(plan_.channels, plan_.parts > kBlocks ? 8 : kWarp);
    const int64_t tiles = parts_of(plan_.channels, columns);
    const Parameter<A> weight{parts.of_weight, as<A>(told_.already), as<A>(told_.of_weight)};
    const Parameter<A> bias{parts.of_bias, nullptr, as<A>(told_.of_bias)};
    return launch_blocks(add_parts<A>, plan_.parameters * tiles, stream, told_.of_weight ? weight : bias, bias,
                         plan_.numel ? plan_.parts : 0, plan_.channels, tiles, columns);
  }

  const NormCall& told_;
  const NormPlan plan_;
  Call<T> call_, flat_;
};

// Calls use(norm) with the norm of a call.
template <typename F>
int with_norm(Dtype dtype, const NormCall& call, bool tangent, const F& use) {
  return with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    if (tangent && call.other) return use(Norm<T, Bend<Wide<T>>>(call, true));
    return use(Norm<T, Line<Wide<T>>>(call, tangent));
  });
}

int run(Dtype dtype, const NormCall& call, bool tangent, void* stream) {
  return with_norm(dtype, call, tangent, [&](const auto& norm) { return norm.run(stream); });
}
int workspace(Dtype dtype, const NormCall& call, bool tangent, int64_t* elements) {
  return with_norm(dtype, call, tangent, [&](const auto& norm) {
    *elements = norm.workspace();
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

// The normalisation kernels of the CPU: a group's sums, then its lines, while it is in the cache.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <vector>

#include "ops/normalize.h"
#include "ops/normalize_loops.h"

namespace gpfast {
namespace {

using at::Tensor;

// The coefficients of a group, and its parts, from the sums of each of its channels: (channels, Op::kSums).
template <typename Op>
auto finish(const Op& op, int64_t group, const double* own, int64_t channels, int64_t channel, int64_t part) {
  double sums[Op::kSums] = {};
  for (int64_t c = 0; c < channels; ++c)
    for (int k = 0; k < Op::kSums; ++k)
      sums[k] += (k >= Op::kFirstWeightedSum ? op.weight_of(channel + c) : 1) * own[c * Op::kSums + k];
  const auto line = op.coefficients(op.group(group), sums);
  for (int64_t c = 0; c < channels; ++c) op.put_parts(part + c, line, own + c * Op::kSums);
  return line;
}

// Groups [begin, end) where each channel is a run of elements in memory: a group's channels, or a channel's samples.
template <typename Op>
GPFAST_INLINE void planes(const Op& op, int64_t begin, int64_t end) {
  using A = typename Op::A;
  const auto& b = op.block;
  const bool batch = b.order == BlockOrder::batch;
  const int64_t runs = batch ? b.samples : b.depth, step = (batch ? b.groups : 1) * b.length, channels = batch ? 1 : b.depth;
  std::vector<double> own(channels * Op::kSums);
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = group * b.depth * b.length, channel = group % b.groups * b.depth;
    const A mean = op.mean_of(group);
    std::fill(own.begin(), own.end(), 0.0);
    for (int64_t j = 0; j < runs; ++j)
      op.sum(first + j * step, Same<A>{1}, mean, b.length, own.data() + (batch ? 0 : j * Op::kSums));
    const auto line = finish(op, group, own.data(), channels, channel, group * b.depth);
    if (!op.writes()) continue;
    for (int64_t j = 0; j < runs; ++j) {
      const A w = op.weight_of(channel + (batch ? 0 : j));
      Same<A> weighted[4], plain[3];
      for (int k = 0; k < Op::kWeighted; ++k) weighted[k].value = w * line.weighted[k];
      for (int k = 0; k < Op::kPlain; ++k) plain[k].value = line.plain[k];
      op.write(first + j * step, weighted, plain, Same<A>{mean}, b.length);
    }
  }
}

// Samples [begin, end) where each channel is one element: a group is a row. part: where this run of samples adds its parts.
template <typename Op, typename W>
GPFAST_INLINE void rows(const Op& op, W weights, int64_t begin, int64_t end, int64_t part) {
  using A = typename Op::A;
  const auto& b = op.block;
  for (int64_t row = begin * b.groups; row < end * b.groups; ++row) {
    const int64_t at = row * b.depth, channel = row % b.groups * b.depth;
    const A mean = op.mean_of(row);
    const W w = from(weights, channel);
    double sums[Op::kSums] = {};
    op.sum(at, w, mean, b.depth, sums);
    const auto line = op.coefficients(op.group(row), sums);
    op.add_row_parts(at, part + channel, mean, op.rstd[row], line, b.depth);
    if (!op.writes()) continue;
    Times<W, A> weighted[4];
    Same<A> plain[3];
    for (int k = 0; k < Op::kWeighted; ++k) weighted[k] = Times<W, A>{w, line.weighted[k]};
    for (int k = 0; k < Op::kPlain; ++k) plain[k].value = line.plain[k];
    op.write(at, weighted, plain, Same<A>{mean}, b.depth);
  }
}

template <typename Op>
GPFAST_INLINE void any_rows(const Op& op, int64_t begin, int64_t end, int64_t part) {
  using A = typename Op::A;
  if (op.weight)
    rows(op, op.weight, begin, end, part);
  else
    rows(op, Same<A>{1}, begin, end, part);
}

// Coefficients and means of all channels of a sample, one vector each.
template <typename A>
struct PixelLines {
  std::vector<A> values;
  const A *mean, *weighted[4], *plain[3];
};

#define GPFAST_DEFINE_OP(Op)                                                                                                 \
  GPFAST_CLONES void run_planes(const Op& op, int64_t begin, int64_t end) { planes(op, begin, end); }                        \
  GPFAST_CLONES void run_rows(const Op& op, int64_t begin, int64_t end, int64_t part) { any_rows(op, begin, end, part); }    \
  GPFAST_CLONES void sum_pixels(const Op& op, int64_t at, int64_t pixels, const Op::A* mean, Op::A* sums) {                  \
    const int64_t n = op.block.channels();                                                                                   \
    for (int64_t i = 0; i < pixels; ++i) op.sum_pixel(at + i * n, mean, n, sums);                                            \
  }                                                                                                                          \
  GPFAST_CLONES void write_pixels(const Op& op, int64_t at, int64_t pixels, const PixelLines<Op::A>& lines) {                \
    const int64_t n = op.block.channels();                                                                                   \
    for (int64_t i = 0; i < pixels; ++i) op.write(at + i * n, lines.weighted, lines.plain, lines.mean, n);                   \
  }
#define GPFAST_DEFINE(T)       \
  GPFAST_DEFINE_OP(Adjoint<T>) \
  GPFAST_DEFINE_OP(Tangent<T>)
GPFAST_FOR_EACH_DTYPE(GPFAST_DEFINE)
#undef GPFAST_DEFINE
#undef GPFAST_DEFINE_OP

constexpr int64_t kRun = 32;  // pixels that are summed in A

int64_t chunks_of(int64_t n, int64_t chunk) { return (n + chunk - 1) / chunk; }

// Samples whose pixels each hold all channels. Sums are of fixed chunks of pixels, added up in order: the same bits whether
// threads share the samples or the pixels of one. One pixel after another, they would round more than the eager lines' if they
// were long.
template <typename Op>
class Pixels {
 public:
  using A = typename Op::A;
  explicit Pixels(const Op& op) : op(op), n(op.block.channels()), chunk(std::clamp<int64_t>(4 * kChunk / n, 1, 256)) {}

  void run() const {
    const int64_t samples = op.block.samples, length = op.block.length;
    if (samples >= at::get_num_threads() || samples * length * n < 2 * kGrain) {
      at::parallel_for(0, samples, std::max<int64_t>(1, kGrain / (length * n)), [&](int64_t begin, int64_t end) {
        for (int64_t sample = begin; sample < end; ++sample) run_sample(sample, false);
      });
    } else {
      for (int64_t sample = 0; sample < samples; ++sample) run_sample(sample, true);
    }
  }

 private:
  template <typename F>
  void for_each_chunk(bool shared, const F& work) const {
    const int64_t length = op.block.length, chunks = chunks_of(length, chunk);
    const auto range = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) work(i, i * chunk, std::min(chunk, length - i * chunk));
    };
    if (shared)
      at::parallel_for(0, chunks, 1, range);
    else
      range(0, chunks);
  }

  void run_sample(int64_t sample, bool shared) const {
    const int64_t length = op.block.length, first = sample * length * n, chunks = chunks_of(length, chunk);
    PixelLines<A> lines = with_means(sample);
    std::vector<double> sums(Op::kSums * n * chunks);
    for_each_chunk(shared, [&](int64_t i, int64_t pixel, int64_t pixels) {
      std::vector<A> run(Op::kSums * n);
      double* all = sums.data() + i * Op::kSums * n;
      for (int64_t done = 0; done < pixels; done += kRun) {
        std::fill(run.begin(), run.end(), A(0));
        sum_pixels(op, first + (pixel + done) * n, std::min(kRun, pixels - done), lines.mean, run.data());
        for (int64_t j = 0; j < Op::kSums * n; ++j) all[j] += run[j];
      }
    });
    std::vector<double> own(Op::kSums * n);
    for (int64_t i = 0; i < chunks; ++i)
      for (int k = 0; k < Op::kSums; ++k)
        for (int64_t c = 0; c < n; ++c) own[c * Op::kSums + k] += sums[(i * Op::kSums + k) * n + c];
    finish_sample(sample, own, lines);
    if (!op.writes()) return;
    for_each_chunk(shared, [&](int64_t, int64_t pixel, int64_t pixels) { write_pixels(op, first + pixel * n, pixels, lines); });
  }

  PixelLines<A> with_means(int64_t sample) const {
    const auto& b = op.block;
    PixelLines<A> lines{std::vector<A>((1 + Op::kWeighted + Op::kPlain) * n)};
    A* value = lines.values.data();
    for (int64_t c = 0; c < n; ++c) value[c] = op.mean_of(sample * b.groups + c / b.depth);
    lines.mean = value;
    for (int k = 0; k < Op::kWeighted; ++k) lines.weighted[k] = value += n;
    for (int k = 0; k < Op::kPlain; ++k) lines.plain[k] = value += n;
    return lines;
  }

  void finish_sample(int64_t sample, const std::vector<double>& own, PixelLines<A>& lines) const {
    const auto& b = op.block;
    A* const values = lines.values.data() + n;
    for (int64_t group = 0; group < b.groups; ++group) {
      const int64_t first = group * b.depth;
      const auto line =
          finish(op, sample * b.groups + group, own.data() + first * Op::kSums, b.depth, first, sample * n + first);
      for (int64_t c = first; c < first + b.depth; ++c) {
        for (int k = 0; k < Op::kWeighted; ++k) values[k * n + c] = op.weight_of(c) * line.weighted[k];
        for (int k = 0; k < Op::kPlain; ++k) values[(Op::kWeighted + k) * n + c] = line.plain[k];
      }
    }
  }

  const Op& op;
  const int64_t n, chunk;
};

// Rows are shared out in runs that depend on the shape alone, each with parts of its own: an eighth of the block at most.
int64_t runs_of(const NormBlock& block) {
  return std::clamp<int64_t>(std::min(block.numel() / kGrain, block.samples / 8), 1, 64);
}

int64_t parts_of(const NormBlock& block) {
  if (block.order == BlockOrder::batch) return 1;
  return block.is_rows() ? runs_of(block) : block.samples;
}

template <typename Op>
void run(const Op& op) {
  const auto& b = op.block;
  if (b.is_rows()) {
    const int64_t runs = runs_of(b);
    at::parallel_for(0, runs, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) run_rows(op, b.samples * i / runs, b.samples * (i + 1) / runs, i * b.channels());
    });
  } else if (b.order == BlockOrder::pixels) {
    Pixels<Op>(op).run();
  } else {
    const int64_t groups = b.statistics(), members = b.numel() / groups;
    at::parallel_for(0, groups, std::max<int64_t>(1, kGrain / members),
                     [&](int64_t begin, int64_t end) { run_planes(op, begin, end); });
  }
}

// (C,), the parts added up in order to what is there already.
template <typename A>
Tensor total(const std::vector<A>& parts, const Tensor& already, const Tensor& like, int64_t channels) {
  const auto result = at::empty({channels}, like.options());
  A* out = result.mutable_data_ptr<A>();
  const A* first = already.defined() ? already.const_data_ptr<A>() : nullptr;
  const int64_t rows = static_cast<int64_t>(parts.size()) / channels;
  at::parallel_for(0, channels, std::max<int64_t>(1, kGrain / rows), [&](int64_t begin, int64_t end) {
    std::vector<double> sums(end - begin);
    if (first) std::copy(first + begin, first + end, sums.begin());
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t c = begin; c < end; ++c) sums[c - begin] += parts[row * channels + c];
    for (int64_t c = begin; c < end; ++c) out[c] = static_cast<A>(sums[c - begin]);
  });
  return result;
}

// The small tensors of a norm in the dtype that is computed in, and the norm that points into them.
template <typename T>
struct Held {
  using A = Accumulate<T>;
  Tensor mean, rstd, weight;
  Norm<T> norm;

  Held(const NormTensors& tensors, const NormBlock& block) {
    const auto wide = [](const Tensor& x) { return x.defined() ? x.to(c10::CppTypeToScalarType<A>::value).contiguous() : x; };
    const auto data = [](const Tensor& x) { return x.defined() ? x.const_data_ptr<A>() : nullptr; };
    mean = wide(tensors.mean), rstd = wide(tensors.rstd), weight = wide(tensors.weight);
    norm = {block, tensors.input.const_data_ptr<T>(), data(mean), data(rstd), data(weight)};
  }
};

template <typename T>
const T* data_or_null(const Tensor& x) {
  return x.defined() ? x.const_data_ptr<T>() : nullptr;
}
template <typename T>
T* mutable_data_or_null(const Tensor& x) {
  return x.defined() ? x.mutable_data_ptr<T>() : nullptr;
}

template <typename T>
std::tuple<Tensor, Tensor> adjoint(const Tensor& out, const Tensor& z, const Tensor& add, const NormTensors& tensors,
                                   const Tensor& weight_gradient, const NormBlock& block, bool want_weight, bool want_bias) {
  const Held<T> held(tensors, block);
  const int64_t channels = block.channels(), parts = parts_of(block) * channels;
  std::vector<Accumulate<T>> of_weight(want_weight ? parts : 0), of_bias(want_bias ? parts : 0);
  run(Adjoint<T>{held.norm, mutable_data_or_null<T>(out), z.const_data_ptr<T>(), data_or_null<T>(add),
                 want_weight ? of_weight.data() : nullptr, want_bias ? of_bias.data() : nullptr});
  return {want_weight ? total(of_weight, weight_gradient, held.rstd, channels) : Tensor(),
          want_bias ? total(of_bias, Tensor(), held.rstd, channels) : Tensor()};
}

template <typename T>
Tensor tangent(const Tensor& out, const Tensor& bent, const Tensor& t, const Tensor& a, const NormTensors& tensors,
               const NormBlock& block, bool want_weight) {
  const Held<T> held(tensors, block);
  const int64_t channels = block.channels();
  std::vector<Accumulate<T>> of_weight(want_weight ? parts_of(block) * channels : 0);
  run(Tangent<T>{held.norm, mutable_data_or_null<T>(out), mutable_data_or_null<T>(bent), t.const_data_ptr<T>(),
                 data_or_null<T>(a), want_weight ? of_weight.data() : nullptr});
  return want_weight ? total(of_weight, Tensor(), held.rstd, channels) : Tensor();
}

}  // namespace

std::tuple<Tensor, Tensor> normalize_adjoint_cpu(const Tensor& out, const Tensor& z, const Tensor& add, const NormTensors& norm,
                                                 const Tensor& weight_gradient, const NormBlock& block, bool want_weight,
                                                 bool want_bias, const GateOfBits& gate) {
  const auto x = !gate.bits.defined() || out.is_same(z) ? z : at::empty_like(z);
  if (gate.bits.defined()) gated_cpu(z, gate.bits, {}, gate.slopes, x);
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, z.scalar_type(), "normalize_adjoint", [&] {
    return adjoint<scalar_t>(out, x, add, norm, weight_gradient, block, want_weight, want_bias);
  });
}

Tensor normalize_tangent_cpu(const Tensor& out, const Tensor& bent, const Tensor& t, const Tensor& a, const NormTensors& norm,
                             const NormBlock& block, bool want_weight, const GateOfBits& gate) {
  auto of_weight = AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, t.scalar_type(), "normalize_tangent", [&] {
    return tangent<scalar_t>(out, bent, t, a, norm, block, want_weight);
  });
  if (out.defined() && gate.bits.defined()) gated_cpu(out, gate.bits, {}, gate.slopes, out);
  return of_weight;
}

}  // namespace gpfast

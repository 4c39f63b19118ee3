#include "ops/dense.h"

#include <ATen/Dispatch.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "ops/activation.h"
#include "ops/gate_test.h"
#include "ops/inline.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define GPFAST_DENSE
#endif

namespace gpfast {
namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;
using Numbers = at::ArrayRef<double>;

constexpr int64_t kBlock = 128;   // rows a thread
constexpr int kGateNumbers = 5;   // test, lower, upper, on, off
constexpr int kCurveNumbers = 4;  // kind, p, q, r

Tensor none(const Tensor& like) { return at::empty({0}, like.options()); }
bool there(const Tensor& tensor) { return tensor.defined() && tensor.numel() > 0; }

// One tensor a layer, from the points up, as the dispatcher has them: undefined where the list ends before it or has no elements.
void place(at::TensorList list, DenseLayers& layers, Tensor DenseLayer::* part, const char* name) {
  TORCH_CHECK(list.size() <= layers.size(), "gpfast::dense: ", layers.size(), " weights and ", list.size(), " ", name);
  for (size_t i = 0; i < list.size(); ++i)
    if (there(list[i])) layers[i].*part = list[i];
}

// Layer i has bit i.
void place(int64_t bits, DenseLayers& layers, bool DenseLayer::* part) {
  for (size_t i = 0; i < layers.size(); ++i) layers[i].*part = (bits >> i & 1) != 0;
}

DenseLayers layers_of(at::TensorList weights, at::TensorList deciders, Numbers gates, at::TensorList saved, Numbers curves,
                      at::TensorList factors) {
  const size_t most = weights.size();
  TORCH_CHECK(most > 0 && most < 64, "gpfast::dense: ", most, " weights");
  TORCH_CHECK(gates.size() == kGateNumbers * deciders.size() && curves.size() == kCurveNumbers * saved.size(), "gpfast::dense: ",
              deciders.size(), " deciders with ", gates.size(), " numbers, ", saved.size(), " smooth activations with ",
              curves.size());
  DenseLayers layers(most);
  for (size_t i = 0; i < most; ++i) {
    layers[i].weight = weights[i];
    TORCH_CHECK(i == 0 || weights[i].size(0) == weights[i - 1].size(1), "gpfast::dense: weight ", i, " is ", weights[i].sizes());
  }
  place(deciders, layers, &DenseLayer::decider, "deciders");
  place(saved, layers, &DenseLayer::saved, "smooth activations");
  place(factors, layers, &DenseLayer::factor, "factors");
  for (size_t i = 0; i < deciders.size(); ++i) {
    const auto by = gates.slice(kGateNumbers * i, kGateNumbers);
    if (layers[i].decider.defined()) layers[i].gate = {static_cast<Test>(by[0]), by[1], by[2], {by[3], by[4]}};
  }
  for (size_t i = 0; i < saved.size(); ++i) {
    auto& layer = layers[i];
    if (!layer.saved.defined()) continue;
    const auto by = curves.slice(kCurveNumbers * i, kCurveNumbers);
    layer.curve = {static_cast<Activation>(by[0]), by[1], by[2], by[3]};
    TORCH_CHECK(!layer.decider.defined() && vectorised(layer.curve.kind), "gpfast::dense: layer ", i,
                " has a smooth activation of kind ", by[0], layer.decider.defined() ? " beside a gate" : "");
  }
  return layers;
}

int64_t columns_of(const DenseLayers& layers) {
  int64_t columns = 0;
  for (const auto& layer : layers) columns += layer.weight.size(1);
  return columns;
}

// Rows are swept in blocks, so that the tangents and second adjoints between layers, which gradients are made of, need not be there
// for all of them. They are the caller's to hold, so that whoever counts memory sees them.
int64_t rows_of_block(int64_t rows) { return std::min<int64_t>(rows, kBlock * at::get_num_threads()); }

int64_t room_for_tangents(int64_t rows, const DenseLayers& layers, bool ratio) {
  const int64_t own = ratio ? layers.front().weight.size(0) : 0;
  return rows_of_block(rows) * (own + columns_of(layers) - layers.back().weight.size(1));
}

// Second adjoints arrive at layers [begin, end) and start as the bend of layer `end`, where there is one.
struct Seconds {
  size_t begin = 0, end = 0;

  Seconds(const Tensor& b, const DenseLayers& layers, bool through) : end(layers.size()) {
    if (!b.defined())
      do --end;
      while (end > 0 && !layers[end].bend.defined());
    while (!through && begin < layers.size() && !layers[begin].input.defined() && !layers[begin].sums) ++begin;
  }
  bool at(size_t i, const DenseLayers& layers) const {
    return begin <= i && (i < end || (i == end && layers[i].bend.defined()));
  }
};

int64_t room_for_seconds(int64_t rows, const DenseLayers& layers, const Seconds& seconds) {
  int64_t columns = 0;
  for (size_t i = seconds.begin; i < seconds.end; ++i) columns += layers[i].weight.size(1);
  return rows_of_block(rows) * columns;
}

// Of layers at which second adjoints arrive; -1 where there is nothing that says how many.
int64_t rows_of(const Tensor& b, const DenseLayers& layers) {
  if (b.defined()) return b.size(0);
  for (const auto& layer : layers)
    if (layer.bend.defined()) return layer.bend.size(0);
  return -1;
}

bool by_columns(const Tensor& weight) { return weight.stride(0) == 1; }

// In PyTorch's own operators, for every device.

Tensor between_plain(Tensor z, const DenseLayer& layer) {
  if (layer.decider.defined()) z = std::get<0>(gate(z.contiguous(), layer.decider, {}, layer.gate, /*in_place=*/false));
  if (layer.saved.defined()) z = derivative(layer.saved, layer.curve, /*second=*/false) * z;
  return layer.factor.defined() ? z * layer.factor : z;
}

Tensor gradient_plain(const Tensor& x, const Tensor& a, const Tensor& weight) {
  return by_columns(weight) ? at::mm(a.t(), x).t() : at::mm(x.t(), a);
}

std::tuple<Tensor, Tensor> adjoint_plain(const Tensor& a, DenseLayers& layers) {
  Tensors held(layers.size());
  Tensor z = a;
  for (size_t i = layers.size(); i-- > 0;) {
    auto& layer = layers[i];
    if (layer.saved.defined()) {
      layer.bend = (derivative(layer.saved, layer.curve, /*second=*/true) * z).contiguous();
      if (layer.factor.defined()) layer.bend.mul_(layer.factor);
    }
    z = between_plain(z, layer);
    held[i] = z.reshape({-1});
    z = at::mm(z, layer.weight.t());
  }
  return {z, at::cat(held)};
}

std::tuple<Tensor, Tensors, Tensors> tangent_plain(const Tensor& t, const Tensor& held, const Tensor& /*room*/,
                                                   const DenseLayers& layers, bool through, const Tensor& ratio) {
  Tensors gradients(layers.size()), sums(layers.size(), none(t));
  Tensor z = t;
  int64_t begin = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto& layer = layers[i];
    const auto adjoint = held.slice(0, begin, begin + t.size(0) * layer.weight.size(1)).view({t.size(0), layer.weight.size(1)});
    begin += adjoint.numel();
    const bool meets = ratio.defined() && layer.input.defined();
    gradients[i] = layer.wanted ? gradient_plain(meets ? z + ratio.unsqueeze(1) * layer.input : z, adjoint, layer.weight) : none(t);
    if (ratio.defined() && layer.sums) sums[i] = (ratio.unsqueeze(1) * adjoint).sum(0);
    if (i + 1 == layers.size() && !through) continue;
    z = at::mm(z, layer.weight);
    if (layer.bend.defined()) layer.bend.mul_(z);
    z = between_plain(z, layer);
  }
  return {through ? z : none(t), gradients, sums};
}

std::tuple<Tensor, Tensors> second_plain(const Tensor& b, const Tensor& /*room*/, const DenseLayers& layers,
                                         const Tensors& gradients, bool through) {
  const Seconds seconds(b, layers, through);
  const auto& like = layers[0].weight;
  Tensors sums(layers.size());
  Tensor z = b;
  for (size_t i = layers.size(); i-- > 0;) {
    const auto& layer = layers[i];
    sums[i] = none(like);
    if (!seconds.at(i, layers)) continue;
    if (z.defined()) z = between_plain(z, layer);
    if (layer.bend.defined()) z = z.defined() ? z + layer.bend : layer.bend;
    if (layer.sums) sums[i] = z.sum(0);
    if (layer.input.defined()) gradients[i].add_(gradient_plain(layer.input, z, layer.weight));
    if (i > seconds.begin || through) z = at::mm(z, layer.weight.t());
  }
  return {through && z.defined() ? z : none(like), sums};
}

#ifdef GPFAST_DENSE

constexpr int64_t kWorth = 1 << 16;  // multiplications worth a thread
constexpr int64_t kDeep = 64;        // terms of a sum that is added to others
constexpr int64_t kPiece = 512;      // derivatives at a time
static_assert(kBlock % kDeep == 0);

// Element (i, j) is at i * row + j * column.
template <typename T>
struct Matrix {
  T* at;
  int64_t row, column;
  GPFAST_INLINE T* operator()(int64_t i, int64_t j) const { return at + i * row + j * column; }
};

template <typename T>
struct Layer {
  Matrix<const T> weight;
  int64_t in, out;
  Matrix<const T> decider{}, factor{};
  Test test{};
  T lower = 0, upper = 0, on = 1, off = 1;
  Matrix<const T> saved{};
  const Curve* curve = nullptr;
  T* bend = nullptr;           // (rows, out)
  T* held = nullptr;           // adjoints of the product, (rows, out)
  const T* tangent = nullptr;  // of the input, (rows, in)
  Matrix<const T> input{};
  const T* ratio = nullptr;  // a number a row
  T* second = nullptr;    // second adjoints of the product, (rows, out): the bend itself where they begin
  T* gradient = nullptr;  // null where none is wanted
  bool columns = false;   // the gradient's
  T* sums = nullptr;      // of the second adjoints over the rows, or of the adjoints times ratio
};
template <typename T>
using Layers = std::vector<Layer<T>>;

template <typename T>
int64_t widest(const Layers<T>& layers) {
  int64_t widest = 0;
  for (const auto& layer : layers) widest = std::max({widest, layer.in, layer.out});
  return widest;
}

// kHeight: rows of a tile, whose two vectors each fill the registers.

namespace avx2 {
#define GPFAST_TARGET __attribute__((target("avx2,fma")))
constexpr int64_t kBytes = 32;
constexpr int kHeight = 6;
template <typename T>
struct Vector;
template <>
struct Vector<float> {
  typedef float Type __attribute__((vector_size(32)));
  GPFAST_INLINE GPFAST_TARGET static Type fma(Type a, Type b, Type c) {
    return (Type)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  }
};
template <>
struct Vector<double> {
  typedef double Type __attribute__((vector_size(32)));
  GPFAST_INLINE GPFAST_TARGET static Type fma(Type a, Type b, Type c) {
    return (Type)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
  }
};
#include "ops/dense_loops.h"
}  // namespace avx2

namespace avx512 {
#define GPFAST_TARGET __attribute__((target("avx512f,avx2,fma")))
constexpr int64_t kBytes = 64;
constexpr int kHeight = 12;
template <typename T>
struct Vector;
template <>
struct Vector<float> {
  typedef float Type __attribute__((vector_size(64)));
  GPFAST_INLINE GPFAST_TARGET static Type fma(Type a, Type b, Type c) {
    return (Type)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  }
};
template <>
struct Vector<double> {
  typedef double Type __attribute__((vector_size(64)));
  GPFAST_INLINE GPFAST_TARGET static Type fma(Type a, Type b, Type c) {
    return (Type)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
  }
};
#include "ops/dense_loops.h"
}  // namespace avx512

std::atomic<int64_t> widest_vectors = avx512::kBytes;

bool wide() {
  static const bool can = __builtin_cpu_supports("avx512f");
  return can && widest_vectors.load() >= avx512::kBytes;
}

template <typename T>
Matrix<const T> rows_of(const Tensor& values, int64_t rows, int64_t columns) {
  if (!values.defined()) return {};
  TORCH_CHECK(values.size(0) == rows && values.size(1) == columns && (columns == 1 || values.stride(1) == 1), "gpfast::dense: ",
              values.sizes(), " with strides ", values.strides(), " for ", rows, " rows of ", columns);
  return {values.const_data_ptr<T>(), values.stride(0), 1};
}

template <typename T>
T* bend_of(const Tensor& bend, int64_t rows, int64_t columns) {
  TORCH_CHECK(bend.is_contiguous() && bend.dim() == 2 && bend.size(0) == rows && bend.size(1) == columns,
              "gpfast::dense: a bend of ", bend.sizes(), " for ", rows, " rows of ", columns);
  return bend.mutable_data_ptr<T>();
}

template <typename T>
Layers<T> pointers(const DenseLayers& layers, const Tensor& held, int64_t rows) {
  Layers<T> out;
  T* adjoints = held.defined() ? held.mutable_data_ptr<T>() : nullptr;
  for (const auto& layer : layers) {
    const auto& weight = layer.weight;
    auto& p = out.emplace_back();
    p.weight = {weight.const_data_ptr<T>(), weight.stride(0), weight.stride(1)};
    p.in = weight.size(0);
    p.out = weight.size(1);
    if (adjoints) p.held = std::exchange(adjoints, adjoints + rows * p.out);
    p.decider = rows_of<T>(layer.decider, rows, p.out);
    p.factor = rows_of<T>(layer.factor, rows, p.out);
    p.saved = rows_of<T>(layer.saved, rows, p.out);
    if (p.saved.at) p.curve = &layer.curve;
    p.input = rows_of<T>(layer.input, rows, p.in);
    if (layer.bend.defined()) p.bend = bend_of<T>(layer.bend, rows, p.out);
    if (!p.decider.at) continue;
    p.test = layer.gate.test;
    p.lower = static_cast<T>(layer.gate.lower);
    p.upper = static_cast<T>(layer.gate.upper);
    p.on = static_cast<T>(layer.gate.slopes.on);
    p.off = static_cast<T>(layer.gate.slopes.off);
  }
  return out;
}

int64_t threads_for(const DenseLayers& layers, int64_t rows) {
  int64_t work = 0;
  for (const auto& layer : layers) work += rows * layer.weight.numel();
  return std::clamp<int64_t>(work / kWorth, 1, std::min<int64_t>(at::get_num_threads(), rows));
}

// Calls work(begin, end) for the shares of so many threads.
template <typename F>
void share(int64_t rows, int64_t threads, const F& work) {
  const int64_t step = (rows + threads - 1) / threads;
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    const int64_t begin = std::min(rows, first * step), end = std::min(rows, last * step);
    if (begin < end) work(begin, end);
  });
}

// Below the dispatcher: small layers have few microseconds.
Tensor empty(at::IntArrayRef sizes, const Tensor& like) { return Tensor(at::detail::empty_cpu(sizes, like.options())); }

// As the weight lies in memory.
Tensor gradient_for(const Tensor& weight) {
  const int64_t in = weight.size(0), out = weight.size(1);
  if (!by_columns(weight)) return empty({in, out}, weight);
  return Tensor(at::detail::empty_strided_cpu({in, out}, {1, in}, weight.options()));
}

template <typename T>
void place_gradient(Layer<T>& layer, const Tensor& weight, const Tensor& gradient) {
  layer.columns = by_columns(weight);
  TORCH_CHECK(gradient.sizes() == weight.sizes() && (layer.columns ? gradient.t() : gradient).is_contiguous(),
              "gpfast::dense: a gradient of ", gradient.sizes(), " with strides ", gradient.strides(), " for ", weight.sizes());
  layer.gradient = gradient.mutable_data_ptr<T>();
}

// Memory for what lies between layers.
template <typename T>
class Room {
 public:
  Room(const Tensor& room, int64_t least, const char* of) : next_(room.mutable_data_ptr<T>()) {
    TORCH_CHECK(room.is_contiguous() && room.numel() >= least, "gpfast::dense: room for ", room.numel(), " elements of ", of,
                ", not ", least);
  }
  T* take(int64_t elements) { return std::exchange(next_, next_ + elements); }

 private:
  T* next_;
};

// The layers `by` rows further on.
template <typename T>
void advance(Layers<T>& layers, int64_t by) {
  const auto move = [by](Matrix<const T>& rows) {
    if (rows.at) rows.at += by * rows.row;
  };
  for (auto& layer : layers) {
    for (auto* rows : {&layer.decider, &layer.saved, &layer.factor, &layer.input}) move(*rows);
    for (auto* rows : {&layer.held, &layer.bend})
      if (*rows) *rows += by * layer.out;
    if (layer.ratio) layer.ratio += by;
  }
}

void check_below(const Tensor& t, const Tensor& held, const DenseLayers& layers) {
  TORCH_CHECK(t.size(1) == layers.front().weight.size(0) && held.is_contiguous() && held.numel() == t.size(0) * columns_of(layers),
              "gpfast::dense: ", t.sizes(), " below ", layers.front().weight.sizes(), ", with ", held.sizes(), " adjoints");
}

template <typename F>
void share_parts(int64_t threads, const F& work) {
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) work(part);
  });
}

std::tuple<Tensor, Tensor> adjoint_fast(const Tensor& a, DenseLayers& layers) {
  const int64_t rows = a.size(0);
  TORCH_CHECK(a.size(1) == layers.back().weight.size(1), "gpfast::dense: ", a.sizes(), " above ", layers.back().weight.sizes());
  auto out = empty({rows, layers.front().weight.size(0)}, a);
  auto held = empty({rows * columns_of(layers)}, a);
  for (auto& layer : layers)
    if (layer.saved.defined()) layer.bend = empty({rows, layer.weight.size(1)}, a);
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "dense_adjoint", [&] {
    const auto each = pointers<scalar_t>(layers, held, rows);
    std::memcpy(each.back().held, a.const_data_ptr<scalar_t>(), a.nbytes());
    auto* input = out.mutable_data_ptr<scalar_t>();
    share(rows, threads_for(layers, rows), [&](int64_t begin, int64_t end) {
      wide() ? avx512::adjoints(each, input, begin, end) : avx2::adjoints(each, input, begin, end);
    });
  });
  return {std::move(out), std::move(held)};
}

// Blocks of rows one after the other: sweep(begin, end) of a thread's share of a block, then gradients of the whole of it.
template <typename T, typename Begin, typename Sweep>
void in_blocks(Layers<T>& each, const DenseLayers& layers, int64_t rows, const Begin& begin, const Sweep& sweep) {
  const int64_t most = rows_of_block(rows);
  for (int64_t from = 0; from < rows; from += most) {
    const int64_t n = std::min(most, rows - from), threads = threads_for(layers, n);
    begin(from, n);
    share(n, threads, sweep);
    share_parts(threads, [&](int64_t part) {
      wide() ? avx512::gradients_of(each, n, part, threads, from == 0) : avx2::gradients_of(each, n, part, threads, from == 0);
    });
    advance(each, n);
  }
}

std::tuple<Tensor, Tensors, Tensors> tangent_fast(const Tensor& t, const Tensor& held, const Tensor& room, const DenseLayers& layers,
                                                  bool through, const Tensor& ratio) {
  const int64_t rows = t.size(0);
  check_below(t, held, layers);
  auto out = through ? empty({rows, layers.back().weight.size(1)}, t) : empty({0}, t);
  Tensors gradients(layers.size());
  Tensors sums(layers.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    gradients[i] = layers[i].wanted ? gradient_for(layers[i].weight) : empty({0}, t);
    sums[i] = empty({ratio.defined() && layers[i].sums ? layers[i].weight.size(1) : 0}, t);
  }
  AT_DISPATCH_FLOATING_TYPES(t.scalar_type(), "dense_tangent", [&] {
    auto each = pointers<scalar_t>(layers, held, rows);
    Room<scalar_t> next(room, room_for_tangents(rows, layers, ratio.defined()), "tangents");
    for (size_t i = 0; i < each.size(); ++i) {
      if (layers[i].wanted) place_gradient(each[i], layers[i].weight, gradients[i]);
      if (i > 0) each[i].tangent = next.take(rows_of_block(rows) * each[i].in);
      if (!ratio.defined()) continue;
      each[i].ratio = ratio.const_data_ptr<scalar_t>();
      if (sums[i].numel()) each[i].sums = sums[i].mutable_data_ptr<scalar_t>();
    }
    auto* own = ratio.defined() ? next.take(rows_of_block(rows) * each[0].in) : nullptr;
    scalar_t* last = nullptr;
    const auto begin = [&](int64_t from, int64_t n) {
      each[0].tangent = t.const_data_ptr<scalar_t>() + from * each[0].in;
      if (own) each[0].tangent = std::copy_n(each[0].tangent, n * each[0].in, own) - n * each[0].in;
      if (through) last = out.mutable_data_ptr<scalar_t>() + from * each.back().out;
    };
    in_blocks(each, layers, rows, begin, [&](int64_t begin, int64_t end) {
      wide() ? avx512::tangents(each, last, begin, end) : avx2::tangents(each, last, begin, end);
    });
  });
  return {std::move(out), std::move(gradients), std::move(sums)};
}

std::tuple<Tensor, Tensors> second_fast(const Tensor& b, const Tensor& room, const DenseLayers& layers, const Tensors& gradients,
                                        bool through) {
  const Seconds seconds(b, layers, through);
  const auto& like = layers[0].weight;
  const int64_t rows = rows_of(b, layers);
  TORCH_CHECK(!b.defined() || b.size(1) == layers.back().weight.size(1), "gpfast::dense: ", b.sizes(), " above ",
              layers.back().weight.sizes());
  const bool back = through && seconds.at(0, layers);
  auto out = back ? empty({rows, like.size(0)}, like) : empty({0}, like);
  Tensors sums(layers.size());
  for (size_t i = 0; i < layers.size(); ++i)
    sums[i] = empty({layers[i].sums && seconds.at(i, layers) ? layers[i].weight.size(1) : 0}, like);
  AT_DISPATCH_FLOATING_TYPES(like.scalar_type(), "dense_second", [&] {
    auto each = pointers<scalar_t>(layers, {}, rows);
    Room<scalar_t> next(room, room_for_seconds(rows, layers, seconds), "second adjoints");
    for (size_t i = 0; i < each.size(); ++i) {
      if (!seconds.at(i, layers)) continue;
      if (layers[i].input.defined()) place_gradient(each[i], layers[i].weight, gradients[i]);
      if (sums[i].numel()) each[i].sums = sums[i].mutable_data_ptr<scalar_t>();
      if (i < seconds.end) each[i].second = next.take(rows_of_block(rows) * each[i].out);
    }
    scalar_t* input = nullptr;
    const auto begin = [&](int64_t from, int64_t n) {
      if (seconds.end < each.size() && seconds.at(seconds.end, layers)) each[seconds.end].second = each[seconds.end].bend;
      if (back) input = out.mutable_data_ptr<scalar_t>() + from * each[0].in;
      auto& top = each.back();
      if (b.defined() && top.second) std::copy_n(b.const_data_ptr<scalar_t>() + from * top.out, n * top.out, top.second);
    };
    in_blocks(each, layers, rows, begin, [&](int64_t begin, int64_t end) {
      wide() ? avx512::seconds(each, input, begin, end) : avx2::seconds(each, input, begin, end);
    });
  });
  return {std::move(out), std::move(sums)};
}

bool fits(const Tensor& z) { return dense_is_fast() && (!z.defined() || z.is_contiguous()); }

std::tuple<Tensor, Tensor> adjoint_cpu(const Tensor& a, DenseLayers& layers) {
  return fits(a) ? adjoint_fast(a, layers) : adjoint_plain(a, layers);
}
std::tuple<Tensor, Tensors, Tensors> tangent_cpu(const Tensor& t, const Tensor& held, const Tensor& room, const DenseLayers& layers,
                                                 bool through, const Tensor& ratio) {
  return fits(t) ? tangent_fast(t, held, room, layers, through, ratio) : tangent_plain(t, held, room, layers, through, ratio);
}
std::tuple<Tensor, Tensors> second_cpu(const Tensor& b, const Tensor& room, const DenseLayers& layers, const Tensors& gradients,
                                       bool through) {
  return fits(b) ? second_fast(b, room, layers, gradients, through) : second_plain(b, room, layers, gradients, through);
}

#else

constexpr auto adjoint_cpu = &adjoint_plain;
constexpr auto tangent_cpu = &tangent_plain;
constexpr auto second_cpu = &second_plain;

#endif

// As the dispatcher calls them.

template <auto kernel>
std::tuple<Tensor, Tensor, Tensors> adjoint_op(const Tensor& a, at::TensorList weights, at::TensorList deciders, Numbers gates,
                                               at::TensorList saved, Numbers curves, at::TensorList factors) {
  auto layers = layers_of(weights, deciders, gates, saved, curves, factors);
  auto [input, held] = kernel(a, layers);
  Tensors bends;
  for (size_t i = 0; i < saved.size(); ++i) bends.push_back(layers[i].bend.defined() ? layers[i].bend : none(a));
  return {std::move(input), std::move(held), std::move(bends)};
}

using Maybe = std::optional<Tensor>;

template <auto kernel>
std::tuple<Tensor, Tensors, Tensors> tangent_op(const Tensor& t, const Tensor& held, const Tensor& room, at::TensorList weights,
                                                at::TensorList deciders, Numbers gates, at::TensorList saved, Numbers curves,
                                                at::TensorList factors, at::TensorList bends, int64_t wanted, bool through,
                                                const Maybe& ratio, at::TensorList inputs, int64_t sums) {
  auto layers = layers_of(weights, deciders, gates, saved, curves, factors);
  place(bends, layers, &DenseLayer::bend, "bends");
  place(wanted, layers, &DenseLayer::wanted);
  place(inputs, layers, &DenseLayer::input, "inputs");
  place(sums, layers, &DenseLayer::sums);
  TORCH_CHECK(!ratio || (ratio->is_contiguous() && ratio->numel() == t.size(0) && ratio->scalar_type() == t.scalar_type()),
              "gpfast::dense: a ratio of ", ratio->sizes(), " for ", t.size(0), " rows");
  return kernel(t, held, room, layers, through, ratio.value_or(Tensor()));
}

template <auto kernel>
std::tuple<Tensor, Tensors> second_op(const Maybe& b, const Tensor& room, at::TensorList weights, at::TensorList deciders,
                                      Numbers gates, at::TensorList saved, Numbers curves, at::TensorList factors,
                                      at::TensorList bends, at::TensorList inputs, at::TensorList gradients, int64_t sums,
                                      bool through) {
  auto layers = layers_of(weights, deciders, gates, saved, curves, factors);
  place(bends, layers, &DenseLayer::bend, "bends");
  place(inputs, layers, &DenseLayer::input, "inputs");
  place(sums, layers, &DenseLayer::sums);
  TORCH_CHECK(rows_of(b.value_or(Tensor()), layers) >= 0 && gradients.size() >= inputs.size(),
              "gpfast::dense: no second adjoints, or ", gradients.size(), " gradients for ", inputs.size(), " inputs");
  return kernel(b.value_or(Tensor()), room, layers, gradients.vec(), through);
}

template <typename F>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>();
}

// Lists that end where nothing follows.
struct Arguments {
  Tensors weights, deciders, factors, saved, bends, inputs;
  std::vector<double> gates, curves;
  int64_t wanted = 0, sums = 0;

  explicit Arguments(const DenseLayers& layers) {
    for (size_t i = 0; i < layers.size(); ++i) {
      const auto& layer = layers[i];
      weights.push_back(layer.weight);
      wanted |= int64_t{layer.wanted} << i;
      sums |= int64_t{layer.sums} << i;
      add(factors, layer.factor, i);
      add(bends, layer.bend, i);
      add(inputs, layer.input, i);
      if (add(deciders, layer.decider, i)) {
        gates.resize(kGateNumbers * i);
        const auto& [test, lower, upper, slopes] = layer.gate;
        gates.insert(gates.end(), {static_cast<double>(test), lower, upper, slopes.on, slopes.off});
      }
      if (add(saved, layer.saved, i)) {
        curves.resize(kCurveNumbers * i);
        const auto& [kind, p, q, r] = layer.curve;
        curves.insert(curves.end(), {static_cast<double>(kind), p, q, r});
      }
    }
  }

 private:
  static bool add(Tensors& list, const Tensor& value, size_t at) {
    if (!value.defined()) return false;
    while (list.size() < at) list.push_back(none(value));
    list.push_back(value);
    return true;
  }
};

}  // namespace

bool dense_is_fast() {
#ifdef GPFAST_DENSE
  static const bool fast = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return fast;
#else
  return false;
#endif
}

int64_t set_dense_vectors(int64_t bytes) {
#ifdef GPFAST_DENSE
  return widest_vectors.exchange(bytes);
#else
  return bytes;
#endif
}

std::tuple<Tensor, Tensor> dense_adjoint(const Tensor& a, DenseLayers& layers) {
  static const auto op = find<decltype(adjoint_op<&adjoint_plain>)>("gpfast::dense_adjoint");
  const Arguments is(layers);
  auto [input, held, bends] = op.call(a, is.weights, is.deciders, is.gates, is.saved, is.curves, is.factors);
  for (size_t i = 0; i < bends.size(); ++i)
    if (layers[i].saved.defined()) layers[i].bend = std::move(bends[i]);
  return {std::move(input), std::move(held)};
}

std::tuple<Tensor, Tensors, Tensors> dense_tangent(const Tensor& t, const Tensor& held, const DenseLayers& layers, bool through,
                                                   const Tensor& ratio) {
  static const auto op = find<decltype(tangent_op<&tangent_plain>)>("gpfast::dense_tangent");
  const Arguments is(layers);
  const bool any = ratio.defined();
  const auto room = at::empty({room_for_tangents(t.size(0), layers, any)}, t.options());
  return op.call(t, held, room, is.weights, is.deciders, is.gates, is.saved, is.curves, is.factors, is.bends, is.wanted, through,
                 any ? Maybe(ratio) : std::nullopt, any ? is.inputs : Tensors(), any ? is.sums : 0);
}

std::tuple<Tensor, Tensors> dense_second(const Tensor& b, const DenseLayers& layers, const Tensors& gradients, bool through) {
  static const auto op = find<decltype(second_op<&second_plain>)>("gpfast::dense_second");
  const Arguments is(layers);
  const auto& like = layers[0].weight;
  const auto room = at::empty({room_for_seconds(rows_of(b, layers), layers, {b, layers, through})}, like.options());
  Tensors changed;
  for (size_t i = 0; i < is.inputs.size(); ++i) changed.push_back(layers[i].input.defined() ? gradients[i] : none(like));
  return op.call(b.defined() ? Maybe(b) : std::nullopt, room, is.weights, is.deciders, is.gates, is.saved, is.curves, is.factors,
                 is.bends, is.inputs, changed, is.sums, through);
}

TORCH_LIBRARY_FRAGMENT(gpfast, m) {
  m.def("dense_adjoint(Tensor a, Tensor[] weights, Tensor[] deciders, float[] gates, Tensor[] saved, float[] curves,"
        " Tensor[] factors) -> (Tensor input, Tensor held, Tensor[] bends)");
  m.def("dense_tangent(Tensor t, Tensor held, Tensor(a!) room, Tensor[] weights, Tensor[] deciders, float[] gates, Tensor[] saved,"
        " float[] curves, Tensor[] factors, Tensor(b!)[] bends, int wanted, bool through, Tensor? ratio, Tensor[] inputs, int sums)"
        " -> (Tensor result, Tensor[] gradients, Tensor[] sums)");
  m.def("dense_second(Tensor? b, Tensor(a!) room, Tensor[] weights, Tensor[] deciders, float[] gates, Tensor[] saved,"
        " float[] curves, Tensor[] factors, Tensor[] bends, Tensor[] inputs, Tensor(b!)[] gradients, int sums, bool through)"
        " -> (Tensor input, Tensor[] sums)");
  m.def("set_dense_vectors(int bytes) -> int", &set_dense_vectors);
}
TORCH_LIBRARY_IMPL(gpfast, CPU, m) {
  m.impl("dense_adjoint", &adjoint_op<adjoint_cpu>);
  m.impl("dense_tangent", &tangent_op<tangent_cpu>);
  m.impl("dense_second", &second_op<second_cpu>);
}
TORCH_LIBRARY_IMPL(gpfast, CompositeExplicitAutograd, m) {
  m.impl("dense_adjoint", &adjoint_op<&adjoint_plain>);
  m.impl("dense_tangent", &tangent_op<&tangent_plain>);
  m.impl("dense_second", &second_op<&second_plain>);
}

}  // namespace gpfast

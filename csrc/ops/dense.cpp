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

constexpr int kNumbers = 5;  // of a gate: test, lower, upper, on, off

// Of layer i, undefined where the list ends before it or has no elements there.
Tensor part_of(at::TensorList list, size_t i) { return i < list.size() && list[i].numel() > 0 ? list[i] : Tensor(); }

// As the dispatcher has them: for each decider five numbers, and a bit a layer for what is wanted.
DenseLayers layers_of(at::TensorList weights, at::TensorList deciders, Numbers gates, at::TensorList factors, int64_t wanted = 0) {
  const size_t most = weights.size();
  const bool fit = deciders.size() <= most && factors.size() <= most && gates.size() == kNumbers * deciders.size();
  TORCH_CHECK(most > 0 && most < 64 && fit, "gpfast::dense: ", most, " weights, ", deciders.size(), " deciders, ", gates.size(),
              " numbers and ", factors.size(), " factors");
  DenseLayers layers(most);
  for (size_t i = 0; i < most; ++i) {
    auto& layer = layers[i];
    layer = {weights[i], part_of(deciders, i), {}, part_of(factors, i), (wanted >> i & 1) != 0};
    TORCH_CHECK(i == 0 || weights[i].size(0) == weights[i - 1].size(1), "gpfast::dense: weight ", i, " is ", weights[i].sizes());
    if (!layer.decider.defined()) continue;
    const auto by = gates.slice(kNumbers * i, kNumbers);
    layer.gate = {static_cast<Test>(by[0]), by[1], by[2], {by[3], by[4]}};
  }
  return layers;
}

int64_t columns_of(const DenseLayers& layers) {
  int64_t columns = 0;
  for (const auto& layer : layers) columns += layer.weight.size(1);
  return columns;
}

// Elements of the tangents between layers. They are the caller's to hold, so that whoever counts memory sees them.
int64_t room_for_tangents(int64_t rows, const DenseLayers& layers) {
  return rows * (columns_of(layers) - layers.back().weight.size(1));
}

bool by_columns(const Tensor& weight) { return weight.stride(0) == 1; }

// In PyTorch's own operators, for every device.

Tensor between_plain(Tensor z, const DenseLayer& layer) {
  if (layer.decider.defined()) z = std::get<0>(gate(z.contiguous(), layer.decider, {}, layer.gate, /*in_place=*/false));
  return layer.factor.defined() ? z * layer.factor : z;
}

std::tuple<Tensor, Tensor> adjoint_plain(const Tensor& a, const DenseLayers& layers) {
  Tensors held(layers.size());
  Tensor z = a;
  for (size_t i = layers.size(); i-- > 0;) {
    z = between_plain(z, layers[i]);
    held[i] = z.reshape({-1});
    z = at::mm(z, layers[i].weight.t());
  }
  return {z, at::cat(held)};
}

std::tuple<Tensor, Tensors> tangent_plain(const Tensor& t, const Tensor& held, const Tensor& /*room*/, const DenseLayers& layers,
                                          bool through) {
  Tensors gradients(layers.size());
  Tensor z = t;
  int64_t begin = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto& weight = layers[i].weight;
    const auto adjoint = held.slice(0, begin, begin + t.size(0) * weight.size(1)).view({t.size(0), weight.size(1)});
    begin += adjoint.numel();
    if (!layers[i].wanted) gradients[i] = at::empty({0}, t.options());
    else gradients[i] = by_columns(weight) ? at::mm(adjoint.t(), z).t() : at::mm(z.t(), adjoint);
    if (i + 1 < layers.size() || through) z = between_plain(at::mm(z, weight), layers[i]);
  }
  return {through ? z : at::empty({0}, t.options()), gradients};
}

#ifdef GPFAST_DENSE

constexpr int64_t kWorth = 1 << 16;  // multiplications worth a thread
constexpr int64_t kDeep = 64;        // terms of a sum that is added to others

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
  T* held = nullptr;           // adjoints of the product, (rows, out)
  const T* tangent = nullptr;  // of the input, (rows, in)
  T* gradient = nullptr;       // null where none is wanted
  bool columns = false;        // the gradient's
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
Layers<T> pointers(const DenseLayers& layers, const Tensor& held, int64_t rows) {
  Layers<T> out;
  T* adjoints = held.mutable_data_ptr<T>();
  for (const auto& layer : layers) {
    const auto& weight = layer.weight;
    auto& p = out.emplace_back();
    p.weight = {weight.const_data_ptr<T>(), weight.stride(0), weight.stride(1)};
    p.in = weight.size(0);
    p.out = weight.size(1);
    p.held = adjoints;
    adjoints += rows * p.out;
    p.decider = rows_of<T>(layer.decider, rows, p.out);
    p.factor = rows_of<T>(layer.factor, rows, p.out);
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

std::tuple<Tensor, Tensor> adjoint_fast(const Tensor& a, const DenseLayers& layers) {
  const int64_t rows = a.size(0);
  TORCH_CHECK(a.size(1) == layers.back().weight.size(1), "gpfast::dense: ", a.sizes(), " above ", layers.back().weight.sizes());
  auto out = empty({rows, layers.front().weight.size(0)}, a);
  auto held = empty({rows * columns_of(layers)}, a);
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

std::tuple<Tensor, Tensors> tangent_fast(const Tensor& t, const Tensor& held, const Tensor& room, const DenseLayers& layers,
                                         bool through) {
  const int64_t rows = t.size(0);
  TORCH_CHECK(room.is_contiguous() && room.numel() == room_for_tangents(rows, layers) && room.scalar_type() == t.scalar_type(),
              "gpfast::dense: room for ", room.numel(), " elements of tangents, not ", room_for_tangents(rows, layers));
  TORCH_CHECK(t.size(1) == layers.front().weight.size(0) && held.is_contiguous() && held.numel() == rows * columns_of(layers),
              "gpfast::dense: ", t.sizes(), " below ", layers.front().weight.sizes(), ", with ", held.sizes(), " adjoints");
  auto out = through ? empty({rows, layers.back().weight.size(1)}, t) : empty({0}, t);
  Tensors gradients(layers.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto& weight = layers[i].weight;
    const int64_t in = weight.size(0), out = weight.size(1);
    if (!layers[i].wanted) gradients[i] = empty({0}, t);
    else if (by_columns(weight)) gradients[i] = Tensor(at::detail::empty_strided_cpu({in, out}, {1, in}, t.options()));
    else gradients[i] = empty({in, out}, t);
  }
  AT_DISPATCH_FLOATING_TYPES(t.scalar_type(), "dense_tangent", [&] {
    auto each = pointers<scalar_t>(layers, held, rows);
    each[0].tangent = t.const_data_ptr<scalar_t>();
    auto* next = room.mutable_data_ptr<scalar_t>();
    for (size_t i = 0; i < each.size(); ++i) {
      if (layers[i].wanted) each[i].gradient = gradients[i].mutable_data_ptr<scalar_t>();
      each[i].columns = by_columns(layers[i].weight);
      if (i == 0) continue;
      each[i].tangent = next;
      next += rows * each[i].in;
    }
    auto* last = through ? out.mutable_data_ptr<scalar_t>() : nullptr;
    const int64_t threads = threads_for(layers, rows);
    share(rows, threads, [&](int64_t begin, int64_t end) {
      wide() ? avx512::tangents(each, last, begin, end) : avx2::tangents(each, last, begin, end);
    });
    at::parallel_for(0, threads, 1, [&](int64_t first, int64_t end) {
      for (int64_t part = first; part < end; ++part) wide() ? avx512::gradients_of(each, rows, part, threads) : avx2::gradients_of(each, rows, part, threads);
    });
  });
  return {std::move(out), std::move(gradients)};
}

bool fits(const Tensor& z) { return dense_is_fast() && z.is_contiguous(); }

std::tuple<Tensor, Tensor> adjoint_cpu(const Tensor& a, const DenseLayers& layers) {
  return fits(a) ? adjoint_fast(a, layers) : adjoint_plain(a, layers);
}
std::tuple<Tensor, Tensors> tangent_cpu(const Tensor& t, const Tensor& held, const Tensor& room, const DenseLayers& layers,
                                        bool through) {
  return fits(t) ? tangent_fast(t, held, room, layers, through) : tangent_plain(t, held, room, layers, through);
}

#else

constexpr auto adjoint_cpu = &adjoint_plain;
constexpr auto tangent_cpu = &tangent_plain;

#endif

template <auto kernel>
std::tuple<Tensor, Tensor> adjoint_op(const Tensor& a, at::TensorList weights, at::TensorList deciders, Numbers gates,
                                      at::TensorList factors) {
  return kernel(a, layers_of(weights, deciders, gates, factors));
}

template <auto kernel>
std::tuple<Tensor, Tensors> tangent_op(const Tensor& t, const Tensor& held, const Tensor& room, at::TensorList weights,
                                       at::TensorList deciders, Numbers gates, at::TensorList factors, int64_t wanted,
                                       bool through) {
  return kernel(t, held, room, layers_of(weights, deciders, gates, factors, wanted), through);
}

struct Arguments {
  Tensors weights, deciders, factors;
  std::vector<double> gates;
  int64_t wanted = 0;

  explicit Arguments(const DenseLayers& layers) {
    for (size_t i = 0; i < layers.size(); ++i) {
      const auto& layer = layers[i];
      weights.push_back(layer.weight);
      wanted |= int64_t{layer.wanted} << i;
      add(factors, layer.factor, i);
      if (!layer.decider.defined()) continue;
      add(deciders, layer.decider, i);
      gates.resize(kNumbers * i);
      const auto& [test, lower, upper, slopes] = layer.gate;
      gates.insert(gates.end(), {static_cast<double>(test), lower, upper, slopes.on, slopes.off});
    }
  }

 private:
  static void add(Tensors& list, const Tensor& value, size_t at) {
    if (!value.defined()) return;
    while (list.size() < at) list.push_back(at::empty({0}, value.options()));
    list.push_back(value);
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

std::tuple<Tensor, Tensor> dense_adjoint(const Tensor& a, const DenseLayers& layers) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("gpfast::dense_adjoint", "").typed<decltype(adjoint_op<&adjoint_plain>)>();
  const Arguments is(layers);
  return op.call(a, is.weights, is.deciders, is.gates, is.factors);
}

std::tuple<Tensor, Tensors> dense_tangent(const Tensor& t, const Tensor& held, const DenseLayers& layers, bool through) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("gpfast::dense_tangent", "").typed<decltype(tangent_op<&tangent_plain>)>();
  const Arguments is(layers);
  const auto room = at::empty({room_for_tangents(t.size(0), layers)}, t.options());
  return op.call(t, held, room, is.weights, is.deciders, is.gates, is.factors, is.wanted, through);
}

TORCH_LIBRARY_FRAGMENT(gpfast, m) {
  m.def("dense_adjoint(Tensor a, Tensor[] weights, Tensor[] deciders, float[] gates, Tensor[] factors)"
        " -> (Tensor input, Tensor held)");
  m.def("dense_tangent(Tensor t, Tensor held, Tensor(a!) room, Tensor[] weights, Tensor[] deciders, float[] gates,"
        " Tensor[] factors, int wanted, bool through) -> (Tensor result, Tensor[] gradients)");
  m.def("set_dense_vectors(int bytes) -> int", &set_dense_vectors);
}
TORCH_LIBRARY_IMPL(gpfast, CPU, m) {
  m.impl("dense_adjoint", &adjoint_op<adjoint_cpu>);
  m.impl("dense_tangent", &tangent_op<tangent_cpu>);
}
TORCH_LIBRARY_IMPL(gpfast, CompositeExplicitAutograd, m) {
  m.impl("dense_adjoint", &adjoint_op<&adjoint_plain>);
  m.impl("dense_tangent", &tangent_op<&tangent_plain>);
}

}  // namespace gpfast

#include "ops/relayout.h"

#include <ATen/Parallel.h>
#include <ATen/TensorUtils.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_permuted.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>

#include "ops/simd.h"

namespace gpfast {
namespace {

// (outer, rows, columns) elements, of which every (rows, columns) block is to be transposed.
struct Blocks {
  int64_t outer = 0, rows = 1, columns = 1;
};

Order longer_than_one(const at::Tensor& tensor, at::IntArrayRef order) {
  Order dims;
  for (const int64_t d : order)
    if (tensor.size(d) != 1) dims.push_back(d);
  return dims;
}

// How the dense tensor becomes dense in the order by one transposition; outer = 0 where it does not.
Blocks blocks_of(const at::Tensor& tensor, at::IntArrayRef order) {
  const auto to = longer_than_one(tensor, order);
  auto from = to;
  std::stable_sort(from.begin(), from.end(), [&](int64_t i, int64_t j) { return tensor.stride(i) > tensor.stride(j); });
  size_t same = 0;
  Blocks blocks{1};
  while (same < to.size() && from[same] == to[same]) blocks.outer *= tensor.size(to[same++]);
  if (same == to.size()) return {};
  const auto middle = std::find(from.begin() + same, from.end(), to[same]);
  if (!std::equal(middle, from.end(), to.begin() + same)) return {};
  if (!std::equal(from.begin() + same, middle, to.begin() + same + (from.end() - middle))) return {};
  for (auto d = from.begin() + same; d != middle; ++d) blocks.rows *= tensor.size(*d);
  for (auto d = middle; d != from.end(); ++d) blocks.columns *= tensor.size(*d);
  return blocks;
}

constexpr int kTile = 8;

#ifdef __clang__
#define GPFAST_SHUFFLE __builtin_shufflevector
#else
#define GPFAST_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, V{__VA_ARGS__})
#endif

// Three perfect shuffles of 8 vectors of 8 transpose them.
template <typename V>
GPFAST_INLINE void transpose_tile(V (&rows)[kTile]) {
  for (int round = 0; round < 3; ++round) {
    V next[kTile];
    for (int i = 0; i < kTile / 2; ++i) {
      next[2 * i] = GPFAST_SHUFFLE(rows[i], rows[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
      next[2 * i + 1] = GPFAST_SHUFFLE(rows[i], rows[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
    std::copy(next, next + kTile, rows);
  }
}

// One tile: to[i * rows + j] = from[j * columns + i].
template <typename T>
GPFAST_INLINE void transpose_one(const T* from, T* to, int64_t rows, int64_t columns) {
  typedef T V __attribute__((vector_size(sizeof(T) * kTile)));
  V tile[kTile];
  for (int i = 0; i < kTile; ++i) std::memcpy(&tile[i], from + i * columns, sizeof(V));
  transpose_tile(tile);
  for (int i = 0; i < kTile; ++i) std::memcpy(to + i * rows, &tile[i], sizeof(V));
}

// to[c * rows + r] = from[r * columns + c] for columns [begin, end). Two cache lines of a row are read at once: of images of a power of
// two pixels all rows' lines have the same place in the cache, which does not hold them until the next tile.
template <typename T>
GPFAST_INLINE void transpose(const T* from, T* to, int64_t rows, int64_t columns, int64_t begin, int64_t end) {
  constexpr int64_t kWide = 128 / sizeof(T);
  int64_t c = begin;
  while (c + kTile <= end) {
    const int64_t wide = c + kWide <= end ? kWide : kTile;
    int64_t r = 0;
    for (; r + kTile <= rows; r += kTile)
      for (int64_t i = 0; i < wide; i += kTile) transpose_one(from + r * columns + c + i, to + (c + i) * rows + r, rows, columns);
    for (; r < rows; ++r)
      for (int64_t i = 0; i < wide; ++i) to[(c + i) * rows + r] = from[r * columns + c + i];
    c += wide;
  }
  for (; c < end; ++c)
    for (int64_t r = 0; r < rows; ++r) to[c * rows + r] = from[r * columns + c];
}

#define GPFAST_DEFINE(T)                                                                                          \
  GPFAST_CLONES void run(const T* from, T* to, int64_t rows, int64_t columns, int64_t begin, int64_t end) {       \
    transpose(from, to, rows, columns, begin, end);                                                               \
  }
GPFAST_DEFINE(uint16_t)
GPFAST_DEFINE(uint32_t)
GPFAST_DEFINE(uint64_t)
#undef GPFAST_DEFINE

template <typename T>
void transpose_all(const void* from, void* to, const Blocks& blocks) {
  const int64_t size = blocks.rows * blocks.columns, tiles = (blocks.columns + kTile - 1) / kTile;
  const int64_t grain = std::max<int64_t>(1, kGrain / (kTile * blocks.rows));
  at::parallel_for(0, blocks.outer * tiles, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t block = begin / tiles, first = begin % tiles, last = std::min(tiles, first + end - begin);
      run(static_cast<const T*>(from) + block * size, static_cast<T*>(to) + block * size, blocks.rows, blocks.columns,
          first * kTile, std::min(last * kTile, blocks.columns));
      begin += last - first;
    }
  });
}

at::Tensor relayout(const at::Tensor& tensor, at::IntArrayRef order) {
  return at::empty_permuted(tensor.sizes(), order, tensor.options()).copy_(tensor);
}

at::Tensor relayout_cpu(const at::Tensor& tensor, at::IntArrayRef order) {
  const bool plain = tensor.is_non_overlapping_and_dense() && !tensor.is_conj() && !tensor.is_neg();
  const auto blocks = plain ? blocks_of(tensor, order) : Blocks{};
  const auto size = tensor.element_size();
  if (blocks.outer == 0 || tensor.numel() == 0 || (size != 2 && size != 4 && size != 8)) return relayout(tensor, order);
  auto result = at::empty_permuted(tensor.sizes(), order, tensor.options());
  const void* from = tensor.const_data_ptr();
  void* to = result.mutable_data_ptr();
  if (size == 2) transpose_all<uint16_t>(from, to, blocks);
  if (size == 4) transpose_all<uint32_t>(from, to, blocks);
  if (size == 8) transpose_all<uint64_t>(from, to, blocks);
  return result;
}

}  // namespace

Order contiguous_order(int64_t dims) {
  Order order(dims);
  std::iota(order.begin(), order.end(), 0);
  return order;
}

Order channels_last_order(int64_t dims) {
  auto order = contiguous_order(dims);
  if (dims > 2) std::rotate(order.begin() + 1, order.begin() + 2, order.end());
  return order;
}

Order order_by_strides(const at::Tensor& tensor, int64_t sorted) {
  auto order = contiguous_order(tensor.dim());
  std::stable_sort(order.end() - sorted, order.end(), [&](int64_t i, int64_t j) { return tensor.stride(i) > tensor.stride(j); });
  return order;
}

bool is_dense_in(const at::Tensor& tensor, at::IntArrayRef order) {
  int64_t stride = 1;
  for (size_t i = order.size(); i-- > 0;) {
    const int64_t size = tensor.size(order[i]);
    if (size != 1 && tensor.stride(order[i]) != stride) return false;
    stride *= size;
  }
  return true;
}

at::Tensor relaid(const at::Tensor& tensor, at::IntArrayRef order) {
  if (!tensor.defined() || is_dense_in(tensor, order)) return tensor;
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("gpfast::relayout", "").typed<decltype(relayout)>();
  return op.call(tensor, order);
}

at::Tensor in_layout_of(const at::Tensor& tensor, const at::Tensor& like) {
  if (tensor.strides() == like.strides()) return tensor;
  const auto order = order_by_strides(like, like.dim());
  if (is_dense_in(like, order)) return relaid(tensor, order);
  return at::empty_like(like, tensor.options()).copy_(tensor);
}

namespace {

thread_local SharedCopies* shared_copies = nullptr;

}  // namespace

SharedCopies::SharedCopies() : outer_(std::exchange(shared_copies, this)) {}
SharedCopies::~SharedCopies() { shared_copies = outer_; }

at::Tensor relaid_saved(const at::Tensor& tensor, at::IntArrayRef order) {
  // A view that is negated lazily lies where its base lies, and has other values.
  const bool apart = !tensor.defined() || !tensor.has_storage() || tensor.is_neg();
  if (apart || !shared_copies || is_dense_in(tensor, order)) return relaid(tensor, order);
  auto& copies = shared_copies->copies_;
  const auto gone = [](const auto& known) { return known.of.expired() || known.copy.expired(); };
  copies.erase(std::remove_if(copies.begin(), copies.end(), gone), copies.end());
  const auto storage = tensor.storage().getWeakStorageImpl();
  for (const auto& known : copies) {
    if (known.of != storage || known.offset != tensor.storage_offset() || tensor.sizes() != at::IntArrayRef(known.sizes) ||
        tensor.strides() != at::IntArrayRef(known.strides))
      continue;
    const at::Tensor copy(known.copy.lock());
    if (copy.scalar_type() == tensor.scalar_type() && is_dense_in(copy, order)) return copy;
  }
  auto copy = relaid(tensor, order);
  if (tensor.storage().use_count() == 1) return copy;
  copies.push_back({storage, c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>(copy.getIntrusivePtr()),
                    tensor.storage_offset(), c10::DimVector(tensor.sizes()), c10::DimVector(tensor.strides())});
  return copy;
}

at::Tensor reshaped(const at::Tensor& tensor, at::IntArrayRef sizes) {
  if (at::detail::computeStride(tensor.sizes(), tensor.strides(), sizes)) return tensor.view(sizes);
  return relaid(tensor, contiguous_order(tensor.dim())).view(sizes);
}

TORCH_LIBRARY_FRAGMENT(gpfast, m) { m.def("relayout(Tensor tensor, int[] order) -> Tensor"); }
TORCH_LIBRARY_IMPL(gpfast, CompositeExplicitAutograd, m) { m.impl("relayout", &relayout); }
TORCH_LIBRARY_IMPL(gpfast, CPU, m) { m.impl("relayout", &relayout_cpu); }

}  // namespace gpfast

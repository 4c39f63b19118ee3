#include "ops/turn_kernel.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>

namespace gpfast {
namespace {

void turn_plain(const at::Tensor& into, const at::Tensor& found, int64_t first, bool adds) {
  const auto turned = found.narrow(2, 0, into.size(2)).narrow(3, 0, into.size(3)).transpose(0, 1);
  auto place = into.narrow(1, first, found.size(0));
  adds ? place.add_(turned) : place.copy_(turned);
}

template <bool adds, typename T>
void turn(const T* found, T* into, at::IntArrayRef sizes, int64_t inputs, int64_t height, int64_t width) {
  const int64_t block = sizes[0], outputs = sizes[1], plane = sizes[2] * sizes[3];
  at::parallel_for(0, outputs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o)
      for (int64_t i = 0; i < block; ++i) {
        const T* from = found + (i * outputs + o) * plane;
        T* to = into + (o * inputs + i) * height * width;
        for (int64_t row = 0; row < height; ++row, from += sizes[3], to += width)
          for (int64_t k = 0; k < width; ++k) to[k] = adds ? static_cast<T>(to[k] + from[k]) : from[k];
      }
  });
}

}  // namespace

void turn_kernel(const at::Tensor& into, const at::Tensor& found, int64_t first, bool adds) {
  const bool there = found.is_cpu() && !found.key_set().has(c10::DispatchKey::Python);  // a fake tensor has no memory
  if (!there || !found.is_contiguous() || !into.is_contiguous()) return turn_plain(into, found, first, adds);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, found.scalar_type(), "turn_kernel", [&] {
    const int64_t inputs = into.size(1), height = into.size(2), width = into.size(3);
    const auto* from = found.const_data_ptr<scalar_t>();
    auto* to = into.mutable_data_ptr<scalar_t>() + first * height * width;
    const auto turned = adds ? &turn<true, scalar_t> : &turn<false, scalar_t>;
    turned(from, to, found.sizes(), inputs, height, width);
  });
}

}  // namespace gpfast

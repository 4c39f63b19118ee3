#include "ops/convolution.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cstring>

namespace gpfast {
namespace {

at::Tensor cut_and_turned(const at::Tensor& found, int64_t height, int64_t width) {
  return found.narrow(2, 0, height).narrow(3, 0, width).transpose(0, 1);
}

at::Tensor kernel_gradient_plain(const at::Tensor& found, at::IntArrayRef kernel) {
  const auto turned = cut_and_turned(found, kernel[0], kernel[1]);
  return at::empty(turned.sizes(), found.options()).copy_(turned);
}

void add_kernel_gradient_plain(at::Tensor& onto, const at::Tensor& found) {
  onto.add_(cut_and_turned(found, onto.size(2), onto.size(3)));
}

template <bool add, typename T>
void turn(const T* found, T* out, at::IntArrayRef sizes, int64_t height, int64_t width) {
  const int64_t inputs = sizes[0], outputs = sizes[1], plane = sizes[2] * sizes[3];
  at::parallel_for(0, outputs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o)
      for (int64_t i = 0; i < inputs; ++i) {
        const T* from = found + (i * outputs + o) * plane;
        T* to = out + (o * inputs + i) * height * width;
        for (int64_t row = 0; row < height; ++row, from += sizes[3], to += width)
          for (int64_t k = 0; k < width; ++k) to[k] = add ? static_cast<T>(to[k] + from[k]) : from[k];
      }
  });
}

template <bool add>
void turn_into(at::Tensor& out, const at::Tensor& found) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, found.scalar_type(), "kernel_gradient", [&] {
    turn<add>(found.const_data_ptr<scalar_t>(), out.mutable_data_ptr<scalar_t>(), found.sizes(), out.size(2), out.size(3));
  });
}

at::Tensor kernel_gradient_cpu(const at::Tensor& found, at::IntArrayRef kernel) {
  if (!found.is_contiguous()) return kernel_gradient_plain(found, kernel);
  at::Tensor out = at::empty({found.size(1), found.size(0), kernel[0], kernel[1]}, found.options());
  turn_into<false>(out, found);
  return out;
}

void add_kernel_gradient_cpu(at::Tensor& onto, const at::Tensor& found) {
  if (!found.is_contiguous() || !onto.is_contiguous()) return add_kernel_gradient_plain(onto, found);
  turn_into<true>(onto, found);
}

}  // namespace

at::Tensor kernel_gradient(const at::Tensor& found, at::IntArrayRef kernel) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("gpfast::kernel_gradient", "")
                             .typed<at::Tensor(const at::Tensor&, at::IntArrayRef)>();
  return op.call(found, kernel);
}

void add_kernel_gradient(at::Tensor& onto, const at::Tensor& found) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("gpfast::add_kernel_gradient_", "")
                             .typed<void(at::Tensor&, const at::Tensor&)>();
  op.call(onto, found);
}

TORCH_LIBRARY_FRAGMENT(gpfast, m) {
  m.def("kernel_gradient(Tensor found, int[] kernel) -> Tensor");
  m.def("add_kernel_gradient_(Tensor(a!) onto, Tensor found) -> ()");
}
TORCH_LIBRARY_IMPL(gpfast, CompositeExplicitAutograd, m) {
  m.impl("kernel_gradient", &kernel_gradient_plain);
  m.impl("add_kernel_gradient_", &add_kernel_gradient_plain);
}
TORCH_LIBRARY_IMPL(gpfast, CPU, m) {
  m.impl("kernel_gradient", &kernel_gradient_cpu);
  m.impl("add_kernel_gradient_", &add_kernel_gradient_cpu);
}

}  // namespace gpfast

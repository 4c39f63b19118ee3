#include "ops/gate.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bitwise_and.h>
#include <ATen/ops/bitwise_left_shift.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/logical_and.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <limits>

namespace gpfast {
namespace {

// In PyTorch's own operators, for every device.

at::Tensor decided(const at::Tensor& h, const Gate& by) {
  switch (by.test) {
    case Test::kAbove: return h > by.lower;
    case Test::kBelow: return h < by.upper;
    case Test::kBetween: return at::logical_and(h > by.lower, h < by.upper);
    case Test::kWithin: return at::logical_and(h >= by.lower, h <= by.upper);
  }
  TORCH_CHECK(false, "gpfast::gate: unknown test");
}

at::Tensor times(double slope, const at::Tensor& z) {
  return slope == 0 ? at::zeros({}, z.options()) : slope == 1 ? z : z * slope;
}

at::Tensor chosen(const at::Tensor& mask, const at::Tensor& z, const at::Tensor& weight, const Slopes& by) {
  return at::where(mask, times(by.on, z), weight.defined() ? z * weight : times(by.off, z));
}

at::Tensor places(const at::Tensor& like) {
  const auto options = like.options().dtype(at::kByte);
  return at::bitwise_left_shift(at::ones({8}, options), at::arange(8, options));
}

at::Tensor gate_plain(const at::Tensor& z, const at::Tensor& decider, const at::Tensor& weight, const Gate& by,
                      const at::Tensor& out) {
  const int64_t n = z.numel();
  const auto mask = at::empty_like(z, z.options().dtype(at::kBool)).copy_(decided(decider, by));
  const auto bytes = at::constant_pad_nd(mask.as_strided({n}, {1}).to(at::kByte), {0, bytes_of_bits(n) * 8 - n});
  out.copy_(chosen(mask, z, weight, by.slopes));
  return (bytes.view({-1, 8}) * places(z)).sum(1, /*keepdim=*/false, at::kByte);
}

void gated_plain(const at::Tensor& z, const at::Tensor& bits, const at::Tensor& weight, const Slopes& by, const at::Tensor& out) {
  const auto mask = at::bitwise_and(bits.unsqueeze(1), places(z)).ne(0);
  out.copy_(chosen(mask.as_strided(z.sizes(), z.strides()), z, weight, by));
}

void check_bits(const at::Tensor& z, const at::Tensor& bits) {
  TORCH_CHECK(z.is_non_overlapping_and_dense() && bits.scalar_type() == at::kByte && bits.numel() == bytes_of_bits(z.numel()),
              "gpfast::gated: ", bits.numel(), " bytes of bits for ", z.sizes(), " with strides ", z.strides());
}

using MaybeTensor = std::optional<at::Tensor>;
at::Tensor tensor_or_none(const MaybeTensor& maybe) { return maybe.value_or(at::Tensor()); }

template <auto kernel>
std::tuple<at::Tensor, at::Tensor> gate_op(const at::Tensor& z, const at::Tensor& decider, const MaybeTensor& weight,
                                           int64_t test, double lower, double upper, double on, double off) {
  auto out = at::empty_like(z);
  auto bits = kernel(z, decider, tensor_or_none(weight), {static_cast<Test>(test), lower, upper, {on, off}}, out);
  return {std::move(out), std::move(bits)};
}

template <auto kernel>
at::Tensor gate_in_place(const at::Tensor& z, const at::Tensor& decider, const MaybeTensor& weight, int64_t test, double lower,
                         double upper, double on, double off) {
  return kernel(z, decider, tensor_or_none(weight), {static_cast<Test>(test), lower, upper, {on, off}}, z);
}

template <auto kernel>
at::Tensor gated_op(const at::Tensor& z, const at::Tensor& bits, const MaybeTensor& weight, double on, double off) {
  check_bits(z, bits);
  auto out = at::empty_like(z);
  kernel(z, bits, tensor_or_none(weight), {on, off}, out);
  return out;
}

template <auto kernel>
void gated_in_place(const at::Tensor& z, const at::Tensor& bits, const MaybeTensor& weight, double on, double off) {
  check_bits(z, bits);
  kernel(z, bits, tensor_or_none(weight), {on, off}, z);
}

template <auto gate, auto gated>
void implement(torch::Library& m) {
  m.impl("gate", &gate_op<gate>);
  m.impl("gate_", &gate_in_place<gate>);
  m.impl("gated", &gated_op<gated>);
  m.impl("gated_", &gated_in_place<gated>);
}

MaybeTensor maybe(const at::Tensor& tensor) { return tensor.defined() ? MaybeTensor(tensor) : std::nullopt; }

template <typename F>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>();
}

}  // namespace

int64_t run_of_slope(const at::Tensor& weight, const at::Tensor& z) {
  int64_t run = std::numeric_limits<int64_t>::max();
  for (int64_t d = 0; d < z.dim(); ++d)
    if (weight.size(d) > 1) run = z.stride(d);
  return run;
}

std::tuple<at::Tensor, at::Tensor> gate(const at::Tensor& z, const at::Tensor& decider, const at::Tensor& weight, const Gate& by,
                                        bool in_place) {
  static const auto op = find<decltype(gate_op<gate_cpu>)>("gpfast::gate");
  static const auto op_ = find<decltype(gate_in_place<gate_cpu>)>("gpfast::gate_");
  const auto [test, lower, upper, slopes] = by;
  const auto code = static_cast<int64_t>(test);
  if (in_place) return {z, op_.call(z, decider, maybe(weight), code, lower, upper, slopes.on, slopes.off)};
  return op.call(z, decider, maybe(weight), code, lower, upper, slopes.on, slopes.off);
}

at::Tensor gated(const at::Tensor& z, const at::Tensor& bits, const at::Tensor& weight, const Slopes& slopes, bool in_place) {
  static const auto op = find<decltype(gated_op<gated_cpu>)>("gpfast::gated");
  static const auto op_ = find<decltype(gated_in_place<gated_cpu>)>("gpfast::gated_");
  if (!in_place) return op.call(z, bits, maybe(weight), slopes.on, slopes.off);
  op_.call(z, bits, maybe(weight), slopes.on, slopes.off);
  return z;
}

TORCH_LIBRARY_FRAGMENT(gpfast, m) {
  m.def("gate(Tensor z, Tensor decider, Tensor? weight, int test, float lower, float upper, float on, float off)"
        " -> (Tensor out, Tensor bits)");
  m.def("gate_(Tensor(a!) z, Tensor decider, Tensor? weight, int test, float lower, float upper, float on, float off) -> Tensor");
  m.def("gated(Tensor z, Tensor bits, Tensor? weight, float on, float off) -> Tensor");
  m.def("gated_(Tensor(a!) z, Tensor bits, Tensor? weight, float on, float off) -> ()");
}
TORCH_LIBRARY_IMPL(gpfast, CPU, m) { implement<gate_cpu, gated_cpu>(m); }
TORCH_LIBRARY_IMPL(gpfast, CompositeExplicitAutograd, m) { implement<gate_plain, gated_plain>(m); }
#ifdef GPFAST_WITH_CUDA
TORCH_LIBRARY_IMPL(gpfast, CUDA, m) { implement<gate_cuda, gated_cuda>(m); }
#endif

}  // namespace gpfast

#include "ops/activation.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "ops/activation_tensors.h"

namespace gpfast {
using at::Tensor;

Tensor derivative(const Tensor& saved, const Curve& by, bool second) {
  const Tensor x = at::isReducedFloatingType(saved.scalar_type()) ? saved.to(at::kFloat) : saved;
  const formulas::Parameters<Tensor> parameters{by.p, by.q, by.r};
  switch (by.kind) {
#define GPFAST_CASE(name)                                       \
  case Activation::k##name:                                      \
    return second ? formulas::name<Tensor>::curve(x, parameters) \
                  : formulas::name<Tensor>::slope(x, parameters);
    GPFAST_FOR_EACH_ACTIVATION(GPFAST_CASE)
#undef GPFAST_CASE
  }
  TORCH_CHECK(false, "gpfast: unknown activation ", static_cast<int64_t>(by.kind));
}

void slope_plain(const Tensor& z, const Tensor& saved, const Curve& by, const Tensor& out) {
  out.copy_(derivative(saved, by, false) * z);
}

void slope_and_curve_plain(const Tensor& t, const Tensor& a, const Tensor& saved, const Curve& by, const Tensor& out,
                           const Tensor& bend) {
  bend.copy_(derivative(saved, by, true) * a * t);
  out.copy_(derivative(saved, by, false) * t);
}

void add_slope_plain(const Tensor& into, const Tensor& z, const Tensor& saved, const Curve& by) {
  into.copy_(into + derivative(saved, by, false) * z);
}

namespace {

// As the dispatcher calls them.

Curve curve(int64_t kind, double p, double q, double r) { return {static_cast<Activation>(kind), p, q, r}; }

void check(const Tensor& a, const Tensor& b) {
  bool alike = a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type() && a.is_non_overlapping_and_dense();
  for (int64_t d = 0; alike && a.numel() && d < a.dim(); ++d) alike = a.size(d) == 1 || a.stride(d) == b.stride(d);
  TORCH_CHECK(alike, "gpfast: operands of a smooth activation must be alike and dense; got ", a.sizes(), " with strides ",
              a.strides(), " and ", b.sizes(), " with strides ", b.strides());
}

template <auto kernel>
Tensor slope_op(const Tensor& z, const Tensor& saved, int64_t kind, double p, double q, double r) {
  check(z, saved);
  const auto out = at::empty_like(z);
  kernel(z, saved, curve(kind, p, q, r), out);
  return out;
}

template <auto kernel>
void slope_in_place(const Tensor& z, const Tensor& saved, int64_t kind, double p, double q, double r) {
  check(z, saved);
  kernel(z, saved, curve(kind, p, q, r), z);
}

template <auto kernel>
std::tuple<Tensor, Tensor> both_op(const Tensor& t, const Tensor& a, const Tensor& saved, int64_t kind, double p, double q,
                                   double r) {
  check(t, a);
  check(t, saved);
  std::tuple<Tensor, Tensor> made{at::empty_like(t), at::empty_like(a)};
  kernel(t, a, saved, curve(kind, p, q, r), std::get<0>(made), std::get<1>(made));
  return made;
}

template <auto kernel>
Tensor both_in_a(const Tensor& t, const Tensor& a, const Tensor& saved, int64_t kind, double p, double q, double r) {
  check(t, a);
  check(t, saved);
  const auto out = at::empty_like(t);
  kernel(t, a, saved, curve(kind, p, q, r), out, a);
  return out;
}

template <auto kernel>
void both_in_place(const Tensor& t, const Tensor& a, const Tensor& saved, int64_t kind, double p, double q, double r) {
  check(t, a);
  check(t, saved);
  kernel(t, a, saved, curve(kind, p, q, r), t, a);
}

template <auto kernel>
void add_slope_op(const Tensor& into, const Tensor& z, const Tensor& saved, int64_t kind, double p, double q, double r) {
  check(into, z);
  check(into, saved);
  kernel(into, z, saved, curve(kind, p, q, r));
}

template <typename F>
auto find(const char* name, const char* overload = "") {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).typed<F>();
}

template <auto slope, auto slope_and_curve, auto add_slope>
void implement(torch::Library& m) {
  m.impl("slope", &slope_op<slope>);
  m.impl("slope_", &slope_in_place<slope>);
  m.impl("slope_and_curve", &both_op<slope_and_curve>);
  m.impl("slope_and_curve_.a", &both_in_a<slope_and_curve>);
  m.impl("slope_and_curve_", &both_in_place<slope_and_curve>);
  m.impl("add_slope_", &add_slope_op<add_slope>);
}

}  // namespace

Tensor slope(const Tensor& z, const Tensor& saved, const Curve& by, bool in_place) {
  static const auto op = find<decltype(slope_op<slope_cpu>)>("gpfast::slope");
  static const auto op_ = find<decltype(slope_in_place<slope_cpu>)>("gpfast::slope_");
  const auto kind = static_cast<int64_t>(by.kind);
  if (!in_place) return op.call(z, saved, kind, by.p, by.q, by.r);
  op_.call(z, saved, kind, by.p, by.q, by.r);
  return z;
}

std::tuple<Tensor, Tensor> slope_and_curve(const Tensor& t, const Tensor& a, const Tensor& saved, const Curve& by, bool in_t,
                                           bool in_a) {
  static const auto op = find<decltype(both_op<slope_and_curve_cpu>)>("gpfast::slope_and_curve");
  static const auto op_a = find<decltype(both_in_a<slope_and_curve_cpu>)>("gpfast::slope_and_curve_", "a");
  static const auto op_ = find<decltype(both_in_place<slope_and_curve_cpu>)>("gpfast::slope_and_curve_");
  const auto kind = static_cast<int64_t>(by.kind);
  if (!in_a) return op.call(t, a, saved, kind, by.p, by.q, by.r);
  if (!in_t) return {op_a.call(t, a, saved, kind, by.p, by.q, by.r), a};
  op_.call(t, a, saved, kind, by.p, by.q, by.r);
  return {t, a};
}

void add_slope(const Tensor& into, const Tensor& z, const Tensor& saved, const Curve& by) {
  static const auto op = find<decltype(add_slope_op<add_slope_cpu>)>("gpfast::add_slope_");
  op.call(into, z, saved, static_cast<int64_t>(by.kind), by.p, by.q, by.r);
}

TORCH_LIBRARY_FRAGMENT(gpfast, m) {
  m.def("slope(Tensor z, Tensor saved, int kind, float p, float q, float r) -> Tensor");
  m.def("slope_(Tensor(a!) z, Tensor saved, int kind, float p, float q, float r) -> ()");
  m.def("slope_and_curve(Tensor t, Tensor a, Tensor saved, int kind, float p, float q, float r) -> (Tensor, Tensor)");
  m.def("slope_and_curve_.a(Tensor t, Tensor(a!) a, Tensor saved, int kind, float p, float q, float r) -> Tensor");
  m.def("slope_and_curve_(Tensor(a!) t, Tensor(b!) a, Tensor saved, int kind, float p, float q, float r) -> ()");
  m.def("add_slope_(Tensor(a!) into, Tensor z, Tensor saved, int kind, float p, float q, float r) -> ()");
}
TORCH_LIBRARY_IMPL(gpfast, CPU, m) { implement<slope_cpu, slope_and_curve_cpu, add_slope_cpu>(m); }
TORCH_LIBRARY_IMPL(gpfast, CompositeExplicitAutograd, m) { implement<slope_plain, slope_and_curve_plain, add_slope_plain>(m); }
#ifdef GPFAST_WITH_CUDA
TORCH_LIBRARY_IMPL(gpfast, CUDA, m) { implement<slope_cuda, slope_and_curve_cuda, add_slope_cuda>(m); }
#endif

}  // namespace gpfast

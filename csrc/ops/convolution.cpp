#include "ops/convolution.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "ops/convolution_layout.h"
#include "ops/relayout.h"
#include "ops/tensors.h"
#include "ops/weight_gradient.h"

namespace gpfast {
namespace {

using at::Tensor;
using Maybe = std::optional<Tensor>;
using Ints = at::IntArrayRef;
using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;

Two adjoint(const ArrangedConvolution& as, Tensor a, const Tensor& input) {
  a = as.arranged(std::move(a));
  const bool reads = input.defined() && as.layout == Layout::as_it_comes;
  Tensor below = reads ? std::get<0>(as.backward(a, input, as.weight, {true, false, false})) : as.data_gradient(a, input);
  return {as.plain(std::move(below)), as.plain(std::move(a))};
}

Tensor as_the_weight(const ArrangedConvolution& as, Tensor gradient) {
  return gradient.defined() ? in_layout_of(gradient, as.plain(as.weight)) : gradient;
}

Three tangent(const ArrangedConvolution& as, Tensor t, Tensor a, Tensor gradient, const Tensor& ratio, Tensor input, bool bent,
              std::array<bool, 3> wanted) {
  const WeightGradient of_weight(as, bent);
  Tensor result, of_bias, sum = as.with_height(std::move(gradient));
  t = as.arranged(std::move(t));
  a = as.arranged(std::move(a));
  input = as.arranged(std::move(input));
  const auto of_parameters = [&](Tensor t) {
    const Tensor last = std::move(a);
    if (wanted[2]) of_bias = sum_by_channel(by_ratio(ratio, last));
    if (!wanted[1]) return;
    if (ratio.defined()) t = with_ratio(std::move(t), ratio, std::exchange(input, {}));
    of_weight.add(sum, last, t);
  };
  const bool in_one_call = as.launched && wanted[0] && wanted[1] && !ratio.defined() && as.options.groups == 1;
  if (in_one_call && of_weight.is_one_call(sum, a, t)) {
    Tensor more;
    std::tie(result, more) = as.forward_and_gradient(t, a);
    WeightGradient::add(sum, std::move(more));
  } else {
    if (a.defined() && of_weight.is_best_first(a)) of_parameters(t);
    if (wanted[0]) result = as.forward(t);
    if (a.defined()) of_parameters(std::move(t));
  }
  sum = as.plain(std::move(sum));
  return {as.plain(std::move(result)), bent ? std::move(sum) : as_the_weight(as, std::move(sum)), std::move(of_bias)};
}

Three second(const ArrangedConvolution& as, Tensor b, Tensor input, Tensor gradient, std::array<bool, 3> wanted) {
  const WeightGradient of_weight(as, /*bent=*/true);
  Tensor below, of_bias, sum = as.with_height(std::move(gradient));
  b = as.arranged(std::move(b));
  input = as.arranged(std::move(input));
  if (wanted[1] && of_weight.is_one_call(sum, b, input)) {
    Tensor more;
    std::tie(below, more, of_bias) = as.backward(b, input, as.weight, {wanted[0], true, wanted[2] && as.launched});
    WeightGradient::add(sum, std::move(more));
  } else {
    if (wanted[0]) below = as.data_gradient(b, input);
    if (wanted[1]) of_weight.add(sum, b, input);
  }
  // On the CPU apart: oneDNN adds a bias' gradient up one by one, PyTorch in a cascade.
  if (wanted[2] && !of_bias.defined()) of_bias = sum_by_channel(b);
  return {as.plain(std::move(below)), as_the_weight(as, as.plain(std::move(sum))), std::move(of_bias)};
}

// As the dispatcher calls them: what is returned is no argument.

ArrangedConvolution convolution_of(const Tensor& weight, Ints sizes, Ints stride, Ints padding, Ints dilation, bool transposed,
                                   Ints output_padding, int64_t groups) {
  const auto dims = static_cast<size_t>(weight.dim());
  const bool fit = 3 <= dims && dims <= 5 && sizes.size() == dims &&
                   std::all_of(stride.begin(), stride.end(), [](int64_t step) { return step > 0; });
  for (const auto values : {stride, padding, dilation, output_padding})
    TORCH_CHECK(fit && values.size() + 2 == dims, "gpfast::convolution: a weight of ", weight.sizes(), " for inputs of ", sizes,
                " with ", values);
  ConvolutionOptions options{stride.vec(), padding.vec(), dilation.vec(), output_padding.vec(), transposed, groups};
  return ArrangedConvolution({weight, sizes.vec(), std::move(options), /*launched=*/false});
}

Tensor given(Maybe z) { return std::move(z).value_or(Tensor()); }
Tensor unless_given(Tensor sum, const Maybe& into) { return into && sum.is_alias_of(*into) ? Tensor() : sum; }

Two adjoint_op(Tensor a, const Maybe& input, const Tensor& weight, Ints sizes, Ints stride, Ints padding, Ints dilation,
               bool transposed, Ints output_padding, int64_t groups) {
  const auto as = convolution_of(weight, sizes, stride, padding, dilation, transposed, output_padding, groups);
  const bool is_arranged = as.is_arranged(a);
  auto [below, arranged] = adjoint(as, std::move(a), given(input));
  return {std::move(below), is_arranged ? Tensor() : std::move(arranged)};
}

Three tangent_op(Tensor t, Maybe a, const Maybe& gradient, const Maybe& ratio, Maybe input, const Tensor& weight, Ints sizes,
                 Ints stride, Ints padding, Ints dilation, bool transposed, Ints output_padding, int64_t groups, bool bent,
                 std::array<bool, 3> wanted) {
  const auto as = convolution_of(weight, sizes, stride, padding, dilation, transposed, output_padding, groups);
  auto [result, sum, of_bias] = tangent(as, std::move(t), given(std::move(a)), given(gradient), given(ratio),
                                        given(std::move(input)), bent, wanted);
  return {std::move(result), unless_given(std::move(sum), gradient), std::move(of_bias)};
}

Three second_op(Tensor b, Maybe input, const Maybe& gradient, const Tensor& weight, Ints sizes, Ints stride, Ints padding,
                Ints dilation, bool transposed, Ints output_padding, int64_t groups, std::array<bool, 3> wanted) {
  const auto as = convolution_of(weight, sizes, stride, padding, dilation, transposed, output_padding, groups);
  auto [below, sum, of_bias] = second(as, std::move(b), given(std::move(input)), given(gradient), wanted);
  return {std::move(below), unless_given(std::move(sum), gradient), std::move(of_bias)};
}

template <auto kernel>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<std::remove_pointer_t<decltype(kernel)>>();
}

Maybe maybe(Tensor z) { return z.defined() ? Maybe(std::move(z)) : std::nullopt; }

}  // namespace

bool adjoint_reads_input(const ConvolutionMap& map) {
  return map.options.groups > 1 && ArrangedConvolution(map).reads_input();
}

Tensor convolution_saved(const ConvolutionMap& map, const Tensor& input) { return ArrangedConvolution(map).arranged_saved(input); }

Two convolution_adjoint(const ConvolutionMap& map, Tensor a, const Tensor& input) {
  static const auto op = find<&adjoint_op>("gpfast::convolution_adjoint");
  const auto& [weight, sizes, o, launched] = map;
  if (launched) return adjoint(ArrangedConvolution(map), std::move(a), input);
  const Tensor there = ArrangedConvolution(map).is_arranged(a) ? a : Tensor();
  auto [below, arranged] = op.call(std::move(a), maybe(input), weight, sizes, o.stride, o.padding, o.dilation, o.transposed,
                                   o.output_padding, o.groups);
  return {std::move(below), there.defined() ? there : std::move(arranged)};
}

Three convolution_tangent(const ConvolutionMap& map, Tensor t, Tensor a, Tensor gradient, const Tensor& ratio, Tensor input,
                          bool bent, std::array<bool, 3> wanted) {
  static const auto op = find<&tangent_op>("gpfast::convolution_tangent");
  const auto& [weight, sizes, o, launched] = map;
  if (launched)
    return tangent(ArrangedConvolution(map), std::move(t), std::move(a), std::move(gradient), ratio, std::move(input), bent,
                   wanted);
  auto [result, sum, of_bias] = op.call(std::move(t), maybe(std::move(a)), maybe(gradient), maybe(ratio), maybe(std::move(input)),
                                        weight, sizes, o.stride, o.padding, o.dilation, o.transposed, o.output_padding, o.groups,
                                        bent, wanted);
  return {std::move(result), sum.defined() ? std::move(sum) : std::move(gradient), std::move(of_bias)};
}

Three convolution_second(const ConvolutionMap& map, Tensor b, Tensor input, Tensor gradient, std::array<bool, 3> wanted) {
  static const auto op = find<&second_op>("gpfast::convolution_second");
  const auto& [weight, sizes, o, launched] = map;
  if (launched) return second(ArrangedConvolution(map), std::move(b), std::move(input), std::move(gradient), wanted);
  auto [below, sum, of_bias] = op.call(std::move(b), maybe(std::move(input)), maybe(gradient), weight, sizes, o.stride, o.padding,
                                       o.dilation, o.transposed, o.output_padding, o.groups, wanted);
  return {std::move(below), sum.defined() ? std::move(sum) : std::move(gradient), std::move(of_bias)};
}

TORCH_LIBRARY_FRAGMENT(gpfast, m) {
  m.def("convolution_adjoint(Tensor a, Tensor? input, Tensor weight, int[] sizes, int[] stride, int[] padding, int[] dilation,"
        " bool transposed, int[] output_padding, int groups) -> (Tensor below, Tensor arranged)");
  m.def("convolution_tangent(Tensor t, Tensor? a, Tensor(a!)? gradient, Tensor? ratio, Tensor? input, Tensor weight, int[] sizes,"
        " int[] stride, int[] padding, int[] dilation, bool transposed, int[] output_padding, int groups, bool bent,"
        " bool[3] wanted) -> (Tensor result, Tensor gradient, Tensor of_bias)");
  m.def("convolution_second(Tensor b, Tensor? input, Tensor(a!)? gradient, Tensor weight, int[] sizes, int[] stride,"
        " int[] padding, int[] dilation, bool transposed, int[] output_padding, int groups, bool[3] wanted)"
        " -> (Tensor below, Tensor gradient, Tensor of_bias)");
}
TORCH_LIBRARY_IMPL(gpfast, CompositeExplicitAutograd, m) {
  m.impl("convolution_adjoint", &adjoint_op);
  m.impl("convolution_tangent", &tangent_op);
  m.impl("convolution_second", &second_op);
}

}  // namespace gpfast

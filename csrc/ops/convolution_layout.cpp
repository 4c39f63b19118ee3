#include "ops/convolution_layout.h"

#include <ATen/Context.h>
#include <ATen/native/ConvUtils.h>
#include <ATen/ops/as_strided.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <c10/core/MemoryFormat.h>
#include <c10/util/accumulate.h>

#include <algorithm>

#include "ops/relayout.h"

namespace gpfast {
namespace {

using at::Tensor;
using Ints = std::vector<int64_t>;

// oneDNN computes in channels_last, or in blocks, and reorders what comes otherwise before and after every call. Values that are
// channels_last already are spared that (up to half of a call), but then the weight is reordered slowly, in every call: it pays
// where the values are larger than the weight, a few times as large with a stride or a kernel of one pixel, and costs a fifth
// where they are smaller. Elsewhere (float64, the slow kernels) the layout is left alone.
Layout layout_for(const ConvolutionMap& map, int64_t elements) {
  const Tensor& weight = map.weight;
  const auto dtype = weight.scalar_type();
  if (map.launched || !at::hasMKLDNN() || (dtype != at::kFloat && dtype != at::kBFloat16)) return Layout::as_it_comes;
  const auto format = weight.suggest_memory_format();
  if (format == at::MemoryFormat::ChannelsLast || format == at::MemoryFormat::ChannelsLast3d) return Layout::channels_last;
  const bool pays_later = !all(map.options.stride, 1) || weight.numel() == weight.size(0) * weight.size(1);
  return (pays_later ? elements : 3 * elements) >= 4 * weight.numel() ? Layout::channels_last : Layout::contiguous;
}

Ints output_sizes(const ConvolutionMap& map) {
  const auto& o = map.options;
  const auto weight = map.weight.sizes();
  if (!o.transposed) return at::native::conv_output_size(map.sizes, weight, o.padding, o.stride, o.dilation);
  return at::native::conv_input_size(map.sizes, weight, o.padding, o.output_padding, o.stride, o.dilation, o.groups);
}

Order order_of(Layout layout, int64_t dims) {
  return layout == Layout::contiguous ? contiguous_order(dims) : channels_last_order(dims);
}

// With strides that say so, too: of one channel, or of one pixel, contiguous values are channels_last in memory already, and
// PyTorch takes them for contiguous.
Tensor channels_last(const Tensor& z) {
  const auto format = z.dim() == 5 ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::ChannelsLast;
  Tensor out = relaid(z, channels_last_order(z.dim()));
  if (out.suggest_memory_format() == format) return out;
  c10::SmallVector<int64_t, 5> strides(z.dim());
  int64_t step = z.size(1);
  for (int64_t d = z.dim() - 1; d >= 2; --d) {
    strides[d] = step;
    step *= z.size(d);
  }
  strides[0] = step;
  strides[1] = 1;
  return at::as_strided(out, out.sizes(), strides);
}

}  // namespace

Tensor contiguous(const Tensor& z) {
  c10::SmallVector<int64_t, 5> strides(z.dim(), 1);
  for (int64_t d = z.dim() - 1; d > 0; --d) strides[d - 1] = strides[d] * std::max<int64_t>(z.size(d), 1);
  return at::as_strided(relaid(z, contiguous_order(z.dim())), z.sizes(), strides);
}

ArrangedConvolution::ArrangedConvolution(ConvolutionMap map)
    : ConvolutionMap(std::move(map)), inputs(c10::multiply_integers(sizes)), outputs(c10::multiply_integers(output_sizes(*this))),
      layout(layout_for(*this, inputs + outputs)),
      flat(layout != Layout::as_it_comes && weight.dim() == 3) {  // only four dimensions have channels_last
  if (!flat) return;
  weight = weight.unsqueeze(2);
  sizes.insert(sizes.begin() + 2, 1);
  for (auto* values : {&options.stride, &options.dilation}) values->insert(values->begin(), 1);
  for (auto* values : {&options.padding, &options.output_padding}) values->insert(values->begin(), 0);
}

Tensor ArrangedConvolution::with_height(Tensor z) const { return flat && z.defined() ? z.unsqueeze(2) : z; }
Tensor ArrangedConvolution::plain(Tensor z) const { return flat && z.defined() ? z.squeeze(2) : z; }

Tensor ArrangedConvolution::arranged(Tensor z) const {
  z = with_height(std::move(z));
  if (layout == Layout::as_it_comes || !z.defined()) return z;
  return layout == Layout::contiguous ? relaid(z, contiguous_order(z.dim())) : channels_last(z);
}

Tensor ArrangedConvolution::arranged_saved(const Tensor& h) const {
  return layout == Layout::as_it_comes ? h : relaid_saved(h, order_of(layout, h.dim()));
}

bool ArrangedConvolution::is_arranged(const Tensor& z) const {
  return layout == Layout::as_it_comes || is_dense_in(z, order_of(layout, z.dim()));
}

// What ATen makes of meta tensors is contiguous.
Tensor ArrangedConvolution::as_onednn_leaves_it(Tensor made, const Tensor& z) const {
  const bool fake = layout != Layout::as_it_comes && made.defined() && made.is_meta();
  if (!fake || !at::native::mkldnn_conv_use_channels_last(z, weight)) return made;
  return made.contiguous(made.dim() == 5 ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::ChannelsLast);
}

Tensor ArrangedConvolution::forward(const Tensor& h) const {
  const auto& o = options;
  Tensor made = at::convolution(h, weight, {}, o.stride, o.padding, o.dilation, o.transposed, o.output_padding, o.groups);
  return as_onednn_leaves_it(std::move(made), h);
}

// Which is the output padding of the convolution the other way.
Ints ArrangedConvolution::cut_off() const {
  const auto& o = options;
  Ints cut(o.stride.size(), 0);
  for (size_t d = 0; !o.transposed && d < cut.size(); ++d)
    cut[d] = (sizes[d + 2] + 2 * o.padding[d] - o.dilation[d] * (weight.size(d + 2) - 1) - 1) % o.stride[d];
  return cut;
}

// Of one sample ATen asks how large the input is, here the adjoint, and leaves small ones to a kernel of its own, which unfolds
// them: of a critic whose scores are a map with one channel, into many times the memory. The backward asks the forward's input.
bool ArrangedConvolution::unfolds(const Tensor& z) const {
  constexpr int64_t kSmallSample = 20480;
  const bool small_kernel = weight.size(-1) <= 3 || weight.size(-2) <= 3;
  const bool small = z.size(0) == 1 && z.numel() <= kSmallSample && inputs > kSmallSample;
  return layout != Layout::as_it_comes && small && small_kernel;
}

// Large kernels of few channels (of words' embeddings, say).
bool ArrangedConvolution::slow_the_other_way() const {
  constexpr int64_t kLargeKernel = 64;
  const bool few = weight.size(1) < kFewChannels && weight.numel() >= kLargeKernel * weight.size(0) * weight.size(1);
  return layout == Layout::channels_last && few && !options.transposed && options.groups == 1;
}

// The convolution the other way reorders weights of groups in channels_last, up to seven times as slowly as it then runs.
bool ArrangedConvolution::reorders_groups() const {
  const auto& o = options;
  const bool depthwise = weight.size(1) == 1 && weight.size(0) == o.groups;
  return layout == Layout::channels_last && o.groups > 1 && !depthwise && !o.transposed;
}

bool ArrangedConvolution::reads_input() const { return layout == Layout::as_it_comes ? options.groups > 1 : reorders_groups(); }

// What has its sizes and strides, and no values that anyone reads.
Tensor ArrangedConvolution::stand_in(const Tensor& input, const Tensor& z, at::MemoryFormat format) const {
  const bool fits = input.defined() && input.is_non_overlapping_and_dense() && format != at::MemoryFormat::Contiguous;
  if (!fits) return at::empty(sizes, z.options(), format);
  const bool volumes = z.dim() == 5;
  return at::as_strided(input, sizes, volumes ? c10::get_channels_last_strides_3d(sizes) : c10::get_channels_last_strides_2d(sizes));
}

// oneDNN's data gradient is slower than the convolution the other way, and takes its layout from the input that was kept.
Tensor ArrangedConvolution::data_gradient(const Tensor& values, const Tensor& input) const {
  const auto& o = options;
  const Tensor z = slow_the_other_way() ? contiguous(values) : values;
  if (unfolds(z) || reorders_groups()) {
    const auto last = weight.dim() == 5 ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::ChannelsLast;
    const auto format = layout == Layout::channels_last && !slow_the_other_way() ? last : at::MemoryFormat::Contiguous;
    return std::get<0>(backward(z, stand_in(input, z, format), weight, {true, false, false}));
  }
  Tensor made = at::convolution(z, weight, {}, o.stride, o.padding, o.dilation, !o.transposed, cut_off(), o.groups);
  return as_onednn_leaves_it(std::move(made), z);
}

std::tuple<Tensor, Tensor> ArrangedConvolution::forward_and_gradient(const Tensor& h, const Tensor& z) const {
  const auto& o = options;
  auto [made, gradient, _] = at::convolution_backward(h, z, weight, {}, o.stride, o.padding, o.dilation, !o.transposed, cut_off(),
                                                      o.groups, {true, true, false});
  return {std::move(made), std::move(gradient)};
}

std::tuple<Tensor, Tensor, Tensor> ArrangedConvolution::backward(const Tensor& z, const Tensor& h, const Tensor& weight,
                                                                 std::array<bool, 3> mask) const {
  const auto& o = options;
  const int64_t channels = o.transposed ? weight.size(1) * o.groups : weight.size(0);
  auto [below, gradient, sums] = at::convolution_backward(z, h, weight, at::IntArrayRef(channels), o.stride, o.padding,
                                                          o.dilation, o.transposed, o.output_padding, o.groups, mask);
  return {as_onednn_leaves_it(std::move(below), h), as_onednn_leaves_it(std::move(gradient), h), std::move(sums)};
}

}  // namespace gpfast

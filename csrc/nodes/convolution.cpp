// Convolutions: y = w * h + c, with h live. The adjoint is the data gradient, the tangent the convolution without its bias.
//   g_w = weight gradient of (a, t) + of (b, h)        g_c = sum b
// Where b is r a, sample by sample: g_w = weight gradient of (a, t + r h), g_c = sum r a.
#include "nodes/convolution.h"

#include <ATen/ops/as_strided.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <utility>

#include "nodes/values.h"
#include "ops/convolution.h"
#include "ops/relayout.h"

namespace gpfast {
namespace {

using at::Tensor;
using Ints = std::vector<int64_t>;

constexpr int64_t kLargeWeight = 16 << 20, kBlock = 8 << 20, kSmallBlock = 4 << 20;  // bytes
constexpr int64_t kMostBlocks = 4;
constexpr int64_t kFewChannels = 16, kManyPixels = 512, kFewPixels = 16;
constexpr int64_t kTogether = 16, kInARow = 1536;  // samples, pixels
constexpr int64_t kFewGroups = 8;

enum class Layout { as_it_comes, contiguous, channels_last };

// oneDNN computes in channels_last, or in blocks, and reorders what comes otherwise before and after every call. Values that are
// channels_last already are spared that (up to half of a call), but then the weight is reordered slowly, in every call: it pays
// where the values are a few times the weight, and costs a fifth where they are smaller. Elsewhere (CUDA, float64, the slow
// kernels) the layout is left alone.
Layout layout_for(const Tensor& weight, int64_t elements_of_input, int64_t elements_of_output) {
  const auto dtype = weight.scalar_type();
  if (launched(weight) || !at::hasMKLDNN() || (dtype != at::kFloat && dtype != at::kBFloat16)) return Layout::as_it_comes;
  const auto format = weight.suggest_memory_format();
  if (format == at::MemoryFormat::ChannelsLast || format == at::MemoryFormat::ChannelsLast3d) return Layout::channels_last;
  return elements_of_input + elements_of_output >= 4 * weight.numel() ? Layout::channels_last : Layout::contiguous;
}

// With strides that say so, too: of one channel, or of one pixel, contiguous values are channels_last in memory already, and
// PyTorch takes them for contiguous.
Tensor channels_last(const Tensor& z) {
  const auto format = z.dim() == 5 ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::ChannelsLast;
  Tensor out = relaid(z, channels_last_order(z.dim()));
  if (out.suggest_memory_format() == format) return out;
  Sizes strides(z.dim());
  int64_t step = z.size(1);
  for (int64_t d = z.dim() - 1; d >= 2; --d) {
    strides[d] = step;
    step *= z.size(d);
  }
  strides[0] = step;
  strides[1] = 1;
  return at::as_strided(out, out.sizes(), strides);
}

// For ATen, which asks the strides of one channel or one pixel too.
Tensor contiguous(const Tensor& z) {
  Sizes strides(z.dim(), 1);
  for (int64_t d = z.dim() - 1; d > 0; --d) strides[d - 1] = strides[d] * std::max<int64_t>(z.size(d), 1);
  return at::as_strided(relaid(z, contiguous_order(z.dim())), z.sizes(), strides);
}

// How the gradient of a weight is summed up. oneDNN's kernels for values that are channels_last and weights of few channels add
// one pixel after another, where those for contiguous ones add parts.
enum class Summed { as_it_comes, contiguous, over_pixels };

class Convolution final : public Rule {
 public:
  Convolution(Place place, Tensor input, Tensor weight, ConvolutionOptions options)
      : Rule(std::move(place)), input_(std::move(input)), weight_(std::move(weight)), options_(std::move(options)),
        launched_(launched(weight_)) {
    sizes_.assign(input_.sizes().begin(), input_.sizes().end());
    elements_ = input_.numel();
    // Only the data gradient of ATen's own kernels for groups takes the input, to read its sizes.
    reads_input_ = options_.groups > 1 && layout_for(weight_, elements_, elements_) == Layout::as_it_comes;
    if (!reads_input_ && !needs_input()) input_ = Tensor();
  }

  const char* name() const override { return "convolution"; }

  Values adjoint(Values values) override {
    adjoint_bytes_ = static_cast<int64_t>(values[0].nbytes());
    layout_ = layout_for(weight_, elements_, values[0].numel());
    large_weight_ = layout_ == Layout::contiguous && elements_ + values[0].numel() <= weight_.numel();
    if (layout_ != Layout::as_it_comes && weight_.dim() == 3) add_height();
    summed_ = how_summed(values[0]);
    Tensor a = arranged(std::move(values[0]));
    // oneDNN's data gradient is slower than the convolution the other way, and takes its layout from the input that was kept.
    Tensor down = reads_input_ ? std::get<0>(backward(a, input_, weight_, {true, false, false})) : data_gradient(a);
    input_ = needs_input() ? saved(input_) : Tensor();
    repeats_ = place.wanted(1) && !place.proportional ? repeats(a) : Reader{};
    if ((place.wanted(1) && !repeats_) || (place.proportional && place.wanted(2))) adjoint_ = std::move(a);
    return {plain(std::move(down)), Tensor(), Tensor()};
  }

  Values tangent(Values values) override {
    Tensor t = std::move(values[0]);
    if (!t.defined()) return Values(1);
    t = arranged(std::move(t));
    const auto& o = options_;
    Values out(1);
    if (!ratio.defined() && tangent_and_gradient(t, out[0])) return out;
    const bool first = !place.bent && gradient_is_best_first();
    if (first) begin_gradient(t);
    if (place.tangent)
      out[0] = plain(at::convolution(t, weight_, {}, o.stride, o.padding, o.dilation, o.transposed, o.output_padding, o.groups));
    if (!first) begin_gradient(std::move(t));
    return out;
  }

  Values second(Values values) override {
    Tensor below, bias = std::move(bias_), gradient = std::move(gradient_);
    if (!gradient.defined() && place.wanted(1)) gradient = as_it_is_made(std::move(onto[1]));
    if (values[0].defined()) {
      const Tensor b = arranged(std::move(values[0]));
      Tensor more_bias;
      if (place.wanted(1)) {
        const Tensor h = take(input_);
        if (summed_ != Summed::as_it_comes || slow_the_other_way() || gradient_by_convolution(b) || adds_in_blocks(gradient) ||
            parts(b, h) > 1) {
          if (place.wanted(0)) below = data_gradient(b);
          add_weight_gradient(gradient, b, h);
        } else {
          Tensor more;
          std::tie(below, more, more_bias) = backward(b, h, weight_, {place.wanted(0), true, place.wanted(2) && launched_});
          accumulate(gradient, std::move(more));
        }
      } else if (place.wanted(0)) {
        below = data_gradient(b);
      }
      // On the CPU apart: oneDNN adds a bias' gradient up one by one, PyTorch in a cascade.
      if (place.wanted(2)) accumulate(bias, more_bias.defined() ? std::move(more_bias) : sum_by_channel(b));
    }
    return {plain(std::move(below)), as_the_weight(plain(std::move(gradient))), std::move(bias)};
  }

  Values begun() override { return {Tensor(), as_the_weight(plain(std::move(gradient_)))}; }

  int64_t kept() const override { return bytes_of({input_, adjoint_, gradient_, bias_}); }

 private:
  bool needs_input() const { return (place.bent || place.proportional) && place.wanted(1); }

  // One dimension as two, of height 1, as oneDNN takes it: only four dimensions have channels_last.
  void add_height() {
    flat_ = true;
    weight_ = weight_.unsqueeze(2);
    sizes_.insert(sizes_.begin() + 2, 1);
    for (auto* values : {&options_.stride, &options_.dilation}) values->insert(values->begin(), 1);
    for (auto* values : {&options_.padding, &options_.output_padding}) values->insert(values->begin(), 0);
  }
  Tensor plain(Tensor z) const { return flat_ && z.defined() ? z.squeeze(2) : z; }

  Tensor arranged(Tensor z) const {
    if (flat_) z = z.unsqueeze(2);
    if (layout_ == Layout::as_it_comes) return z;
    return layout_ == Layout::contiguous ? relaid(z, contiguous_order(z.dim())) : channels_last(z);
  }

  // The same, of what the forward saved.
  Tensor saved(const Tensor& h) const {
    if (layout_ == Layout::as_it_comes) return arranged(h);
    const int64_t dims = h.dim();
    return arranged(relaid_saved(h, layout_ == Layout::contiguous ? contiguous_order(dims) : channels_last_order(dims)));
  }

  Tensor adjoint_here() { return repeats_ ? arranged(repeats_.adjoint_again()) : take(adjoint_); }

  // In the weight's strides, so that .grad takes it without a copy. Strides of dimensions of one do not count.
  Tensor as_the_weight(Tensor gradient) const {
    const Tensor weight = plain(weight_);
    if (!gradient.defined() || (gradient.is_contiguous() && weight.is_contiguous())) return gradient;
    return in_layout_of(gradient, weight);
  }

  // What the stride cut off at the end, which is the output padding of the convolution the other way.
  Ints cut_off() const {
    const auto& o = options_;
    Ints cut(o.stride.size(), 0);
    for (size_t d = 0; !o.transposed && d < cut.size(); ++d)
      cut[d] = (sizes_[d + 2] + 2 * o.padding[d] - o.dilation[d] * (weight_.size(d + 2) - 1) - 1) % o.stride[d];
    return cut;
  }

  // Of one sample ATen asks how large the input is, here the adjoint, and leaves small ones to a kernel of its own, which unfolds
  // them: of a critic whose scores are a map with one channel, into many times the memory. The backward asks the forward's input.
  bool unfolds(const Tensor& z) const {
    constexpr int64_t kSmallSample = 20480;
    const bool small_kernel = weight_.size(-1) <= 3 || weight_.size(-2) <= 3;
    const bool small = z.size(0) == 1 && z.numel() <= kSmallSample && elements_ > kSmallSample;
    return layout_ != Layout::as_it_comes && small && small_kernel;
  }

  // Large kernels of few channels (of words' embeddings, say): the other way oneDNN is up to forty times as slow in channels_last.
  bool slow_the_other_way() const {
    constexpr int64_t kLargeKernel = 64;
    const bool few = weight_.size(1) < kFewChannels && weight_.numel() >= kLargeKernel * weight_.size(0) * weight_.size(1);
    return layout_ == Layout::channels_last && few && !options_.transposed && options_.groups == 1;
  }

  // The convolution the other way reorders weights of groups in channels_last, up to seven times as slowly as it then runs.
  bool reorders_groups() const {
    const auto& o = options_;
    const bool depthwise = weight_.size(1) == 1 && weight_.size(0) == o.groups;
    return layout_ == Layout::channels_last && o.groups > 1 && !depthwise && !o.transposed;
  }

  Tensor data_gradient(const Tensor& values) const {
    const auto& o = options_;
    const Tensor z = slow_the_other_way() ? contiguous(values) : values;
    if (unfolds(z) || reorders_groups()) {
      const auto last = weight_.dim() == 5 ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::ChannelsLast;
      const auto format = layout_ == Layout::channels_last && !slow_the_other_way() ? last : at::MemoryFormat::Contiguous;
      return std::get<0>(backward(z, at::empty(sizes_, z.options(), format), weight_, {true, false, false}));
    }
    return at::convolution(z, weight_, {}, o.stride, o.padding, o.dilation, !o.transposed, cut_off(), o.groups);
  }

  // The tangent is the data gradient of the convolution the other way, whose weight gradient is ours: both in one call.
  bool tangent_and_gradient(const Tensor& t, Tensor& tangent) {
    if (!launched_ || !place.tangent || !place.wanted(1) || options_.groups != 1 || adds_in_blocks(onto[1])) return false;
    const auto& o = options_;
    Tensor more;
    std::tie(tangent, more, std::ignore) =
        at::convolution_backward(t, adjoint_here(), weight_, {}, o.stride, o.padding, o.dilation, !o.transposed, cut_off(),
                                 o.groups, {true, true, false});
    gradient_ = std::move(onto[1]);
    accumulate(gradient_, std::move(more));
    return true;
  }

  // Gradient and convolution both take memory of the weight's size while they run. The gradient stays, and takes less beside it
  // where it is made in blocks; the convolution's result stays, and the adjoint until the gradient is made. Where second adjoints
  // will come, and more is held, the gradient comes last.
  bool gradient_is_best_first() const {
    const int64_t weight = static_cast<int64_t>(weight_.nbytes());
    return weight <= 2 * weight / blocks(onto[1]) + adjoint_bytes_;
  }

  void begin_gradient(Tensor t) {
    if (!place.wanted(1) && !ratio.defined()) return;
    const Tensor a = adjoint_here();
    if (ratio.defined() && place.wanted(2)) bias_ = sum_by_channel(by_ratio(ratio, a));
    if (!place.wanted(1)) return;
    gradient_ = as_it_is_made(std::move(onto[1]));
    if (ratio.defined()) t = with_ratio(std::move(t), ratio, place.bent ? input_ : take(input_));
    add_weight_gradient(gradient_, a, t);
  }

  // A gradient of the weight that came from elsewhere.
  Tensor as_it_is_made(Tensor gradient) const { return flat_ && gradient.defined() ? gradient.unsqueeze(2) : gradient; }

  static bool all(const Ints& values, int64_t one) {
    return std::all_of(values.begin(), values.end(), [one](int64_t value) { return value == one; });
  }

  // Beside the sums, a kernel of one pixel: of fewer than 16 channels and with a stride, oneDNN's gradient in channels_last writes
  // beyond its own memory.
  Summed how_summed(const Tensor& z) const {
    if (layout_ == Layout::as_it_comes || weight_.scalar_type() != at::kFloat) return Summed::as_it_comes;
    const auto& o = options_;
    const int64_t inputs = weight_.size(1), outputs = weight_.size(0) / o.groups;
    if (one_way_and_dilated() && z.numel() / z.size(1) >= kManyPixels) return Summed::over_pixels;
    if (weight_.numel() == weight_.size(0) * inputs) {
      if (std::min(inputs, outputs) >= kFewChannels) return Summed::as_it_comes;
      return o.groups == 1 && all(o.padding, 0) ? Summed::over_pixels : Summed::contiguous;
    }
    const int64_t pixels = o.transposed ? elements_ / sizes_[1] : z.numel() / z.size(1);
    const bool own_kernel = (inputs == 1 && outputs == 1) || (inputs % 8 == 0 && outputs % 8 == 0);  // for groups, in either layout
    const bool general = (o.groups > 1 && !own_kernel) || !all(o.dilation, 1);
    const bool poor = layout_ == Layout::channels_last && general && inputs < kFewChannels && pixels >= kManyPixels;
    return poor ? Summed::contiguous : Summed::as_it_comes;
  }

  // The dimension of a kernel that has no other of more than one pixel.
  size_t way() const {
    size_t way = 0;
    for (size_t d = 0; d < options_.stride.size(); ++d)
      if (weight_.size(d + 2) > 1) way = d;
    return way;
  }

  // In one dimension only, as those of sequences are: there PyTorch's double backward adds such up in parts.
  bool one_way_and_dilated() const {
    const auto& o = options_;
    const size_t d = way();
    const bool one_way = weight_.numel() == weight_.size(0) * weight_.size(1) * weight_.size(d + 2);
    if (!one_way || o.groups > kFewGroups || o.dilation[d] == 1) return false;
    for (size_t other = 0; other < o.padding.size(); ++other)
      if (other != d && o.padding[other] > 0) return false;
    return true;
  }

  Tensor share_of(const Tensor& z, int64_t group) const {
    const int64_t channels = z.size(1) / options_.groups;
    return z.narrow(1, group * channels, channels);
  }

  // Of kernels of one dimension, without padding in the others: a product for each of its pixels.
  Tensor gradient_over_pixels(const Tensor& z, const Tensor& h) const {
    const auto& o = options_;
    const size_t way = this->way();
    const int64_t along = static_cast<int64_t>(way) + 2, stride = o.stride[way];
    const Tensor& of = o.transposed ? h : z;
    Tensor by = o.transposed ? z : h;
    for (size_t d = 0; d < o.stride.size(); ++d)
      if (d != way && o.stride[d] > 1) by = by.slice(static_cast<int64_t>(d) + 2, {}, {}, o.stride[d]);
    std::vector<Tensor> pixels;
    for (int64_t k = 0; k < weight_.size(along); ++k) {
      const int64_t shift = k * o.dilation[way] - o.padding[way], last = by.size(along) - 1 - shift;
      const int64_t first = shift < 0 ? (-shift + stride - 1) / stride : 0;
      const int64_t n = last < 0 ? 0 : std::min(of.size(along), last / stride + 1) - first;
      if (n <= 0) {
        pixels.push_back(at::zeros({weight_.size(0), weight_.size(1)}, weight_.options()));
        continue;
      }
      const int64_t begin = first * stride + shift;
      const Tensor left = of.narrow(along, first, n), right = by.slice(along, begin, begin + (n - 1) * stride + 1, stride);
      std::vector<Tensor> groups;
      for (int64_t group = 0; group < o.groups; ++group)
        groups.push_back(sum_over_pixels(share_of(left, group), share_of(right, group)));
      pixels.push_back(groups.size() == 1 ? groups[0] : at::cat(groups));
    }
    return (pixels.size() == 1 ? pixels[0] : at::stack(pixels, -1)).view(weight_.sizes());
  }

  // Where the weight is large beside the values, oneDNN's weight gradient takes up to twice the time of the same sums written as a
  // convolution: of the input, whose samples are channels and whose channels are a batch, by the adjoint, dilated by the stride.
  // With few samples, or a small kernel, it is as fast; but it may take up to ten times the weight's memory.
  bool gradient_by_convolution(const Tensor& z) const {
    if (!large_weight_ || z.dim() != 4 || options_.transposed || options_.groups != 1) return false;
    const int64_t samples = z.size(0), kernel = weight_.size(2) * weight_.size(3);
    return samples >= (kernel >= 16 ? 8 : 32) || static_cast<int64_t>(weight_.nbytes()) >= kLargeWeight;
  }

  // Smaller ones where more is held: second adjoints to come, or the gradients of earlier parts of the batch.
  int64_t blocks(const Tensor& gradient) const {
    const int64_t bytes = static_cast<int64_t>(weight_.nbytes());
    const int64_t block = launched_ ? kWorthALaunch : place.bent || gradient.defined() ? kSmallBlock : kBlock;
    return std::clamp<int64_t>((bytes + block - 1) / block, 1, kMostBlocks);
  }
  bool adds_in_blocks(const Tensor& gradient) const {
    return ours(gradient) && options_.groups == 1 && !options_.transposed && blocks(gradient) > 1;
  }
  template <typename F>
  static void for_each_block(int64_t length, int64_t blocks, const F& work) {
    const int64_t most = (length + blocks - 1) / blocks;
    for (int64_t first = 0; first < length; first += most) work(first, std::min(most, length - first));
  }

  // In how many parts samples are summed up. oneDNN's gradient adds one pixel after another over all of them, PyTorch's double
  // backward at most 16 samples (they are the channels of a convolution there), which for few pixels is no difference. The kernel
  // for channels_last without stride and dilation, of enough channels, has a quarter of the error; that grows as the root of the
  // pixels.
  int64_t parts(const Tensor& z, const Tensor& h) const {
    if (layout_ == Layout::as_it_comes || weight_.scalar_type() != at::kFloat || summed_ == Summed::over_pixels) return 1;
    if (gradient_by_convolution(z)) return 1;
    const auto& o = options_;
    const bool many_channels = std::min(weight_.size(1), weight_.size(0) / o.groups) >= kFewChannels;
    const bool dense = layout_ == Layout::channels_last && summed_ == Summed::as_it_comes && many_channels && all(o.stride, 1) &&
                       all(o.dilation, 1);
    const Tensor& of = o.transposed ? h : z;
    const int64_t better = dense ? 4 : 1, in_a_row = better * better * kInARow, pixels = of.numel() / of.size(1);
    return std::clamp<int64_t>((pixels + in_a_row - 1) / in_a_row, 1, std::max<int64_t>(1, of.size(0) / (better * kTogether)));
  }

  // gradient += that of (z, h).
  void add_weight_gradient(Tensor& gradient, const Tensor& z, const Tensor& h) const {
    const int64_t parts = this->parts(z, h);
    if (parts == 1) return add_part(gradient, z, h);
    for_each_block(z.size(0), parts,
                   [&](int64_t first, int64_t n) { add_part(gradient, z.narrow(0, first, n), h.narrow(0, first, n)); });
  }

  // Of a large weight a part at a time, so that what it is made in takes less memory than the weight.
  void add_part(Tensor& gradient, const Tensor& z, const Tensor& h) const {
    if (summed_ == Summed::over_pixels) return accumulate(gradient, gradient_over_pixels(z, h));
    if (summed_ == Summed::contiguous)
      return accumulate(gradient, std::get<1>(backward(contiguous(z), contiguous(h), contiguous(weight_), {false, true, false})));
    if (gradient_by_convolution(z)) return add_by_convolution(gradient, z, h);
    if (!adds_in_blocks(gradient)) return accumulate(gradient, std::get<1>(backward(z, h, weight_, {false, true, false})));
    for_each_block(weight_.size(0), blocks(gradient), [&](int64_t first, int64_t n) {
      const auto outputs = weight_.narrow(0, first, n);
      gradient.narrow(0, first, n).add_(std::get<1>(backward(z.narrow(1, first, n), h, outputs, {false, true, false})));
    });
  }

  // As fast or faster for adjoints of few pixels, where the weight is what is large, or its kernel, in one part; else up to a
  // twentieth slower.
  bool turned_in_channels_last(const Tensor& z, const Tensor& h, int64_t parts) const {
    const bool large_kernel = parts == 1 && !place.bent && weight_.size(2) * weight_.size(3) > kFewPixels;
    return z.size(2) * z.size(3) <= kFewPixels && (large_kernel || 8 * (z.numel() + h.numel()) <= weight_.numel());
  }

  // A convolution leaves the gradient turned, with rows that belong to no weight (of what the stride cut off at the end), and once
  // more in oneDNN's own order; not where it runs in channels_last.
  void add_by_convolution(Tensor& gradient, const Tensor& z, const Tensor& h) const {
    const bool adds = ours(gradient) && gradient.is_contiguous();
    const int64_t parts = blocks(gradient);
    Tensor into = adds ? std::move(gradient) : at::empty(weight_.sizes(), weight_.options(), at::MemoryFormat::Contiguous);
    const auto& o = options_;
    const Ints none{0, 0};
    const Tensor by = z.transpose(0, 1), turned = h.transpose(0, 1);
    const Tensor of = turned_in_channels_last(z, h, parts) ? channels_last(turned) : turned;
    for_each_block(weight_.size(1), parts, [&](int64_t first, int64_t n) {
      const auto found = at::convolution(of.narrow(0, first, n), by, {}, o.dilation, o.padding, o.stride, false, none, 1);
      turn_kernel(into, found, first, adds);
    });
    accumulate(gradient, std::move(into));
  }

  std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& z, const Tensor& h, const Tensor& weight, std::array<bool, 3> mask) const {
    const auto& o = options_;
    const int64_t channels = o.transposed ? weight.size(1) * o.groups : weight.size(0);
    return at::convolution_backward(z, h, weight, at::IntArrayRef(channels), o.stride, o.padding, o.dilation, o.transposed,
                                    o.output_padding, o.groups, mask);
  }

  Tensor input_, weight_;
  Tensor adjoint_;   // until the tangent comes
  Tensor gradient_, bias_;  // as far as they are made with the tangent
  ConvolutionOptions options_;
  bool launched_;  // when the rule was made: the sweeps that finish may run under another setting
  Sizes sizes_;  // of the input
  Reader repeats_;  // the adjoint
  int64_t elements_, adjoint_bytes_ = 0;
  bool reads_input_;
  Layout layout_ = Layout::as_it_comes;
  Summed summed_ = Summed::as_it_comes;
  bool large_weight_ = false;
  bool flat_ = false;
};

bool plain_and_real(const Tensor& z) { return z.layout() == at::kStrided && z.is_floating_point(); }

}  // namespace

std::unique_ptr<Rule> convolution(const Place& place, Tensor input, Tensor weight, ConvolutionOptions options) {
  const int64_t spatial = weight.dim() - 2;
  if (!place.only(0b001) || spatial < 1 || spatial > 3 || input.dim() != weight.dim()) return nullptr;
  if (!plain_and_real(input) || !plain_and_real(weight) || input.scalar_type() != weight.scalar_type()) return nullptr;
  for (auto* values : {&options.stride, &options.padding, &options.dilation, &options.output_padding}) {
    if (values->size() == 1) values->resize(spatial, values->front());
    if (static_cast<int64_t>(values->size()) != spatial) return nullptr;
  }
  // Beyond the stride, which a dilation allows, output padding makes the data gradient longer than the input.
  for (int64_t d = 0; d < spatial; ++d)
    if (options.output_padding[d] >= options.stride[d]) return nullptr;
  return std::make_unique<Convolution>(place, std::move(input), std::move(weight), std::move(options));
}

}  // namespace gpfast

#include "ops/weight_gradient.h"

#include <ATen/Version.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "ops/launched.h"
#include "ops/turn_kernel.h"

namespace gpfast {
namespace {

using at::Tensor;
using Ints = std::vector<int64_t>;

constexpr int64_t kLargeWeight = 16 << 20, kBlock = 4 << 20;  // bytes
constexpr int64_t kMostBlocks = 4, kUnit = 32;  // blocks; channels of one at least, for which oneDNN's kernels are whole
constexpr int64_t kManyPixels = 512, kFewPixels = 9;
constexpr int64_t kLongKernel = 15;
constexpr int64_t kTogether = 16, kInARow = 1536;  // samples, pixels
constexpr int64_t kFewGroups = 8;

bool avx512() {
  static const bool can = at::get_cpu_capability() == "AVX512";
  return can;
}

template <typename F>
void for_each_block(int64_t length, int64_t blocks, int64_t unit, const F& work) {
  const int64_t most = (length + blocks * unit - 1) / (blocks * unit) * unit;
  for (int64_t first = 0; first < length; first += most) work(first, std::min(most, length - first));
}

Tensor share_of(const Tensor& z, int64_t group, int64_t groups) {
  const int64_t channels = z.size(1) / groups;
  return z.narrow(1, group * channels, channels);
}

// of: (n, outputs, ...), by: (n, inputs, ...), of the same pixels. (outputs, inputs): the sum over all of them, a matrix product
// for some of them at a time, whose results are then added up pairwise. Fastest where both are channels_last.
Tensor sum_over_pixels(const Tensor& of, const Tensor& by) {
  // Long enough for the product to be worth its call, short enough that a sum one by one loses nothing.
  constexpr int64_t kPixels = 128;
  const auto left = of.movedim(1, -1).reshape({-1, of.size(1)}), right = by.movedim(1, -1).reshape({-1, by.size(1)});
  const int64_t pixels = left.size(0), blocks = pixels / kPixels, rest = pixels - blocks * kPixels;
  if (blocks == 0) return at::mm(left.t(), right);
  const auto in_blocks = [&](const Tensor& z) { return z.narrow(0, 0, blocks * kPixels).view({blocks, kPixels, z.size(1)}); };
  auto sum = at::bmm(in_blocks(left).transpose(1, 2), in_blocks(right)).sum(0);
  if (rest > 0) sum.addmm_(left.narrow(0, pixels - rest, rest).t(), right.narrow(0, pixels - rest, rest));
  return sum;
}

}  // namespace

WeightGradient::WeightGradient(const ArrangedConvolution& convolution, bool bent)
    : of_(convolution), bent_(bent), summed_(how_summed()) {}

void WeightGradient::add(Tensor& gradient, Tensor value) {
  if (gradient.defined()) gradient.add_(value);
  else gradient = std::move(value);
}

void WeightGradient::add(Tensor& gradient, const Tensor& z, const Tensor& h) const {
  const int64_t parts = this->parts(z, h);
  if (parts == 1) return add_part(gradient, z, h);
  for_each_block(z.size(0), parts, 1,
                 [&](int64_t first, int64_t n) { add_part(gradient, z.narrow(0, first, n), h.narrow(0, first, n)); });
}

bool WeightGradient::is_one_call(const Tensor& gradient, const Tensor& z, const Tensor& h) const {
  if (summed_ != Summed::as_it_comes || of_.slow_the_other_way() || by_convolution(z) || is_in_blocks(gradient)) return false;
  return parts(z, h) == 1;
}

// Gradient and convolution both take memory of the weight's size while they run. The gradient stays, and takes less beside it
// where it is made in blocks; the convolution's result stays, and the adjoint until the gradient is made. Where second adjoints
// will come, and more is held, the gradient comes last.
bool WeightGradient::is_best_first(const Tensor& z) const {
  const int64_t weight = static_cast<int64_t>(of_.weight.nbytes());
  return !bent_ && weight <= 2 * weight / blocks() + static_cast<int64_t>(z.nbytes());
}

// Beside the sums, a kernel of one pixel: of fewer than 16 channels and with a stride, oneDNN's gradient in channels_last writes
// beyond its own memory.
WeightGradient::Summed WeightGradient::how_summed() const {
  const auto& weight = of_.weight;
  if (of_.layout == Layout::as_it_comes || weight.scalar_type() != at::kFloat) return Summed::as_it_comes;
  const auto& o = of_.options;
  const int64_t inputs = weight.size(1), outputs = weight.size(0) / o.groups;
  if (one_way_and_dilated() && of_.outputs / of_.output_channels() >= kManyPixels) return Summed::over_pixels;
  if (weight.numel() == weight.size(0) * inputs) {
    if (std::min(inputs, outputs) >= kFewChannels) return Summed::as_it_comes;
    return o.groups == 1 && all(o.padding, 0) ? Summed::over_pixels : Summed::contiguous;
  }
  const int64_t pixels = o.transposed ? of_.inputs / of_.sizes[1] : of_.outputs / of_.output_channels();
  const bool own_kernel = (inputs == 1 && outputs == 1) || (inputs % 8 == 0 && outputs % 8 == 0);  // for groups, in either layout
  const bool general = (o.groups > 1 && !own_kernel) || !all(o.dilation, 1);
  const bool poor = of_.layout == Layout::channels_last && general && inputs < kFewChannels && pixels >= kManyPixels;
  return poor ? Summed::contiguous : Summed::as_it_comes;
}

// The dimension of a kernel that has no other of more than one pixel.
size_t WeightGradient::way() const {
  size_t way = 0;
  for (size_t d = 0; d < of_.options.stride.size(); ++d)
    if (of_.weight.size(d + 2) > 1) way = d;
  return way;
}

// In one dimension only, as those of sequences are: there PyTorch's double backward adds such up in parts.
bool WeightGradient::one_way_and_dilated() const {
  const auto& o = of_.options;
  const auto& weight = of_.weight;
  const size_t d = way();
  const bool one_way = weight.numel() == weight.size(0) * weight.size(1) * weight.size(d + 2);
  if (!one_way || o.groups > kFewGroups || o.dilation[d] == 1) return false;
  for (size_t other = 0; other < o.padding.size(); ++other)
    if (other != d && o.padding[other] > 0) return false;
  return true;
}

// Of kernels of one dimension, without padding in the others: a product for each of its pixels.
Tensor WeightGradient::over_pixels(const Tensor& z, const Tensor& h) const {
  const auto& o = of_.options;
  const auto& weight = of_.weight;
  const size_t way = this->way();
  const int64_t along = static_cast<int64_t>(way) + 2, stride = o.stride[way];
  const Tensor& of = o.transposed ? h : z;
  Tensor by = o.transposed ? z : h;
  for (size_t d = 0; d < o.stride.size(); ++d)
    if (d != way && o.stride[d] > 1) by = by.slice(static_cast<int64_t>(d) + 2, {}, {}, o.stride[d]);
  std::vector<Tensor> pixels;
  for (int64_t k = 0; k < weight.size(along); ++k) {
    const int64_t shift = k * o.dilation[way] - o.padding[way], last = by.size(along) - 1 - shift;
    const int64_t first = shift < 0 ? (-shift + stride - 1) / stride : 0;
    const int64_t n = last < 0 ? 0 : std::min(of.size(along), last / stride + 1) - first;
    if (n <= 0) {
      pixels.push_back(at::zeros({weight.size(0), weight.size(1)}, weight.options()));
      continue;
    }
    const int64_t begin = first * stride + shift;
    const Tensor left = of.narrow(along, first, n), right = by.slice(along, begin, begin + (n - 1) * stride + 1, stride);
    std::vector<Tensor> groups;
    for (int64_t group = 0; group < o.groups; ++group)
      groups.push_back(sum_over_pixels(share_of(left, group, o.groups), share_of(right, group, o.groups)));
    pixels.push_back(groups.size() == 1 ? groups[0] : at::cat(groups));
  }
  return (pixels.size() == 1 ? pixels[0] : at::stack(pixels, -1)).view(weight.sizes());
}

// The same sums written as a convolution: of the input, whose samples are channels and whose channels are a batch, by the adjoint,
// dilated by the stride. It takes half of the time of oneDNN's weight gradient, and less, of maps of up to 3 x 3 pixels; without
// AVX-512 it takes less of others too, where the weight is large beside the values. For kernels of 15 pixels in a row oneDNN has
// none but unfolds the input, which takes up to ten times the weight's memory.
bool WeightGradient::by_convolution(const Tensor& z) const {
  const auto& weight = of_.weight;
  const bool large = of_.layout == Layout::contiguous && of_.inputs + of_.outputs <= weight.numel();
  if (!large || z.dim() != 4 || of_.options.transposed || of_.options.groups != 1) return false;
  const int64_t samples = z.size(0), kernel = weight.size(2) * weight.size(3);
  if (weight.size(3) >= kLongKernel) return true;
  if (!all(of_.cut_off(), 0)) return false;  // it would make the rows that were cut off too
  if (weight.size(2) > 1 && z.size(2) * z.size(3) <= kFewPixels && samples >= 8) return true;
  return !avx512() && (samples >= (kernel >= 16 ? 8 : 32) || static_cast<int64_t>(weight.nbytes()) >= kLargeWeight);
}

int64_t WeightGradient::blocks() const {
  const int64_t bytes = static_cast<int64_t>(of_.weight.nbytes()), block = of_.launched ? kWorthALaunch : kBlock;
  return std::clamp<int64_t>((bytes + block - 1) / block, 1, kMostBlocks);
}

bool WeightGradient::is_in_blocks(const Tensor& gradient) const {
  const bool pays = gradient.defined() || !of_.launched;
  return pays && of_.options.groups == 1 && !of_.options.transposed && blocks() > 1;
}

// In how many parts samples are summed up. oneDNN's gradient adds one pixel after another over all of them, PyTorch's double
// backward at most 16 samples (they are the channels of a convolution there), which for few pixels is no difference. The kernel
// for channels_last without stride and dilation, of enough channels, has a quarter of the error; that grows as the root of the
// pixels.
int64_t WeightGradient::parts(const Tensor& z, const Tensor& h) const {
  const auto& weight = of_.weight;
  if (of_.layout == Layout::as_it_comes || weight.scalar_type() != at::kFloat || summed_ == Summed::over_pixels) return 1;
  if (by_convolution(z)) return 1;
  const auto& o = of_.options;
  const bool many_channels = std::min(weight.size(1), weight.size(0) / o.groups) >= kFewChannels;
  const bool dense = of_.layout == Layout::channels_last && summed_ == Summed::as_it_comes && many_channels && all(o.stride, 1) &&
                     all(o.dilation, 1);
  const Tensor& of = o.transposed ? h : z;
  const int64_t better = dense ? 4 : 1, in_a_row = better * better * kInARow, pixels = of.numel() / of.size(1);
  return std::clamp<int64_t>((pixels + in_a_row - 1) / in_a_row, 1, std::max<int64_t>(1, of.size(0) / (better * kTogether)));
}

// Of a large weight a part at a time, so that what it is made in takes less memory than the weight.
void WeightGradient::add_part(Tensor& gradient, const Tensor& z, const Tensor& h) const {
  const auto& weight = of_.weight;
  if (summed_ == Summed::over_pixels) return add(gradient, over_pixels(z, h));
  if (summed_ == Summed::contiguous) return add(gradient, backward(contiguous(z), contiguous(h), contiguous(weight)));
  if (by_convolution(z)) return add_by_convolution(gradient, z, h);
  if (!is_in_blocks(gradient)) return add(gradient, backward(z, h, weight));
  const bool adds = gradient.defined();
  if (!adds) gradient = at::empty(weight.sizes(), weight.options(), weight.suggest_memory_format());
  for_each_block(weight.size(0), blocks(), kUnit, [&](int64_t first, int64_t n) {
    const Tensor part = backward(z.narrow(1, first, n), h, weight.narrow(0, first, n));
    Tensor place = gradient.narrow(0, first, n);
    adds ? place.add_(part) : place.copy_(part);
  });
}

// A convolution leaves the gradient turned, and with rows that belong to no weight, of what the stride cut off at the end.
void WeightGradient::add_by_convolution(Tensor& gradient, const Tensor& z, const Tensor& h) const {
  const auto& weight = of_.weight;
  const bool adds = gradient.defined() && gradient.is_contiguous();
  Tensor into = adds ? gradient : at::empty(weight.sizes(), weight.options(), at::MemoryFormat::Contiguous);
  const auto& o = of_.options;
  const Ints none{0, 0};
  const Tensor by = z.transpose(0, 1), of = h.transpose(0, 1);
  for_each_block(weight.size(1), blocks(), kUnit, [&](int64_t first, int64_t n) {
    const auto found = at::convolution(of.narrow(0, first, n), by, {}, o.dilation, o.padding, o.stride, false, none, 1);
    turn_kernel(into, found, first, adds);
  });
  if (!adds) add(gradient, std::move(into));
}

Tensor WeightGradient::backward(const Tensor& z, const Tensor& h, const Tensor& weight) const {
  return std::get<1>(of_.backward(z, h, weight, {false, true, false}));
}

}  // namespace gpfast

#include "nodes/resample.h"

#include <ATen/ops/_upsample_bicubic2d_aa.h>
#include <ATen/ops/_upsample_bicubic2d_aa_backward.h>
#include <ATen/ops/_upsample_bilinear2d_aa.h>
#include <ATen/ops/_upsample_bilinear2d_aa_backward.h>
#include <ATen/ops/_upsample_nearest_exact1d.h>
#include <ATen/ops/_upsample_nearest_exact1d_backward.h>
#include <ATen/ops/_upsample_nearest_exact2d.h>
#include <ATen/ops/_upsample_nearest_exact2d_backward.h>
#include <ATen/ops/_upsample_nearest_exact3d.h>
#include <ATen/ops/_upsample_nearest_exact3d_backward.h>
#include <ATen/ops/channel_shuffle.h>
#include <ATen/ops/col2im.h>
#include <ATen/ops/grid_sampler_2d.h>
#include <ATen/ops/grid_sampler_2d_backward.h>
#include <ATen/ops/grid_sampler_3d.h>
#include <ATen/ops/grid_sampler_3d_backward.h>
#include <ATen/ops/im2col.h>
#include <ATen/ops/pixel_shuffle.h>
#include <ATen/ops/pixel_unshuffle.h>
#include <ATen/ops/reflection_pad1d.h>
#include <ATen/ops/reflection_pad1d_backward.h>
#include <ATen/ops/reflection_pad2d.h>
#include <ATen/ops/reflection_pad2d_backward.h>
#include <ATen/ops/reflection_pad3d.h>
#include <ATen/ops/reflection_pad3d_backward.h>
#include <ATen/ops/replication_pad1d.h>
#include <ATen/ops/replication_pad1d_backward.h>
#include <ATen/ops/replication_pad2d.h>
#include <ATen/ops/replication_pad2d_backward.h>
#include <ATen/ops/replication_pad3d.h>
#include <ATen/ops/replication_pad3d_backward.h>
#include <ATen/ops/upsample_bicubic2d.h>
#include <ATen/ops/upsample_bicubic2d_backward.h>
#include <ATen/ops/upsample_bilinear2d.h>
#include <ATen/ops/upsample_bilinear2d_backward.h>
#include <ATen/ops/upsample_linear1d.h>
#include <ATen/ops/upsample_linear1d_backward.h>
#include <ATen/ops/upsample_nearest1d.h>
#include <ATen/ops/upsample_nearest1d_backward.h>
#include <ATen/ops/upsample_nearest2d.h>
#include <ATen/ops/upsample_nearest2d_backward.h>
#include <ATen/ops/upsample_nearest3d.h>
#include <ATen/ops/upsample_nearest3d_backward.h>
#include <ATen/ops/upsample_trilinear3d.h>
#include <ATen/ops/upsample_trilinear3d_backward.h>

#include "ops/pool.h"

namespace gpfast {
namespace {

using at::Tensor;

constexpr const char* kUpsample = "upsample";

// How often each element is repeated, where all of them are, equally often: by a power of two, at which the float arithmetic of
// source indices is exact. Empty otherwise.
Ints repeats(const Sizes& from, const Resize& resize) {
  Ints tile;
  for (size_t i = 0; i < resize.to.size(); ++i) {
    const int64_t size = from[from.size() - resize.to.size() + i];
    const int64_t times = size > 0 ? resize.to[i] / size : 0;
    const bool given = resize.scales[i].has_value() && *resize.scales[i] > 0;
    if (times < 1 || (times & (times - 1)) != 0 || times * size != resize.to[i]) return {};
    if (given && *resize.scales[i] != static_cast<double>(times)) return {};
    tile.push_back(times);
  }
  return tile;
}

bool channels_last(const Tensor& x) {
  return !x.is_contiguous() && x.suggest_memory_format() != at::MemoryFormat::Contiguous;
}

std::unique_ptr<Rule> upsample_tiles(const Place& place, const Ints& tile) {
  if (tile.size() == 1) {
    const Ints row{1, tile[0]};
    return map(
        place, kUpsample, [=](const Tensor& t) { return repeat_tiles(t.unsqueeze(-2), row, 1, false).squeeze(-2); },
        [=](const Tensor& a) { return sum_tiles(a.unsqueeze(-2), row, 1, false).squeeze(-2); });
  }
  return map(
      place, kUpsample, [=](const Tensor& t) { return repeat_tiles(t, tile, 1, channels_last(t)); },
      [=](const Tensor& a) { return sum_tiles(a, tile, 1, channels_last(a)); });
}

// An operator and its transpose, whatever the overload.
#define GPFAST_PAIR(name) \
  [](const auto&... x) { return at::name(x...); }, [](const auto&... x) { return at::name##_backward(x...); }

template <typename Forward, typename Backward, typename... More>
std::unique_ptr<Rule> resized(const Place& place, const Ints& to, Forward forward, Backward backward, More... more) {
  using at::IntArrayRef;
  return map(
      place, kUpsample, [=](const Tensor& t) { return forward(t, IntArrayRef(to), more...); },
      [=, from = place.sizes(0)](const Tensor& a) { return backward(a, IntArrayRef(to), IntArrayRef(from), more...); });
}

template <typename Forward, typename Backward>
std::unique_ptr<Rule> padded(const Place& place, const Tensor& input, const Ints& padding, Forward forward, Backward backward) {
  return map(
      place, "pad", [=](const Tensor& t) { return forward(t, padding); },
      [=, shape = Shape(input, padding.size() / 2)](const Tensor& a) { return backward(a, shape.stand_in(a), padding); });
}

std::unique_ptr<Rule> nearest(const Place& place, const Resize& r) {
  const auto& s = r.scales;
  if (s.size() == 1) return resized(place, r.to, GPFAST_PAIR(upsample_nearest1d), s[0]);
  if (s.size() == 2) return resized(place, r.to, GPFAST_PAIR(upsample_nearest2d), s[0], s[1]);
  return resized(place, r.to, GPFAST_PAIR(upsample_nearest3d), s[0], s[1], s[2]);
}

std::unique_ptr<Rule> nearest_exact(const Place& place, const Resize& r) {
  const auto& s = r.scales;
  if (s.size() == 1) return resized(place, r.to, GPFAST_PAIR(_upsample_nearest_exact1d), s[0]);
  if (s.size() == 2) return resized(place, r.to, GPFAST_PAIR(_upsample_nearest_exact2d), s[0], s[1]);
  return resized(place, r.to, GPFAST_PAIR(_upsample_nearest_exact3d), s[0], s[1], s[2]);
}

std::unique_ptr<Rule> linear(const Place& place, const Resize& r) {
  const auto& s = r.scales;
  if (s.size() == 1) return resized(place, r.to, GPFAST_PAIR(upsample_linear1d), r.align_corners, s[0]);
  if (s.size() == 2) return resized(place, r.to, GPFAST_PAIR(upsample_bilinear2d), r.align_corners, s[0], s[1]);
  return resized(place, r.to, GPFAST_PAIR(upsample_trilinear3d), r.align_corners, s[0], s[1], s[2]);
}

}  // namespace

std::unique_ptr<Rule> upsample(const Place& place, Filter filter, const Resize& r) {
  const auto& s = r.scales;
  if (filter == Filter::kNearest || filter == Filter::kNearestExact) {
    const Ints tile = repeats(place.sizes(0), r);
    if (!tile.empty()) return upsample_tiles(place, tile);
    return filter == Filter::kNearest ? nearest(place, r) : nearest_exact(place, r);
  }
  if (filter == Filter::kLinear) return linear(place, r);
  if (s.size() != 2) return nullptr;
  if (filter == Filter::kCubic) return resized(place, r.to, GPFAST_PAIR(upsample_bicubic2d), r.align_corners, s[0], s[1]);
  if (filter == Filter::kLinearAntialias)
    return resized(place, r.to, GPFAST_PAIR(_upsample_bilinear2d_aa), r.align_corners, s[0], s[1]);
  return resized(place, r.to, GPFAST_PAIR(_upsample_bicubic2d_aa), r.align_corners, s[0], s[1]);
}

std::unique_ptr<Rule> pixel_shuffle(const Place& place, int64_t factor) {
  return map(
      place, "pixel_shuffle", [=](const Tensor& t) { return at::pixel_shuffle(t, factor); },
      [=](const Tensor& a) { return at::pixel_unshuffle(a, factor); });
}

std::unique_ptr<Rule> pixel_unshuffle(const Place& place, int64_t factor) {
  return map(
      place, "pixel_unshuffle", [=](const Tensor& t) { return at::pixel_unshuffle(t, factor); },
      [=](const Tensor& a) { return at::pixel_shuffle(a, factor); });
}

std::unique_ptr<Rule> channel_shuffle(const Place& place, int64_t groups) {
  const int64_t back = place.sizes(0)[1] / groups;
  return map(
      place, "channel_shuffle", [=](const Tensor& t) { return at::channel_shuffle(t, groups); },
      [=](const Tensor& a) { return at::channel_shuffle(a, back); });
}

std::unique_ptr<Rule> reflection_pad(const Place& place, const Tensor& input, const Ints& padding) {
  if (padding.size() == 2) return padded(place, input, padding, GPFAST_PAIR(reflection_pad1d));
  if (padding.size() == 4) return padded(place, input, padding, GPFAST_PAIR(reflection_pad2d));
  return padded(place, input, padding, GPFAST_PAIR(reflection_pad3d));
}

std::unique_ptr<Rule> replication_pad(const Place& place, const Tensor& input, const Ints& padding) {
  if (padding.size() == 2) return padded(place, input, padding, GPFAST_PAIR(replication_pad1d));
  if (padding.size() == 4) return padded(place, input, padding, GPFAST_PAIR(replication_pad2d));
  return padded(place, input, padding, GPFAST_PAIR(replication_pad3d));
}

std::unique_ptr<Rule> grid_sample(const Place& place, const Tensor& input, const Tensor& grid, const GridSample& sample) {
  if (!place.only(0b01) || place.wanted(1)) return nullptr;
  const size_t spatial = static_cast<size_t>(input.dim()) - 2;
  return map(
      place, "grid_sample",
      [=](const Tensor& t) {
        return spatial == 2 ? at::grid_sampler_2d(t, grid, sample.interpolation, sample.padding, sample.align_corners)
                            : at::grid_sampler_3d(t, grid, sample.interpolation, sample.padding, sample.align_corners);
      },
      [=, shape = Shape(input, spatial)](const Tensor& a) {
        const auto backward = [&](auto op) {
          return std::get<0>(op(a, shape.contiguous_stand_in(a), grid, sample.interpolation, sample.padding, sample.align_corners,
                                std::array<bool, 2>{true, false}));
        };
        return spatial == 2 ? backward(at::grid_sampler_2d_backward) : backward(at::grid_sampler_3d_backward);
      },
      bytes_of({grid}));
}

std::unique_ptr<Rule> unfold_windows(const Place& place, const Ints& plane, const Windows& w) {
  return map(
      place, "unfold", [=](const Tensor& t) { return at::im2col(t, w.kernel, w.dilation, w.padding, w.stride); },
      [=](const Tensor& a) { return at::col2im(a, plane, w.kernel, w.dilation, w.padding, w.stride); });
}

std::unique_ptr<Rule> fold_windows(const Place& place, const Ints& plane, const Windows& w) {
  return map(
      place, "fold", [=](const Tensor& t) { return at::col2im(t, plane, w.kernel, w.dilation, w.padding, w.stride); },
      [=](const Tensor& a) { return at::im2col(a, w.kernel, w.dilation, w.padding, w.stride); });
}

}  // namespace gpfast

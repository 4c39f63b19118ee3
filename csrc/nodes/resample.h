#pragma once
#include <optional>

#include "nodes/map.h"

namespace gpfast {

enum class Filter { kNearest, kNearestExact, kLinear, kCubic, kLinearAntialias, kCubicAntialias };

// One, two or three dimensions; a scale that was given is what the filter is placed by, else it is the sizes' quotient.
struct Resize {
  Ints to;
  std::vector<std::optional<double>> scales;
  bool align_corners = false;
};
// Null where there is no such filter in so many dimensions.
std::unique_ptr<Rule> upsample(const Place& place, Filter filter, const Resize& resize);

std::unique_ptr<Rule> pixel_shuffle(const Place& place, int64_t factor);
std::unique_ptr<Rule> pixel_unshuffle(const Place& place, int64_t factor);
std::unique_ptr<Rule> channel_shuffle(const Place& place, int64_t groups);

// `padding` is two numbers a dimension, the last dimension first; `input` is read for its sizes and layout and not kept.
std::unique_ptr<Rule> reflection_pad(const Place& place, const at::Tensor& input, const Ints& padding);
std::unique_ptr<Rule> replication_pad(const Place& place, const at::Tensor& input, const Ints& padding);

struct GridSample {
  int64_t interpolation, padding;
  bool align_corners;
};
// Null unless the points live in the image alone and the grid's gradient is not wanted.
std::unique_ptr<Rule> grid_sample(const Place& place, const at::Tensor& input, const at::Tensor& grid, const GridSample& sample);

struct Windows {
  Ints kernel, dilation, padding, stride;
};
std::unique_ptr<Rule> unfold_windows(const Place& place, const Ints& plane, const Windows& windows);
std::unique_ptr<Rule> fold_windows(const Place& place, const Ints& plane, const Windows& windows);

}  // namespace gpfast

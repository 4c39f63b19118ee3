#pragma once
#include <optional>

#include "nodes/map.h"

namespace gpfast {

// One number a dimension of the plane, or one for all; an empty stride is the kernel.
struct AveragePool {
  Ints kernel, stride, padding;
  bool ceil_mode, count_include_pad;
  std::optional<int64_t> divisor;
};
struct MaxPool {
  Ints kernel, stride, padding, dilation;
  bool ceil_mode;
};

// `input` is read for its sizes and layout and not kept; `spatial` dimensions are pooled, 2 or 3.
std::unique_ptr<Rule> average_pool(const Place& place, const at::Tensor& input, size_t spatial, AveragePool pool);
std::unique_ptr<Rule> adaptive_average_pool(const Place& place, const at::Tensor& input, const Ints& output);
// Where the largest elements lay: indices into each flattened plane.
std::unique_ptr<Rule> max_pool(const Place& place, const at::Tensor& input, at::Tensor indices, size_t spatial, MaxPool pool);
std::unique_ptr<Rule> adaptive_max_pool(const Place& place, const at::Tensor& input, at::Tensor indices, size_t spatial);
std::unique_ptr<Rule> fractional_max_pool(const Place& place, const at::Tensor& input, at::Tensor indices, Ints kernel,
                                          Ints output);

}  // namespace gpfast

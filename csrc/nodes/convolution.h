#pragma once
// Convolutions of one to three dimensions, transposed or not.
#include <vector>

#include "rule.h"

namespace gpfast {

struct ConvolutionOptions {
  std::vector<int64_t> stride, padding, dilation, output_padding;  // one number for each spatial dimension, or one for all
  bool transposed = false;
  int64_t groups = 1;
};

// Inputs: points, weight, bias. None where more than the points is live.
std::unique_ptr<Rule> convolution(const Place& place, at::Tensor input, at::Tensor weight, ConvolutionOptions options);

}  // namespace gpfast

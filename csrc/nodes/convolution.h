#pragma once
// Convolutions of one to three dimensions, transposed or not.
#include "ops/convolution.h"
#include "rule.h"

namespace gpfast {

// Inputs: points, weight, bias. Options have one number for each spatial dimension, or one for all. None where more than the points
// is live.
std::unique_ptr<Rule> convolution(const Place& place, at::Tensor input, at::Tensor weight, ConvolutionOptions options);

}  // namespace gpfast

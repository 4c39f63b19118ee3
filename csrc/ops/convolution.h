#pragma once
// The sweeps of a convolution y = w * h + c. Each is one operator, which asks oneDNN for each product as that is fastest, in
// several calls where it must; where calls are launches it is as few operators of ATen.
#include <ATen/core/Tensor.h>

#include <array>
#include <tuple>
#include <vector>

namespace gpfast {

struct ConvolutionOptions {
  std::vector<int64_t> stride, padding, dilation, output_padding;  // one number for each spatial dimension
  bool transposed = false;
  int64_t groups = 1;
};

// h -> w * h, for h of these sizes.
struct ConvolutionMap {
  at::Tensor weight;
  std::vector<int64_t> sizes;
  ConvolutionOptions options;
  bool launched;  // as launched() said when the graph was read: the sweeps that finish may run under another setting
};

// Whether convolution_adjoint is given the input: PyTorch's kernels for groups ask its sizes and strides, and some read no more.
bool adjoint_reads_input(const ConvolutionMap& map);

// What a forward saved as convolution_tangent and convolution_second take it without a copy; such copies are shared.
at::Tensor convolution_saved(const ConvolutionMap& map, const at::Tensor& input);

// Below, values that are moved in are let go of as soon as they are rearranged or used up.

// -> (J^T a, a rearranged, which the tangents then take without a copy).
std::tuple<at::Tensor, at::Tensor> convolution_adjoint(const ConvolutionMap& map, at::Tensor a, const at::Tensor& input);

// -> (J t, the weight's gradient of <a, J (t + ratio input)>, the sum of ratio a for each channel), each where it is wanted. ratio,
// with the input: a number for each sample, or none. The weight's gradient is added to `gradient` where that is there, which may be
// written to. bent: second adjoints will come, so that more is held meanwhile; else the gradient lies in memory as the weight does.
std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_tangent(const ConvolutionMap& map, at::Tensor t, at::Tensor a,
                                                                   at::Tensor gradient, const at::Tensor& ratio, at::Tensor input,
                                                                   bool bent, std::array<bool, 3> wanted);

// -> (J^T b, the weight's gradient of <b, J input> likewise, which then lies as the weight does, the sum of b for each channel),
// each where it is wanted.
std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_second(const ConvolutionMap& map, at::Tensor b, at::Tensor input,
                                                                  at::Tensor gradient, std::array<bool, 3> wanted);

}  // namespace gpfast

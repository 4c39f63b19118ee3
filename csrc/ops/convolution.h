#pragma once
// The sweeps of a convolution y = w * h + c. Each is one operator, which asks oneDNN for each product as that is fastest, in several
// calls where it must; where calls are launches it is as few operators of ATen.
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

// Whether convolution_adjoint is given the input: ATen's own kernels for groups read its sizes.
bool adjoint_reads_input(const ConvolutionMap& map);

// Values as the sweeps want them: a tensor that is arranged costs them no copy. Of what the forward saved copies are shared.
at::Tensor convolution_arranged(const ConvolutionMap& map, at::Tensor values);
at::Tensor convolution_saved(const ConvolutionMap& map, const at::Tensor& input);

// -> (J^T a, a arranged). Here and below values that are moved in go as soon as they are rearranged or used up.
std::tuple<at::Tensor, at::Tensor> convolution_adjoint(const ConvolutionMap& map, at::Tensor a, const at::Tensor& input);

// -> (J t where that is wanted, the weight's gradient of <a, J t> where a is there, added to `gradient` where that is there, which
// may be written to). bent: second adjoints will come, so that more is held meanwhile; else the gradient lies as the weight does.
std::tuple<at::Tensor, at::Tensor> convolution_tangent(const ConvolutionMap& map, at::Tensor t, at::Tensor a, at::Tensor gradient,
                                                       bool bent, bool wanted);

// -> (J^T b, the weight's gradient of <b, J h> likewise, which then lies as the weight does, the sum of b for each channel), each
// where it is wanted.
std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_second(const ConvolutionMap& map, at::Tensor b, at::Tensor input,
                                                                  at::Tensor gradient, std::array<bool, 3> wanted);

}  // namespace gpfast

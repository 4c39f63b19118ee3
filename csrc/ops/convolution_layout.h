#pragma once
// How a device is best asked for the products of a convolution: the layout of the values, one dimension as two, and which of ATen's
// functions makes a data gradient.
#include <algorithm>

#include "ops/convolution.h"

namespace gpfast {

enum class Layout { as_it_comes, contiguous, channels_last };

// One dimension has become two, of height 1, in weight, sizes and options, and in what is arranged; in what is plain it is one.
class ArrangedConvolution : public ConvolutionMap {
 public:
  explicit ArrangedConvolution(ConvolutionMap map);

  at::Tensor arranged(at::Tensor z) const;
  at::Tensor arranged_saved(const at::Tensor& h) const;
  bool is_arranged(const at::Tensor& z) const;
  at::Tensor plain(at::Tensor z) const;
  at::Tensor with_height(at::Tensor z) const;

  at::Tensor forward(const at::Tensor& h) const;
  // input: what may stand for the forward's, where PyTorch asks its sizes and strides; undefined where nothing of its size is there.
  at::Tensor data_gradient(const at::Tensor& z, const at::Tensor& input) const;
  // Whether it asks for one.
  bool reads_input() const;
  // The convolution the other way is up to forty times as slow in channels_last.
  bool slow_the_other_way() const;
  // Both gradients of the convolution the other way: w * h, and the weight's gradient.
  std::tuple<at::Tensor, at::Tensor> forward_and_gradient(const at::Tensor& h, const at::Tensor& z) const;
  std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& z, const at::Tensor& h, const at::Tensor& weight,
                                                          std::array<bool, 3> mask) const;

  // What the stride cut off at the end of each dimension.
  std::vector<int64_t> cut_off() const;

  int64_t output_channels() const { return options.transposed ? weight.size(1) * options.groups : weight.size(0); }

  int64_t inputs, outputs;  // elements of the values
  Layout layout;
  bool flat;

 private:
  bool unfolds(const at::Tensor& z) const;
  bool reorders_groups() const;
  at::Tensor stand_in(const at::Tensor& input, const at::Tensor& z, at::MemoryFormat format) const;
  at::Tensor as_onednn_leaves_it(at::Tensor made, const at::Tensor& z) const;
};

// For ATen, which asks the strides of one channel or one pixel too.
at::Tensor contiguous(const at::Tensor& z);
constexpr int64_t kFewChannels = 16;

// Of an option in every dimension.
inline bool all(const std::vector<int64_t>& values, int64_t one) {
  return std::all_of(values.begin(), values.end(), [one](int64_t value) { return value == one; });
}

}  // namespace gpfast

#pragma once
// The gradient of a convolution's weight, from what arrives at its result and its input: summed up so that it is as exact as
// PyTorch's double backward, in little memory, and in the way that is fastest for its shape.
#include "ops/convolution_layout.h"

namespace gpfast {

class WeightGradient {
 public:
  // bent: second adjoints come, or will come.
  WeightGradient(const ArrangedConvolution& convolution, bool bent);

  // gradient += value; in place where it is defined.
  static void add(at::Tensor& gradient, at::Tensor value);
  // The same with that of (z, h), both arranged.
  void add(at::Tensor& gradient, const at::Tensor& z, const at::Tensor& h) const;
  // Whether the latter is one call of ATen's backward and a sum, which may then make the other gradients as well.
  bool is_one_call(const at::Tensor& gradient, const at::Tensor& z, const at::Tensor& h) const;
  // Whether a sweep that makes the convolution of h too takes less memory where it makes that last.
  bool is_best_first(const at::Tensor& z) const;

 private:
  // oneDNN's kernels for values that are channels_last and weights of few channels add one pixel after another, where those for
  // contiguous ones add parts.
  enum class Summed { as_it_comes, contiguous, over_pixels };

  Summed how_summed() const;
  bool one_way_and_dilated() const;
  size_t way() const;
  bool by_convolution(const at::Tensor& z) const;
  int64_t blocks() const;
  bool is_in_blocks(const at::Tensor& gradient) const;
  int64_t parts(const at::Tensor& z, const at::Tensor& h) const;
  void add_part(at::Tensor& gradient, const at::Tensor& z, const at::Tensor& h) const;
  void add_by_convolution(at::Tensor& gradient, const at::Tensor& z, const at::Tensor& h) const;
  at::Tensor over_pixels(const at::Tensor& z, const at::Tensor& h) const;
  at::Tensor backward(const at::Tensor& z, const at::Tensor& h, const at::Tensor& weight) const;

  const ArrangedConvolution& of_;
  bool bent_;
  Summed summed_;
};

}  // namespace gpfast

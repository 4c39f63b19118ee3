#pragma once
// Which elements of a tensor a view of it has, in whatever order the tensor lies in memory.
#include <ATen/TensorGeometry.h>
#include <ATen/core/Tensor.h>

#include <optional>

#include "rule.h"

namespace gpfast {

class Part {
 public:
  // None where an element has two places in the view or in the base, where the view has no element, and where it leaves the base.
  static std::optional<Part> of(const at::TensorGeometry& base, const at::TensorGeometry& view);

  bool all() const { return all_; }
  // The view can be had of a tensor of the base's sizes in any layout; otherwise in the base's alone.
  bool in_any_layout() const { return in_any_layout_; }
  // The tensor, in a layout that it can be had of: itself, or a copy.
  at::Tensor laid(at::Tensor whole) const;
  at::Tensor in(const at::Tensor& whole) const;
  // With no more than the part, which may have to be broadcast: zeros elsewhere. A view where there is nothing else.
  at::Tensor whole_of(const at::Tensor& part) const;

 private:
  // Dimension of the base that one of the view runs along, and its step; of length 1, along none.
  struct Along {
    int64_t dim = -1, step = 1;
  };
  bool find_dims(int64_t offset);
  bool lies_as_base(const at::Tensor& whole) const;

  Sizes base_sizes_, base_strides_, view_sizes_, view_strides_;
  int64_t offset_ = 0;  // of the view in the base
  Sizes starts_;        // the view's first element, one index a dimension of the base
  c10::SmallVector<Along, 6> of_dims_;
  bool in_any_layout_ = false, all_ = false;
};

}  // namespace gpfast

#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/UndefinedTensorImpl.h>
#include <c10/util/DimVector.h>
#include <c10/util/SmallVector.h>

#include <vector>

namespace gpfast {

// Dimensions as they lie in memory, outermost first.
using Order = c10::SmallVector<int64_t, 6>;

Order contiguous_order(int64_t dims);
Order channels_last_order(int64_t dims);
// Of the last `sorted` dimensions by their strides, behind the others.
Order order_by_strides(const at::Tensor& tensor, int64_t sorted);

bool is_dense_in(const at::Tensor& tensor, at::IntArrayRef order);
// The tensor in that order: itself, or a copy. Between NCHW and channels_last the copy is a blocked transposition, several times
// as fast as ATen's.
at::Tensor relaid(const at::Tensor& tensor, at::IntArrayRef order);
// In the dense layout of `like`, which has the same sizes: no copy where it is already.
at::Tensor in_layout_of(const at::Tensor& tensor, const at::Tensor& like);
// The same as relaid, of what a forward saved: nodes that saved one tensor share the copy, while a SharedCopies lives in their
// thread. Nobody writes to it.
at::Tensor relaid_saved(const at::Tensor& tensor, at::IntArrayRef order);
// A view where there is one.
at::Tensor reshaped(const at::Tensor& tensor, at::IntArrayRef sizes);

class SharedCopies {
 public:
  SharedCopies();
  ~SharedCopies();
  SharedCopies(const SharedCopies&) = delete;
  SharedCopies& operator=(const SharedCopies&) = delete;

 private:
  friend at::Tensor relaid_saved(const at::Tensor& tensor, at::IntArrayRef order);
  // Neither is held: an address is not used again while it is watched.
  struct Copy {
    c10::weak_intrusive_ptr<c10::StorageImpl> of;
    c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> copy;
    int64_t offset;
    c10::DimVector sizes, strides;
  };
  std::vector<Copy> copies_;
  SharedCopies* outer_;
};

}  // namespace gpfast

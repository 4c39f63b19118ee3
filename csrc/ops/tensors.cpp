#include "ops/tensors.h"

#include <ATen/ops/addcmul.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/real.h>
#include <c10/util/SmallVector.h>

namespace gpfast {
namespace {

// A Python object that nobody in Python refers to any more counts as well: it lives on because its tensor does.
template <typename T>
bool held_once(size_t count, T* held) {
  return count == 1 || (count == 2 && held->pyobj_slot()->has_unique_reference());
}

}  // namespace

bool ours(const at::Tensor& tensor) {
  if (!tensor.defined() || !held_once(tensor.use_count(), tensor.unsafeGetTensorImpl()) || !tensor.has_storage()) return false;
  const auto& storage = tensor.storage();
  return held_once(storage.use_count(), storage.unsafeGetStorageImpl()) && tensor.is_non_overlapping_and_dense() &&
         !tensor._is_zerotensor();
}

at::Tensor cast(at::Tensor tensor, at::ScalarType dtype) {
  if (tensor.scalar_type() == dtype) return tensor;
  if (!tensor.is_complex() || at::isComplexType(dtype)) return tensor.to(dtype);
  return at::real(tensor).to(dtype, /*non_blocking=*/false, /*copy=*/true);
}

at::Tensor sum_by_channel(const at::Tensor& z) {
  c10::SmallVector<int64_t, 5> dimensions{0};
  for (int64_t d = 2; d < z.dim(); ++d) dimensions.push_back(d);
  return z.sum(dimensions);
}

at::Tensor over_rows(const at::Tensor& numbers, int64_t rows) {
  const int64_t samples = numbers.numel();
  return (rows == samples ? numbers : numbers.reshape({samples, 1}).expand({samples, rows / samples})).reshape({rows});
}

namespace {

// To be broadcast against z.
at::Tensor along_samples(const at::Tensor& numbers, const at::Tensor& z) {
  c10::SmallVector<int64_t, 6> sizes{z.size(0)};
  while (static_cast<int64_t>(sizes.size()) < z.dim()) sizes.push_back(1);
  return over_rows(numbers, z.size(0)).view(sizes);
}

}  // namespace

at::Tensor with_ratio(at::Tensor t, const at::Tensor& ratio, const at::Tensor& h) {
  const auto by = along_samples(ratio, h);
  return ours(t) && t.scalar_type() == h.scalar_type() ? t.addcmul_(h, by) : cast(at::addcmul(t, h, by), t.scalar_type());
}

at::Tensor by_ratio(const at::Tensor& ratio, const at::Tensor& z) {
  return cast(at::mul(z, along_samples(ratio, z)), z.scalar_type());
}

}  // namespace gpfast

#include "nodes/part.h"

#include <ATen/ops/empty_strided.h>

#include <algorithm>
#include <vector>

namespace gpfast {
namespace {

// Dimensions longer than 1, from the largest stride to the smallest.
Sizes by_stride(const Sizes& sizes, const Sizes& strides) {
  Sizes dims;
  for (size_t d = 0; d < sizes.size(); ++d)
    if (sizes[d] != 1) dims.push_back(static_cast<int64_t>(d));
  std::stable_sort(dims.begin(), dims.end(), [&](int64_t i, int64_t j) { return strides[i] > strides[j]; });
  return dims;
}

// From the first element to the last, in memory.
int64_t extent(const Sizes& sizes, const Sizes& strides) {
  int64_t last = 0;
  for (size_t d = 0; d < sizes.size(); ++d) last += (sizes[d] - 1) * strides[d];
  return last + 1;
}

// Each stride steps over all that lies within the smaller ones: no element has two places.
bool is_nested(const Sizes& sizes, const Sizes& strides) {
  const auto dims = by_stride(sizes, strides);
  int64_t within = 0;
  for (auto d = dims.rbegin(); d != dims.rend(); ++d) {
    if (strides[*d] <= within) return false;
    within += (sizes[*d] - 1) * strides[*d];
  }
  return true;
}

Sizes copied(at::IntArrayRef values) { return Sizes(values.begin(), values.end()); }

}  // namespace

std::optional<Part> Part::of(const at::TensorGeometry& base, const at::TensorGeometry& view) {
  if (!view.numel()) return std::nullopt;
  Part part;
  part.base_sizes_ = copied(base.sizes());
  part.base_strides_ = copied(base.strides());
  part.view_sizes_ = copied(view.sizes());
  part.view_strides_ = copied(view.strides());
  part.offset_ = view.storage_offset() - base.storage_offset();
  if (!is_nested(part.base_sizes_, part.base_strides_) || !is_nested(part.view_sizes_, part.view_strides_)) return std::nullopt;
  part.all_ = base.numel() == view.numel();
  part.in_any_layout_ = part.find_dims(part.offset_);
  if (part.in_any_layout_) return part;
  const int64_t length = extent(part.base_sizes_, part.base_strides_);
  const bool inside = part.offset_ >= 0 && part.offset_ + extent(part.view_sizes_, part.view_strides_) <= length;
  return inside && length == base.numel() ? std::optional(part) : std::nullopt;
}

// An element of the base has one address, so indices within its sizes that add up to the view's addresses are the view's.
bool Part::find_dims(int64_t offset) {
  if (offset < 0) return false;
  const auto dims = by_stride(base_sizes_, base_strides_);
  starts_ = Sizes(base_sizes_.size());
  for (const auto d : dims) {
    starts_[d] = std::min(offset / base_strides_[d], base_sizes_[d] - 1);
    offset -= starts_[d] * base_strides_[d];
  }
  if (offset != 0) return false;
  std::vector<bool> used(base_sizes_.size());
  for (size_t v = 0; v < view_sizes_.size(); ++v) {
    Along along;
    if (view_sizes_[v] != 1) {
      const auto found = std::find_if(dims.begin(), dims.end(), [&](int64_t d) { return base_strides_[d] <= view_strides_[v]; });
      if (found == dims.end() || used[*found] || view_strides_[v] % base_strides_[*found]) return false;
      along = {*found, view_strides_[v] / base_strides_[*found]};
      if (starts_[along.dim] + (view_sizes_[v] - 1) * along.step >= base_sizes_[along.dim]) return false;
      used[along.dim] = true;
    }
    of_dims_.push_back(along);
  }
  return true;
}

bool Part::lies_as_base(const at::Tensor& whole) const {
  for (size_t d = 0; d < base_sizes_.size(); ++d)
    if (base_sizes_[d] != 1 && whole.stride(static_cast<int64_t>(d)) != base_strides_[d]) return false;
  return true;
}

at::Tensor Part::laid(at::Tensor whole) const {
  if (in_any_layout_ || lies_as_base(whole)) return whole;
  return at::empty_strided(base_sizes_, base_strides_, whole.options()).copy_(whole);
}

at::Tensor Part::in(const at::Tensor& whole) const {
  if (!in_any_layout_) return viewed(whole, view_sizes_, view_strides_, whole.storage_offset() + offset_);
  int64_t offset = whole.storage_offset();
  for (size_t d = 0; d < starts_.size(); ++d) offset += starts_[d] * whole.stride(static_cast<int64_t>(d));
  Sizes strides;
  for (const auto& along : of_dims_) strides.push_back(along.dim < 0 ? 1 : along.step * whole.stride(along.dim));
  return viewed(whole, view_sizes_, strides, offset);
}

at::Tensor Part::whole_of(const at::Tensor& part) const {
  Sizes strides = base_strides_;
  if (all_ && in_any_layout_ && part.sizes() == at::IntArrayRef(view_sizes_)) {
    for (size_t v = 0; v < of_dims_.size(); ++v)
      if (of_dims_[v].dim >= 0) strides[of_dims_[v].dim] = part.stride(static_cast<int64_t>(v));
    return viewed(part, base_sizes_, strides, part.storage_offset());
  }
  if (extent(base_sizes_, base_strides_) != c10::multiply_integers(base_sizes_)) {  // gaps
    int64_t next = 1;
    for (size_t d = strides.size(); d-- > 0; next *= base_sizes_[d]) strides[d] = next;
  }
  auto whole = at::empty_strided(base_sizes_, strides, part.options());
  if (!all_) whole.zero_();
  in(whole).copy_(part);
  return whole;
}

}  // namespace gpfast

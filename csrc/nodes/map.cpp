#include "nodes/map.h"

#include <ATen/ops/empty.h>

namespace gpfast {

Values Map::adjoint(Values a) {
  Values out(place.inputs.size());
  out[0] = transposed_(a[0]);
  return out;
}

Values Map::tangent(Values t) {
  Values out(place.outputs);
  if (place.tangent) out[0] = forward_(t[0]);
  return out;
}

Values Map::second(Values b) {
  Values out(place.inputs.size());
  if (place.wanted(0) && b[0].defined()) out[0] = transposed_(b[0]);
  return out;
}

Shape::Shape(const at::Tensor& input, size_t spatial)
    : sizes_(input.sizes().begin(), input.sizes().end()), spatial_(spatial), forward_(at::MemoryFormat::Contiguous) {
  if (!input.is_contiguous()) forward_ = layout_of(input);
}

at::MemoryFormat Shape::layout_of(const at::Tensor& value) const {
  // Without a batch, sizes and strides that look like channels_last are something else.
  if (sizes_.size() != spatial_ + 2 || value.is_contiguous(forward_)) return forward_;
  return value.is_contiguous() ? at::MemoryFormat::Contiguous : value.suggest_memory_format();
}

at::Tensor Shape::empty(const at::Tensor& value) const { return at::empty(sizes_, value.options(), layout_of(value)); }

at::Tensor Shape::stand_in(const at::Tensor& value) const {
  return value.is_cpu() && channels_last(value) ? empty(value) : contiguous_stand_in(value);
}

at::Tensor Shape::contiguous_stand_in(const at::Tensor& value) const { return at::empty({}, value.options()).expand(sizes_); }

}  // namespace gpfast

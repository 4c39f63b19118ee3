#include "nodes/indices.h"

#include <ATen/ops/nonzero.h>
#include <ATen/ops/nonzero_static.h>
#include <torch/csrc/autograd/function.h>

namespace gpfast {

std::optional<IndexList> as_places(const Place& place, const std::vector<at::Tensor>& indices, std::optional<int64_t> length) {
  IndexList list;
  const auto add = [&, device = place.node->input_metadata(0).device()](at::Tensor one) {
    if (one.defined() && one.device() != device) one = one.to(device);
    list.push_back(std::move(one));
  };
  for (const auto& one : indices) {
    if (one.defined() && one.scalar_type() == at::kByte) return std::nullopt;
    if (!one.defined() || one.scalar_type() != at::kBool) {
      add(one);
      continue;
    }
    if (!one.dim()) return std::nullopt;
    const auto places = length ? at::nonzero_static(one, *length) : at::nonzero(one);
    for (auto& column : places.unbind(1)) add(std::move(column));
  }
  return list;
}

int64_t bytes_of(const IndexList& list) {
  int64_t bytes = 0;
  for (size_t i = 0; i < list.size(); ++i) bytes += bytes_of({list.get(i).value_or(at::Tensor())});
  return bytes;
}

}  // namespace gpfast

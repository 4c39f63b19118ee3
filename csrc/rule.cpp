#include "rule.h"

#include <ATen/ops/add.h>
#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>

#include <atomic>
#include <typeinfo>

namespace gpfast {
namespace {

const torch::autograd::InputMetadata& metadata(const Node& node, size_t i) {
  const auto& edge = node.next_edge(i);
  return edge.function->input_metadata(edge.input_nr);
}

}  // namespace

bool Place::any_wanted() const {
  for (const auto& input : inputs)
    if (input.wanted) return true;
  return false;
}

bool Place::parameters_wanted() const {
  for (const auto& input : inputs)
    if (input.wanted && !input.live) return true;
  return false;
}

bool Place::only(unsigned mask) const {
  for (size_t i = 0; i < inputs.size(); ++i)
    if (inputs[i].live != static_cast<bool>(mask >> i & 1u)) return false;
  return true;
}

namespace {

std::atomic<int64_t> worth_passes = 16 << 10;

bool is_worth_passes(const at::Tensor& tensor) {
  return static_cast<int64_t>(tensor.nbytes()) >= (launched(tensor) ? kWorthALaunch : worth_passes.load());
}

}  // namespace

int64_t set_worth_passes(int64_t bytes) { return worth_passes.exchange(bytes); }

Reader Rule::repeats(const at::Tensor& adjoint) const {
  return is_worth_passes(adjoint) && reader.repeats_adjoint() ? reader : Reader{};
}

at::Tensor Rule::handed_down(at::Tensor part, size_t i) const {
  const bool absorbed = part.defined() && makers[i] && is_worth_passes(part) && makers[i]->absorb(part);
  return absorbed ? at::Tensor() : std::move(part);
}

Sizes Place::sizes(size_t i) const { return sizes_of(metadata(*node, i)); }

at::ScalarType Place::dtype(size_t i) const { return c10::typeMetaToScalarType(metadata(*node, i).dtype()); }

Sizes sizes_of(const torch::autograd::InputMetadata& value) {
  Sizes sizes;
  for (const auto& size : value.shape_as_dim_vector()) sizes.push_back(size.guard_int(__FILE__, __LINE__));
  return sizes;
}

namespace {

bool is_plain(const at::Tensor& tensor) {
  const auto* impl = tensor.unsafeGetTensorImpl();
  return typeid(*impl) == typeid(c10::TensorImpl) && !tensor.key_set().has(c10::DispatchKey::Python);
}

}  // namespace

at::Tensor viewed(const at::Tensor& tensor, at::IntArrayRef sizes, at::IntArrayRef strides, int64_t offset) {
  if (!is_plain(tensor)) return tensor.as_strided(sizes, strides, offset);
  auto view = tensor.unsafeGetTensorImpl()->shallow_copy_and_detach(c10::VariableVersion(0), /*allow_tensor_metadata_change=*/true);
  view->set_sizes_and_strides(sizes, strides, offset);
  return at::Tensor(std::move(view));
}

at::Tensor transposed(const at::Tensor& matrix) {
  if (matrix.dim() < 2 || !is_plain(matrix)) return matrix.transpose(-2, -1);
  c10::DimVector sizes(matrix.sizes()), strides(matrix.strides());
  std::swap(sizes.end()[-2], sizes.end()[-1]);
  std::swap(strides.end()[-2], strides.end()[-1]);
  return viewed(matrix, sizes, strides, matrix.storage_offset());
}

void accumulate(at::Tensor& into, at::Tensor value) {
  if (!value.defined() || value._is_zerotensor()) return;
  if (!into.defined()) {
    into = std::move(value);
  } else if (ours(into)) {
    into.add_(value);
  } else if (ours(value)) {
    into = value.add_(into);
  } else {
    into = at::add(into, value);
  }
}

int64_t bytes_of(std::initializer_list<at::Tensor> tensors) {
  int64_t bytes = 0;
  for (const auto& tensor : tensors)
    if (tensor.defined() && tensor.has_storage()) bytes += static_cast<int64_t>(tensor.nbytes());
  return bytes;
}

at::Tensor reduced_to(at::Tensor tensor, at::IntArrayRef sizes, at::ScalarType dtype) {
  if (tensor.is_complex() && !at::isComplexType(dtype)) tensor = cast(std::move(tensor), at::toRealValueType(tensor.scalar_type()));
  if (tensor.sizes() != sizes) tensor = at::sum_to(std::move(tensor), sizes);
  return cast(std::move(tensor), dtype);
}

}  // namespace gpfast

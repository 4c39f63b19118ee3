#pragma once
// Rules for operations that write a source into a part of a tensor, which may be more than one in memory: slices, indices, masks.
#include <functional>
#include <optional>
#include <vector>

#include "nodes/part.h"
#include "rule.h"

namespace gpfast {

// How a tensor, input 0, is written to: with the source, input 1, or with what depends on nothing.
struct Overwrite {
  using Write = std::function<void(const at::Tensor& whole, const at::Tensor& source)>;

  const char* name;
  std::function<at::Tensor(const at::Tensor& whole)> read;  // the source's adjoint, of its sizes or of those it was broadcast to
  std::function<void(const at::Tensor& whole)> clear;       // what is lost; none where the source is added
  Write write;                                              // adds the source to what is there, or to what clear left
  bool replaces = false;                                    // write does without clear
  std::function<at::Tensor(at::Tensor whole)> laid;         // in a layout that the others take; none: they take any
  std::function<at::Tensor(const at::Tensor& source)> whole_of;  // zeros elsewhere; none: zeros and write
  bool all = false;                                         // nothing of the tensor stays
  int64_t kept = 0;
};

std::unique_ptr<Rule> overwrite(const Place& place, Overwrite how);

// A number, or a tensor that is broadcast to the part.
Overwrite of_part(const char* name, Part part);
Overwrite of_slice(int64_t dim, std::optional<int64_t> start, std::optional<int64_t> end, int64_t step);
Overwrite of_select(int64_t dim, int64_t index);
Overwrite of_diagonal(int64_t offset, int64_t dim1, int64_t dim2);

// Where an index names a place twice, PyTorch's derivatives give both sources the place's: the tangents, their transposes, add up.
// index: of one dimension; of a scatter, of the source's sizes.
Overwrite of_index_copy(int64_t dim, const at::Tensor& index);
Overwrite of_index_add(int64_t dim, const at::Tensor& index, double alpha);
Overwrite of_index_fill(int64_t dim, const at::Tensor& index);
Overwrite of_scatter(int64_t dim, const at::Tensor& index, bool add);
// source: its sizes, of which as many elements are read as the mask has.
Overwrite of_mask(const at::Tensor& mask, const Sizes& source);
// indices: as of index (nodes/shape.h). Of none for what that does not take.
std::optional<Overwrite> of_indices(const Place& place, const std::vector<at::Tensor>& indices, bool add);

}  // namespace gpfast

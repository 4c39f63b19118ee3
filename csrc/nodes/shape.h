#pragma once
// Rules for operations that move elements of one tensor, or add them up along a dimension: views, expansion, slices, indexing,
// padding. Linear, without parameters.
#include <optional>
#include <vector>

#include "nodes/part.h"
#include "rule.h"

namespace gpfast {

// The same elements in the same order: view, squeeze, unsqueeze.
std::unique_ptr<Rule> reshape(const Place& place);
std::unique_ptr<Rule> transpose(const Place& place, int64_t dim0, int64_t dim1);
// t(), which leaves a vector as it is.
std::unique_ptr<Rule> matrix_transpose(const Place& place);
std::unique_ptr<Rule> permute(const Place& place, std::vector<int64_t> dims);
std::unique_ptr<Rule> expand(const Place& place);
std::unique_ptr<Rule> repeat(const Place& place, std::vector<int64_t> repeats);
std::unique_ptr<Rule> flip(const Place& place, std::vector<int64_t> dims);
std::unique_ptr<Rule> roll(const Place& place, std::vector<int64_t> shifts, std::vector<int64_t> dims);
std::unique_ptr<Rule> rot90(const Place& place, int64_t k, std::vector<int64_t> dims);

std::unique_ptr<Rule> slice(const Place& place, int64_t dim, std::optional<int64_t> start, std::optional<int64_t> end,
                            int64_t step);
std::unique_ptr<Rule> select(const Place& place, int64_t dim, int64_t index);
std::unique_ptr<Rule> diagonal(const Place& place, int64_t offset, int64_t dim1, int64_t dim2);
// as_strided, whose view is a part without overlaps.
std::unique_ptr<Rule> strided(const Place& place, const Part& view);
std::unique_ptr<Rule> unfold(const Place& place, int64_t dim, int64_t size, int64_t step);
// Its transpose: windows, added up where they overlap.
std::unique_ptr<Rule> overlap_add(const Place& place, int64_t dim, int64_t size, int64_t step);
std::unique_ptr<Rule> diag_embed(const Place& place, int64_t offset, int64_t dim1, int64_t dim2);
std::unique_ptr<Rule> trace(const Place& place);
// Of an input in one piece in order, `offset` elements from its first; null where some of it lies outside.
std::unique_ptr<Rule> as_strided(const Place& place, std::vector<int64_t> sizes, std::vector<int64_t> strides, int64_t offset);
std::unique_ptr<Rule> constant_pad(const Place& place, std::vector<int64_t> pad);
std::unique_ptr<Rule> triangle(const Place& place, int64_t diagonal, bool upper);
std::unique_ptr<Rule> cumsum(const Place& place, int64_t dim);

// indices: undefined for a whole dimension; of integers, or of booleans as long as the dimensions that it indexes.
std::unique_ptr<Rule> index(const Place& place, const std::vector<at::Tensor>& indices);
std::unique_ptr<Rule> index_select(const Place& place, int64_t dim, at::Tensor index);
std::unique_ptr<Rule> gather(const Place& place, int64_t dim, at::Tensor index);
std::unique_ptr<Rule> take(const Place& place, at::Tensor index);

}  // namespace gpfast

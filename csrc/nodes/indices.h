#pragma once
// What indexing saved, as ATen takes it in the sweeps.
#include <ATen/core/List.h>

#include <optional>
#include <vector>

#include "rule.h"

namespace gpfast {

using IndexList = c10::List<std::optional<at::Tensor>>;

// Integers where masks were, on the device of the operation: found once for all sweeps. `length`: of the only index, where it is
// known, so that nothing waits for the device. None for what runs alone: bytes as masks, with a warning in each sweep, and a single
// bool.
std::optional<IndexList> as_places(const Place& place, const std::vector<at::Tensor>& indices, std::optional<int64_t> length);
int64_t bytes_of(const IndexList& list);

}  // namespace gpfast

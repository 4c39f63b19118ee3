#pragma once
// The rule for distances between all rows of two matrices.
#include "rule.h"

namespace gpfast {

// y_ij = |u_i - w_j|, Euclidean, in batches that are broadcast: torch.cdist. Either may be live.
std::unique_ptr<Rule> distances(const Place& place, at::Tensor u, at::Tensor w, const at::Tensor& y);

}  // namespace gpfast

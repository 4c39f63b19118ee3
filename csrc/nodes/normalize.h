#pragma once
// Rules for normalisation: the input live; weight and bias of any kind but not live.
#include "rule.h"

namespace gpfast {

// What a norm saved. mean: undefined for a norm by root mean squares; weight: or undefined.
struct SavedNorm {
  at::Tensor input, mean, rstd, weight;
};

// Over the last `dims` dimensions.
std::unique_ptr<Rule> layer_norm(const Place& place, SavedNorm saved, int64_t dims);
std::unique_ptr<Rule> group_norm(const Place& place, SavedNorm saved, int64_t groups);
// By the batch's own statistics.
std::unique_ptr<Rule> batch_norm(const Place& place, SavedNorm saved);
// By running statistics: a linear map. mean and variance: those.
std::unique_ptr<Rule> frozen_batch_norm(const Place& place, at::Tensor input, at::Tensor mean, at::Tensor variance,
                                        at::Tensor weight, double eps);

}  // namespace gpfast

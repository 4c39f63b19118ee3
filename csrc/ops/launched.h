#pragma once
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>

namespace gpfast {

// On a GPU, or counted as if it were: calls cost, so that ATen is asked for as much as possible in each. There, what saves memory
// but costs a launch is done for so many bytes: where the tensor itself is what memory is short of.
inline bool launched(const at::Tensor& tensor) { return !tensor.is_cpu() || !at::globalContext().userEnabledMkldnn(); }
constexpr int64_t kWorthALaunch = 64 << 20;

}  // namespace gpfast

#pragma once
// While a critic runs: what autograd saves twice is held once.
#include <torch/csrc/autograd/saved_variable.h>

namespace gpfast {

// `saved`, of an operation whose result tells as much of its slope, holds that result from now on, which another operation saved too.
// Whoever unpacks it finds the graph that it had, and PyTorch's error where either was written to since.
void share(torch::autograd::SavedVariable& saved, const at::Tensor& result);

// How often, in this thread, what is shared was unpacked: by a hook, but nothing was made anew for that.
int64_t shared_unpacked();

}  // namespace gpfast

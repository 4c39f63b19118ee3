#pragma once
// Launches: CUDA's own function, so that the source that launches is the same for nvcc and for g++.
#include <driver_types.h>
#include <vector_types.h>

#include <functional>
#include <tuple>
#include <utility>

namespace simt {

// Runs the blocks one after the other. A configuration that a device refuses is refused with the same error.
cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& kernel);

}  // namespace simt

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  const std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
  return simt::launch(*config, [&] { std::apply(kernel, values); });
}

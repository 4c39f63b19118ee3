#pragma once
// Launches: CUDA's own function, so that the source that launches is the same for nvcc and for g++.
#include <driver_types.h>
#include <vector_types.h>

#include <functional>
#include <tuple>
#include <utility>
#include <vector>

namespace simt {

// A kernel's address, and where each of its arguments lies.
struct Given {
  const void* kernel;
  std::vector<const void*> arguments;
  std::vector<size_t> sizes;
};

// Runs the blocks one after the other, or hands the launch on where it was asked to. A configuration that a device refuses is
// refused with the same error.
cudaError_t launch(const cudaLaunchConfig_t& config, const Given& given, const std::function<void()>& kernel);

}  // namespace simt

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  const std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
  const auto given = std::apply(
      [&](const Parameters&... each) {
        return simt::Given{reinterpret_cast<const void*>(kernel), {static_cast<const void*>(&each)...}, {sizeof(each)...}};
      },
      values);
  return simt::launch(*config, given, [&] { std::apply(kernel, values); });
}

// A CUDA device that has streams and no memory, where there is none: what autograd's engine asks of one. Loaded before PyTorch, so
// that these are found first.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/FakeGuardImpl.h>

#include <optional>

#define GPFAST_FOUND_FIRST __attribute__((visibility("default")))

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, FakeGuardImpl<DeviceType::CUDA>)
}

namespace at::accelerator {
GPFAST_FOUND_FIRST std::optional<c10::DeviceType> getAccelerator(bool) { return c10::DeviceType::CUDA; }
}  // namespace at::accelerator

namespace at::detail {
namespace {
struct Hooks : CUDAHooksInterface {
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
};
}  // namespace

GPFAST_FOUND_FIRST const CUDAHooksInterface& getCUDAHooks() {
  static const Hooks hooks;
  return hooks;
}
}  // namespace at::detail

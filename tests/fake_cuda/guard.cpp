// A CUDA device that does not exist, for a PyTorch without CUDA: it has streams and an index, and no memory.
#include <c10/core/impl/FakeGuardImpl.h>

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, FakeGuardImpl<DeviceType::CUDA>)
}

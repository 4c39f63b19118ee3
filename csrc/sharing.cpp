#include "sharing.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/detach.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include <memory>

#include "saved.h"

namespace gpfast {
namespace {

thread_local int64_t unpacked = 0;
thread_local size_t least = 0;  // bytes that are worth it

class Shared final : public torch::autograd::SavedVariableHooks {
 public:
  explicit Shared(const at::Tensor& result) {
    at::AutoGradMode off(false);
    result_ = result.detach();
    versions_.note(result_);
  }
  void call_pack_hook(const at::Tensor& replaced) override { versions_.note(replaced); }
  at::Tensor call_unpack_hook() override {
    versions_.check();
    ++unpacked;
    return result_;
  }

 private:
  at::Tensor result_;
  Versions versions_;
};

void ended(const at::RecordFunction& operation, at::ObserverContext*) {
  for (const auto& output : operation.outputs()) {
    if (!output.isTensor()) continue;
    const auto* meta = torch::autograd::impl::get_autograd_meta(output.toTensor());
    if (meta && meta->grad_fn_) share_inputs(*meta->grad_fn_, least);
  }
}

// From now on, in this thread, until it is ended: of what has so many bytes at least.
int64_t begin_sharing(int64_t bytes) {
  least = static_cast<size_t>(bytes);
  const auto callback = at::RecordFunctionCallback(nullptr, &ended).needsOutputs(true).scopes({at::RecordScope::FUNCTION});
  return static_cast<int64_t>(at::addThreadLocalCallback(callback));
}
void end_sharing(int64_t handle) { at::removeCallback(static_cast<at::CallbackHandle>(handle)); }

}  // namespace

void share(torch::autograd::SavedVariable& saved, const at::Tensor& result) {
  try {
    saved.unpack();
  } catch (const c10::Error&) {  // it was written to: that is for whoever needs it to meet
    return;
  }
  saved.register_hooks(std::make_unique<Shared>(result));
}

int64_t shared_unpacked() { return unpacked; }

TORCH_LIBRARY_FRAGMENT(gpfast, m) {
  m.def("begin_sharing(int least) -> int", &begin_sharing);
  m.def("end_sharing(int handle) -> ()", &end_sharing);
}

}  // namespace gpfast

#pragma once
// A thread of a kernel: a function on a stack of its own, that can be suspended. AddressSanitizer is told of every switch.
#include <ucontext.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define SIMT_ASAN(call) call
#else
#define SIMT_ASAN(call)
#endif

namespace simt {

class Fiber {
 public:
  Fiber() : stack_(new char[kStack]) {}

  void start(std::function<void()> body) {
    body_ = std::move(body);
    done_ = false;
    getcontext(&own_);
    own_.uc_stack.ss_sp = stack_.get();
    own_.uc_stack.ss_size = kStack;
    own_.uc_link = nullptr;
    starting() = this;
    makecontext(&own_, &Fiber::enter, 0);
  }

  // Runs the body until it suspends or ends.
  void resume() {
    starting() = this;
    [[maybe_unused]] void* left = nullptr;
    SIMT_ASAN(__sanitizer_start_switch_fiber(&left, stack_.get(), kStack));
    swapcontext(&caller_, &own_);
    SIMT_ASAN(__sanitizer_finish_switch_fiber(left, nullptr, nullptr));
  }

  // From within the body: back to who resumed it.
  void suspend() {
    [[maybe_unused]] void* left = nullptr;
    SIMT_ASAN(__sanitizer_start_switch_fiber(done_ ? nullptr : &left, caller_stack_, caller_size_));
    swapcontext(&own_, &caller_);
    SIMT_ASAN(__sanitizer_finish_switch_fiber(left, &caller_stack_, &caller_size_));
  }

  bool done() const { return done_; }

 private:
  static constexpr size_t kStack = 128 << 10;

  static Fiber*& starting() {
    static Fiber* fiber = nullptr;
    return fiber;
  }
  static void enter() {
    Fiber* self = starting();
    SIMT_ASAN(__sanitizer_finish_switch_fiber(nullptr, &self->caller_stack_, &self->caller_size_));
    self->body_();
    self->done_ = true;
    self->suspend();
  }

  std::unique_ptr<char[]> stack_;
  std::function<void()> body_;
  ucontext_t own_, caller_;
  [[maybe_unused]] const void* caller_stack_ = nullptr;
  [[maybe_unused]] size_t caller_size_ = 0;
  bool done_ = true;
};

}  // namespace simt

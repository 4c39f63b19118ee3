#pragma once
// One block of threads. They run one after the other, each until it waits for others; what hardware leaves undefined is an
// error here: a barrier that not every thread meets, a warp's operation whose mask is not the lanes that take part in it.
#include <vector_types.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <source_location>
#include <string>
#include <vector>

#include "fiber.h"

namespace simt {

using Place = std::source_location;
constexpr unsigned kWarp = 32;

enum class Waits { kForNothing, kAtBarrier, kInWarp };

struct Thread {
  Fiber fiber;
  uint3 index;
  unsigned number;
  Waits waits;
  Place place;  // of what it waits in
  // An operation of its warp: the lanes of the mask exchange a value each.
  uint32_t mask;
  uint64_t given;
  uint64_t received[kWarp];

  unsigned lane() const { return number % kWarp; }
};

// A thread is unwound by it when its block fails.
struct Unwound {};

class Block {
 public:
  // Runs the kernel in every thread. The order of threads is drawn anew after each wait, or 0, 1, 2, ... where there is no
  // generator. What went wrong, or nothing.
  std::string run(dim3 size, uint3 index, size_t dynamic_bytes, const std::function<void()>& kernel, std::mt19937_64* order);

  Thread& running() { return *running_; }
  uint3 index() const { return index_; }
  dim3 size() const { return size_; }

  void barrier(Place place);
  // What each lane of the mask gave; only theirs is set.
  const uint64_t* exchange(uint32_t mask, uint64_t given, Place place);

  // Memory that the block's threads share: of this block alone, NaN (or -1) until it is written, and exactly as long as told,
  // so that AddressSanitizer sees what is beyond it.
  void* shared(const void* name, size_t bytes);
  void* dynamic() { return shared(nullptr, dynamic_bytes_); }

 private:
  void wait(Waits waits, Place place);
  void release_warp(unsigned first);
  std::string fault_in_warp(unsigned first, unsigned lane) const;
  void release_barrier();
  void fail(const std::string& why);

  struct Aligned {
    void operator()(char* memory) const { ::operator delete[](memory, std::align_val_t(16)); }
  };

  std::vector<std::unique_ptr<Thread>> threads_;
  std::map<const void*, std::unique_ptr<char[], Aligned>> shared_;
  Thread* running_ = nullptr;
  unsigned count_ = 0;
  dim3 size_;
  uint3 index_;
  size_t dynamic_bytes_ = 0;
  std::string error_;
  bool released_ = false;
};

Block& block();
dim3& grid();

}  // namespace simt

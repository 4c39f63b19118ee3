#include "block.h"

#include <algorithm>
#include <numeric>

namespace simt {
namespace {

std::string at(Place place) {
  std::string file = place.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(place.line());
}

bool same(Place a, Place b) {
  return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

}  // namespace

Block& block() {
  static Block block;
  return block;
}

dim3& grid() {
  static dim3 size;
  return size;
}

std::string Block::run(dim3 size, uint3 index, size_t dynamic_bytes, const std::function<void()>& kernel,
                       std::mt19937_64* order) {
  size_ = size;
  index_ = index;
  count_ = size.x * size.y * size.z;
  dynamic_bytes_ = dynamic_bytes;
  error_.clear();
  shared_.clear();
  while (threads_.size() < count_) threads_.push_back(std::make_unique<Thread>());
  for (unsigned i = 0; i < count_; ++i) {
    Thread& thread = *threads_[i];
    thread.number = i;
    thread.index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    thread.waits = Waits::kForNothing;
    thread.fiber.start([&kernel] {
      try {
        kernel();
      } catch (Unwound) {
      }
    });
  }
  std::vector<unsigned> turns(count_);
  std::iota(turns.begin(), turns.end(), 0u);
  const auto running = [&](unsigned i) { return !threads_[i]->fiber.done(); };
  while (std::any_of(turns.begin(), turns.end(), running)) {
    if (order) std::shuffle(turns.begin(), turns.end(), *order);
    released_ = false;
    for (const unsigned i : turns) {
      running_ = threads_[i].get();
      if (running_->fiber.done() || running_->waits != Waits::kForNothing) continue;
      running_->fiber.resume();
      released_ = true;
    }
    for (unsigned first = 0; first < count_ && error_.empty(); first += kWarp) release_warp(first);
    if (error_.empty()) release_barrier();
    if (!released_ && error_.empty()) fail("deadlock: every thread waits");
  }
  return error_;
}

// The threads that wait are resumed, to be unwound.
void Block::fail(const std::string& why) {
  error_ = why;
  for (unsigned i = 0; i < count_; ++i) threads_[i]->waits = Waits::kForNothing;
}

void Block::wait(Waits waits, Place place) {
  Thread& thread = running();
  thread.waits = waits;
  thread.place = place;
  thread.fiber.suspend();
  if (!error_.empty()) throw Unwound{};
}

void Block::barrier(Place place) { wait(Waits::kAtBarrier, place); }

void Block::release_barrier() {
  const Thread* first = nullptr;
  unsigned waiting = 0, exited = 0;
  for (unsigned i = 0; i < count_; ++i) {
    const Thread& thread = *threads_[i];
    exited += thread.fiber.done();
    if (thread.waits != Waits::kAtBarrier || thread.fiber.done()) continue;
    ++waiting;
    if (!first) first = &thread;
    if (!same(first->place, thread.place))
      return fail("divergent barrier: threads wait at " + at(first->place) + " and at " + at(thread.place));
  }
  if (waiting == 0 || waiting + exited < count_) return;
  if (exited) return fail("barrier at " + at(first->place) + " after " + std::to_string(exited) + " threads exited");
  for (unsigned i = 0; i < count_; ++i) threads_[i]->waits = Waits::kForNothing;
  released_ = true;
}

const uint64_t* Block::exchange(uint32_t mask, uint64_t given, Place place) {
  Thread& thread = running();
  thread.mask = mask;
  thread.given = given;
  wait(Waits::kInWarp, place);
  return thread.received;
}

// Lets those lanes go on whose whole mask has come.
void Block::release_warp(unsigned first) {
  const unsigned lanes = std::min(kWarp, count_ - first);
  const auto waits = [&](unsigned lane) {
    return !threads_[first + lane]->fiber.done() && threads_[first + lane]->waits == Waits::kInWarp;
  };
  for (unsigned lane = 0; lane < lanes; ++lane) {
    if (!waits(lane)) continue;
    const std::string why = fault_in_warp(first, lane);
    if (!why.empty()) return fail("warp operation at " + at(threads_[first + lane]->place) + ": " + why);
  }
  for (unsigned lane = 0; lane < lanes; ++lane) {
    if (!waits(lane)) continue;
    const uint32_t mask = threads_[first + lane]->mask;
    uint64_t given[kWarp] = {};
    bool complete = true;
    for (unsigned k = 0; k < lanes; ++k) {
      if (!(mask >> k & 1)) continue;
      complete = complete && waits(k);
      given[k] = threads_[first + k]->given;
    }
    if (!complete) continue;
    for (unsigned k = 0; k < lanes; ++k) {
      if (!(mask >> k & 1)) continue;
      std::copy(given, given + kWarp, threads_[first + k]->received);
      threads_[first + k]->waits = Waits::kForNothing;
    }
    released_ = true;
  }
}

// What is wrong with the mask of a lane that waits, or nothing.
std::string Block::fault_in_warp(unsigned first, unsigned lane) const {
  const Thread& thread = *threads_[first + lane];
  if (!(thread.mask >> lane & 1)) return "a lane is not in its own mask";
  for (unsigned k = 0; k < kWarp; ++k) {
    if (!(thread.mask >> k & 1)) continue;
    if (first + k >= count_) return "the mask names a lane beyond the block";
    const Thread& other = *threads_[first + k];
    if (other.fiber.done()) return "the mask names a lane that has exited";
    if (other.waits == Waits::kInWarp && (other.mask != thread.mask || !same(other.place, thread.place)))
      return "lanes of one mask wait in another operation, or with another mask, at " + at(other.place);
  }
  return "";
}

void* Block::shared(const void* name, size_t bytes) {
  auto& memory = shared_[name];
  if (!memory) {
    memory.reset(static_cast<char*>(::operator new[](bytes, std::align_val_t(16))));
    std::memset(memory.get(), 0xff, bytes);
  }
  return memory.get();
}

}  // namespace simt

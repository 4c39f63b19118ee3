#include "watch.h"

#include <ATen/SequenceNumber.h>
#include <torch/csrc/autograd/function.h>
#include <torch/library.h>

#include <atomic>
#include <mutex>
#include <sstream>

#include "plan.h"

namespace gpfast {
namespace {

thread_local bool watching = false;

// One for the process: gpfast.watch lets one thread in at a time.
struct Seen {
  std::atomic<int64_t> tape{-1}, sweep{kNoSweep}, step{-1};
  std::mutex mutex;
  int64_t tapes = 0;
  std::vector<std::string> steps;
  std::string refused;
} seen;

}  // namespace

Watched::Watched() {
  if (!watching) return;
  std::lock_guard<std::mutex> lock(seen.mutex);
  tape_ = seen.tapes++;
}

void Watched::describe(const std::vector<Step>& steps) const {
  if (tape_ < 0) return;
  std::lock_guard<std::mutex> lock(seen.mutex);
  for (size_t i = 0; i < steps.size(); ++i) {
    if (!steps[i].rule) continue;
    std::ostringstream line;
    line << tape_ << '\t' << i << '\t' << steps[i].node->sequence_nr() << '\t' << in_words(steps[i]);
    seen.steps.push_back(line.str());
  }
}

Watched::Running::Running(const Watched& watched, Sweep sweep) : tape_(watched.tape_) {
  if (tape_ < 0) return;
  seen.tape = tape_;
  seen.step = -1;
  seen.sweep = sweep;
}

Watched::Running::~Running() {
  if (tape_ >= 0) seen.sweep = kNoSweep;
}

void Watched::Running::say(size_t step) const { seen.step = static_cast<int64_t>(step); }

void watch_refused(const std::string& why) {
  if (!watching) return;
  std::lock_guard<std::mutex> lock(seen.mutex);
  seen.refused = why;
}

std::string in_words(const Step& step) {
  std::ostringstream words;
  words << step.node->name() << '\t' << step.rule->name() << '\t' << step.rule->bends() << '\t' << step.place.bent << '\t'
        << step.place.proportional << '\t' << step.rule->kept();
  return words.str();
}

namespace {

// Begins or ends watching on this thread; what was seen before is forgotten at the beginning.
void watch(bool on) {
  std::lock_guard<std::mutex> lock(seen.mutex);
  watching = on;
  if (!on) return;
  seen.tape = seen.step = -1;
  seen.sweep = kNoSweep;
  seen.tapes = 0;
  seen.steps.clear();
  seen.refused.clear();
}

// Where the sweeps are: tape, sweep (0 for none), step; and the number of the node that this thread's autograd made last.
std::vector<int64_t> watched_now() {
  return {seen.tape, seen.sweep, seen.step, static_cast<int64_t>(at::sequence_number::peek()) - 1};
}

// A line a step: tape, step, number of the node, and in_words. Then why a graph was refused, "" where none was.
std::tuple<std::vector<std::string>, std::string> watched() {
  std::lock_guard<std::mutex> lock(seen.mutex);
  return {seen.steps, seen.refused};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(gpfast, m) {
  m.def("watch(bool on) -> ()", &watch);
  m.def("watched_now() -> int[]", &watched_now);
  m.def("watched() -> (str[] steps, str refused)", &watched);
}

}  // namespace gpfast

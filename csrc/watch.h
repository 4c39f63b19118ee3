#pragma once
// What explain() sees of the sweeps: the plans, and which node is at work. Nobody else watches, and then it costs a test a node.
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace gpfast {

struct Step;

enum Sweep { kNoSweep, kAdjoint, kTangent, kSecond };

// Of one tape. A tape made on a thread that is watched is watched for life, on whatever thread it runs.
class Watched {
 public:
  Watched();

  bool on() const { return tape_ >= 0; }
  // After the adjoint sweep: every step that ran, with the bytes that it holds.
  void describe(const std::vector<Step>& steps) const;

  // Says which sweep runs for as long as it lives, and where it is.
  class Running {
   public:
    Running(const Watched& watched, Sweep sweep);
    ~Running();
    void at(size_t step) const {
      if (tape_ >= 0) say(step);
    }

   private:
    void say(size_t step) const;
    int64_t tape_;
  };

 private:
  int64_t tape_ = -1;
};

// A graph that the tape leaves to autograd.
void watch_refused(const std::string& why);

// A step in words: node, rule, whether it bends, whether second adjoints reach it, bytes it holds; between tabs.
std::string in_words(const Step& step);

}  // namespace gpfast

#pragma once
// Rules for discrete Fourier transforms. dims: the last one is halved where one side of the spectrum is real. normalization: a
// factor that is the same in either direction.
#include <vector>

#include "rule.h"

namespace gpfast {

struct Transform {
  std::vector<int64_t> dims;
  int64_t normalization = 0;
};

// From real to complex; onesided: without the frequencies that are conjugates of others.
std::unique_ptr<Rule> real_to_complex(const Place& place, Transform transform, bool onesided);
// From one side of a spectrum to real values.
std::unique_ptr<Rule> complex_to_real(const Place& place, Transform transform);
std::unique_ptr<Rule> complex_to_complex(const Place& place, Transform transform, bool forward);

}  // namespace gpfast

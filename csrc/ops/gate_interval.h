#pragma once
// Every test of a gate as one, for GPUs: a CPU may be told to take the numbers next to zero for zero.
#include <cmath>
#include <limits>

#include "ops/gate_launch.h"
#include "ops/inline.h"

namespace gpfast {

// lowest <= h <= highest. None passes where one of them is NaN.
template <typename A>
struct Interval {
  A lowest, highest;

  explicit Interval(const Gate& by) : lowest(-kInfinity), highest(kInfinity) {
    const A lower = static_cast<A>(by.lower), upper = static_cast<A>(by.upper);
    if (by.test == Test::kWithin) lowest = lower, highest = upper;
    if (by.test == Test::kAbove || by.test == Test::kBetween) lowest = lower == kInfinity ? kNan : std::nextafter(lower, kInfinity);
    if (by.test == Test::kBelow || by.test == Test::kBetween) highest = upper == -kInfinity ? kNan : std::nextafter(upper, -kInfinity);
  }
  GPFAST_INLINE bool holds(A h) const { return (h >= lowest) & (h <= highest); }

 private:
  static constexpr A kInfinity = std::numeric_limits<A>::infinity(), kNan = std::numeric_limits<A>::quiet_NaN();
};

}  // namespace gpfast

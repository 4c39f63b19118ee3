#pragma once
// Whether an element passes a gate's test.
#include "ops/gate_launch.h"
#include "ops/inline.h"

namespace gpfast {

template <Test kTest, typename A>
GPFAST_INLINE bool holds(A h, A lower, A upper) {
  if constexpr (kTest == Test::kAbove) return h > lower;
  if constexpr (kTest == Test::kBelow) return h < upper;
  if constexpr (kTest == Test::kBetween) return (h > lower) & (h < upper);
  return (h >= lower) & (h <= upper);
}

}  // namespace gpfast

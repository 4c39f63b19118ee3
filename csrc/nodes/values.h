#pragma once
// Small steps that rules of arithmetic and reductions share; each does nothing where nothing is to do.
#include <ATen/ops/mul.h>

#include "rule.h"

namespace gpfast {

inline at::Tensor cast(at::Tensor z, at::ScalarType dtype) { return z.scalar_type() == dtype ? std::move(z) : z.to(dtype); }

inline at::Tensor expanded(at::Tensor z, at::IntArrayRef sizes) { return z.sizes() == sizes ? std::move(z) : z.expand(sizes); }

inline at::Tensor scaled(at::Tensor z, double factor) {
  if (factor == 1) return z;
  return ours(z) ? z.mul_(factor) : at::mul(z, factor);
}

}  // namespace gpfast

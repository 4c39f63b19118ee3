#pragma once
// Small steps that rules of arithmetic and reductions share; each does nothing where nothing is to do.
#include <ATen/ops/conj_physical.h>
#include <ATen/ops/mul.h>

#include "rule.h"

namespace gpfast {

// Read as its conjugate: nothing is written.
inline at::Tensor conjugate(const at::Tensor& z) { return z.defined() && z.is_complex() ? z.conj() : z; }

inline at::Tensor conjugated(at::Tensor z) {
  if (!z.is_complex()) return z;
  return ours(z) ? z.conj_physical_() : at::conj_physical(z);
}

inline at::Tensor expanded(at::Tensor z, at::IntArrayRef sizes) { return z.sizes() == sizes ? std::move(z) : z.expand(sizes); }

inline at::Tensor scaled(at::Tensor z, double factor) {
  if (factor == 1) return z;
  return ours(z) ? z.mul_(factor) : at::mul(z, factor);
}

}  // namespace gpfast

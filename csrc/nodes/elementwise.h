#pragma once
// What the rules of elementwise arithmetic share.
#include <ATen/ops/addcmul.h>
#include <ATen/ops/div.h>

#include "nodes/layout.h"
#include "nodes/values.h"

namespace gpfast {

// An output of one place for each entry, which inputs are broadcast and cast to.
class Elementwise : public Rule {
 protected:
  using Rule::Rule;

  void see(const at::Tensor& output) {
    sizes_ = Sizes(output.sizes().begin(), output.sizes().end());
    dtype_ = output.scalar_type();
  }
  // May be overwritten by a value of the output.
  bool fits(const at::Tensor& z) const { return z.scalar_type() == dtype_ && z.sizes() == at::IntArrayRef(sizes_) && ours(z); }
  at::Tensor times(at::Tensor z, const at::Tensor& w) const { return fits(z) ? z.mul_(w) : at::mul(z, w); }
  at::Tensor over(at::Tensor z, const at::Tensor& w) const { return fits(z) ? z.div_(w) : at::div(z, w); }
  // z + value * u * w.
  at::Tensor plus(at::Tensor z, const at::Tensor& u, const at::Tensor& w, double value = 1) const {
    return fits(z) ? z.addcmul_(u, w, value) : at::addcmul(z, u, w, value);
  }
  static bool is_stretched(const at::Tensor& z) {
    for (int64_t d = 0; d < z.dim(); ++d)
      if (z.stride(d) == 0 && z.size(d) > 1) return true;
    return false;
  }
  // What the forward saved, in the order of the adjoint z, which may be a part of more: operators in PyTorch are slow where orders
  // differ.
  static at::Tensor as_it_lies(at::Tensor saved, const at::Tensor& z) {
    const bool alike = saved.defined() && saved.sizes() == z.sizes() && gpfast::real(saved);
    return alike && !is_stretched(z) ? relaid_saved(saved, order_of(z)) : saved;
  }
  at::Tensor to_input(at::Tensor z, size_t i) const { return reduced_to(std::move(z), place.sizes(i), place.dtype(i)); }
  at::Tensor to_output(at::Tensor z) const { return expanded(cast(std::move(z), dtype_), sizes_); }

  Sizes sizes_;
  at::ScalarType dtype_ = at::kFloat;
};

}  // namespace gpfast

#include "nodes/complex.h"

#include <ATen/ops/abs.h>
#include <ATen/ops/complex.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/imag.h>
#include <ATen/ops/real.h>
#include <ATen/ops/reciprocal.h>
#include <ATen/ops/sgn.h>
#include <ATen/ops/view_as_complex.h>
#include <ATen/ops/view_as_real.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/function.h>

#include <algorithm>

#include "nodes/map.h"
#include "nodes/values.h"

namespace gpfast {
namespace {

using at::Tensor;

constexpr c10::complex<double> kI{0, 1};

Tensor parts_of(const Tensor& z) { return at::view_as_real(z.resolve_conj()); }

// Of pairs, wherever they lie.
Tensor whole_of(const Tensor& pairs) {
  const auto strides = pairs.strides().slice(0, pairs.dim() - 1);
  const bool aligned = pairs.stride(-1) == 1 && pairs.storage_offset() % 2 == 0 &&
                       std::all_of(strides.begin(), strides.end(), [](int64_t stride) { return stride % 2 == 0; });
  return at::view_as_complex(aligned ? pairs : pairs.clone(at::MemoryFormat::Contiguous));
}

Tensor turned(const Tensor& z, c10::complex<double> factor) {
  return z.is_complex() && ours(z) ? z.mul_(factor) : at::mul(z, factor);
}

class Parts final : public Rule {
 public:
  using Rule::Rule;

  const char* name() const override { return "complex"; }
  Values adjoint(Values a) override { return back(a[0], &Input::live); }
  Values tangent(Values t) override {
    Values out(1);
    if (!place.tangent) return out;
    for (size_t i : {0, 1})
      if (!t[i].defined()) t[i] = at::zeros_like(t[1 - i]);
    out[0] = at::complex(t[0], t[1]);
    return out;
  }
  Values second(Values b) override { return back(b[0], &Input::wanted); }
  bool takes_second() const override { return true; }
  int64_t kept() const override { return 0; }

 private:
  Values back(const Tensor& z, bool Input::* asked) const {
    Values out(2);
    if (!z.defined()) return out;
    for (size_t i : {0, 1})
      if (place.inputs[i].*asked) out[i] = reduced_to(i ? at::imag(z) : at::real(z), place.sizes(i), place.dtype(i));
    return out;
  }
};

// With s = h / |h|: a_h = a s, t_y = Re(conj(s) t), b_h = s (b + i r), where r = a Im(conj(s) t) / |h| is real.
class Modulus final : public Rule {
 public:
  Modulus(const Place& place, Tensor h) : Rule(place), h_(std::move(h)) {}

  const char* name() const override { return "modulus"; }
  bool bends() const override { return true; }
  Values adjoint(Values a) override {
    Values out(1);
    out[0] = at::sgn(h_).mul_(a[0]);
    if (place.wanted(0)) a_ = std::move(a[0]);
    else if (!place.tangent) h_ = Tensor();
    return out;
  }
  Values tangent(Values t) override {
    Values out(1);
    Tensor z = at::sgn(h_).conj_physical_().mul_(t[0]);
    t = Values();
    if (place.tangent) out[0] = at::real(z).clone();
    if (!place.wanted(0)) return out;
    Tensor size = at::abs(h_), a = take(a_);
    z = at::imag(z);
    r_ = (ours(a) ? a.mul_(z) : at::mul(a, z)).div_(size).masked_fill_(at::eq(size, 0), 0);
    return out;
  }
  Values second(Values b) override {
    Values out(1);
    Tensor r = std::move(r_);
    if (place.wanted(0) && (b[0].defined() || r.defined())) {
      const Tensor s = at::sgn(h_);
      if (!r.defined()) out[0] = s.mul_(b[0]);
      else out[0] = b[0].defined() ? s.mul_(at::complex(b[0], r)) : s.mul_(r).mul_(kI);
    }
    take(h_);
    return out;
  }
  int64_t kept() const override { return bytes_of({h_, a_, r_}); }

 private:
  Tensor h_, a_, r_;
};

// With w = 1 / h: a_h = i a conj(w), t_y = Im(w t), b_h = i b conj(w) - i a conj(w w t).
class Angle final : public Rule {
 public:
  Angle(const Place& place, Tensor h) : Rule(place), h_(std::move(h)) {}

  const char* name() const override { return "angle"; }
  bool bends() const override { return true; }
  Values adjoint(Values a) override {
    Values out(1);
    out[0] = back(a[0]);
    if (place.wanted(0)) a_ = std::move(a[0]);
    else if (!place.tangent) h_ = Tensor();
    return out;
  }
  Values tangent(Values t) override {
    Values out(1);
    const Tensor w = inverse();
    Tensor z = ours(t[0]) ? t[0].mul_(w) : at::mul(t[0], w);
    if (place.tangent) out[0] = at::imag(z).clone();
    if (place.wanted(0)) part_ = z.mul_(w).conj_physical_().mul_(take(a_)).mul_(-kI);
    return out;
  }
  Values second(Values b) override {
    Values out(1);
    if (place.wanted(0)) {
      out[0] = std::move(part_);
      if (b[0].defined()) accumulate(out[0], back(b[0]));
    }
    take(h_);
    return out;
  }
  int64_t kept() const override { return bytes_of({h_, a_, part_}); }

 private:
  Tensor inverse() const { return at::reciprocal(h_).masked_fill_(at::eq(h_, 0), 0); }
  Tensor back(const Tensor& z) const { return inverse().conj_physical_().mul_(z).mul_(kI); }

  Tensor h_, a_, part_;
};

}  // namespace

std::unique_ptr<Rule> view_as_real(const Place& place) { return map(place, "view as real", parts_of, whole_of); }
std::unique_ptr<Rule> view_as_complex(const Place& place) { return map(place, "view as complex", whole_of, parts_of); }
std::unique_ptr<Rule> complex_of_parts(const Place& place) { return std::make_unique<Parts>(place); }
std::unique_ptr<Rule> conjugation(const Place& place) {
  const auto mirror = [](const Tensor& z) { return ours(z) ? z.conj_physical_() : at::conj_physical(z); };
  return map(place, "conjugate", mirror, mirror);
}

std::unique_ptr<Rule> rotation(const Place& place, c10::complex<double> factor) {
  const auto forth = [factor, dtype = c10::typeMetaToScalarType(place.node->input_metadata(0).dtype())](const Tensor& t) {
    return cast(turned(t, factor), dtype);
  };
  const auto back = [factor, dtype = place.dtype(0)](const Tensor& z) { return cast(turned(z, std::conj(factor)), dtype); };
  return map(place, "scale", forth, back);
}

std::unique_ptr<Rule> modulus(const Place& place, Tensor h) { return std::make_unique<Modulus>(place, std::move(h)); }
std::unique_ptr<Rule> angle(const Place& place, Tensor h) { return std::make_unique<Angle>(place, std::move(h)); }

}  // namespace gpfast

#include "nodes/spectral.h"

#include <ATen/WrapDimUtils.h>
#include <ATen/ops/_fft_c2c.h>
#include <ATen/ops/_fft_c2r.h>
#include <ATen/ops/_fft_r2c.h>
#include <ATen/ops/imag.h>
#include <torch/csrc/autograd/function.h>

#include "nodes/map.h"

namespace gpfast {
namespace {

using at::Tensor;

// The transpose of a transform to one side is the transform back of a spectrum whose other side is zero, of which the real part is
// taken. Half of what has a twin, and nothing imaginary of what is its own, is the same spectrum made conjugate symmetric: no more
// than one side of it is ever there.
Tensor from_one_side(const Tensor& given, const Transform& transform, int64_t length) {
  auto others = transform.dims;
  const int64_t last = others.back();
  others.pop_back();
  const Tensor z = !others.empty() ? at::_fft_c2c(given, others, transform.normalization, /*forward=*/false)
                   : ours(given)   ? given
                                   : given.clone();
  const int64_t twins = (length - 1) / 2;
  if (twins > 0) z.narrow(last, 1, twins).mul_(0.5);
  at::imag(z.select(last, 0)).zero_();
  if (length % 2 == 0) at::imag(z.select(last, length / 2)).zero_();
  return at::_fft_c2r(z, last, transform.normalization, length);
}

Tensor to_one_side(const Tensor& z, const Transform& transform) {
  const int64_t last = transform.dims.back();
  Tensor side = at::_fft_r2c(z, transform.dims, transform.normalization, /*onesided=*/true);
  const int64_t twins = z.size(last) - side.size(last);
  if (twins > 0) side.narrow(last, 1, twins).mul_(2);
  return side;
}

}  // namespace

std::unique_ptr<Rule> real_to_complex(const Place& place, Transform transform, bool onesided) {
  const auto sizes = place.sizes(0);
  const int64_t length = sizes[at::maybe_wrap_dim(transform.dims.back(), static_cast<int64_t>(sizes.size()))];
  const auto forth = [transform, onesided](const Tensor& t) {
    return at::_fft_r2c(t, transform.dims, transform.normalization, onesided);
  };
  const auto back = [transform, onesided, length, dtype = place.dtype(0)](const Tensor& z) {
    if (onesided) return from_one_side(z, transform, length);
    return cast(at::_fft_c2c(z, transform.dims, transform.normalization, /*forward=*/false), dtype);
  };
  return map(place, "rfft", forth, back);
}

std::unique_ptr<Rule> complex_to_real(const Place& place, Transform transform) {
  const auto sizes = sizes_of(place.node->input_metadata(0));
  const int64_t length = sizes[at::maybe_wrap_dim(transform.dims.back(), static_cast<int64_t>(sizes.size()))];
  const auto forth = [transform, length](const Tensor& t) {
    return at::_fft_c2r(t, transform.dims, transform.normalization, length);
  };
  return map(place, "irfft", forth, [transform](const Tensor& z) { return to_one_side(z, transform); });
}

std::unique_ptr<Rule> complex_to_complex(const Place& place, Transform transform, bool forward) {
  const auto way = [transform](bool forward) {
    return [transform, forward](const Tensor& z) {
      return at::_fft_c2c(z, transform.dims, transform.normalization, forward);
    };
  };
  return map(place, "fft", way(forward), way(!forward));
}

}  // namespace gpfast

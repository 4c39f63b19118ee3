#pragma once
#include <ATen/core/Tensor.h>

#include <string_view>
#include <tuple>

namespace gpfast {

// (value, norms, seed); gradient: dense rows with its first `keep` dimensions kept; norms: gradient.shape[:keep].
std::tuple<at::Tensor, at::Tensor, at::Tensor> gradient_norm_cpu(const at::Tensor& gradient, int64_t keep, double center,
                                                                 bool one_sided, double eps, std::string_view reduction,
                                                                 bool with_seed, double weight);

// scale * cotangent * phi'(n)/n * gradient; cotangent: () or the shape of norms.
at::Tensor gradient_norm_seed_cpu(const at::Tensor& gradient, const at::Tensor& norms, const at::Tensor& cotangent, int64_t keep,
                                  double center, bool one_sided, double scale);

}  // namespace gpfast

#pragma once
// The formulas of smooth activations for tensors: what they are made of, beside what PyTorch has under the same names.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/cosh.h>
#include <ATen/ops/erf.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/reciprocal.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/sinh.h>
#include <ATen/ops/where.h>

#include "ops/activation_numbers.h"

namespace gpfast::formulas {

using at::Tensor;

inline Sigmoids<Tensor> sigmoids(const Tensor& x) { return {at::sigmoid(x), at::sigmoid(-x)}; }
inline Tensor constant(const Tensor& like, double value) { return at::full_like(like, value); }
inline Tensor choose(const Tensor& condition, const Tensor& yes, const Tensor& no) { return at::where(condition, yes, no); }
inline Tensor choose(const Tensor& condition, const Tensor& yes, double no) { return at::where(condition, yes, no); }
inline Tensor choose(const Tensor& condition, double yes, const Tensor& no) { return at::where(condition, yes, no); }
inline Tensor normal_below(const Tensor& h, const Tensor&) { return at::erf(h * 0.7071067811865476) * 0.5 + 0.5; }

}  // namespace gpfast::formulas

// Behind these overloads, which its templates find only where they are declared first.
#include "ops/activation_formulas.h"

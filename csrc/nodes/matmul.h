#pragma once
// Matrix products, alone or in batches: y = beta * addend + alpha * left @ right, and the same with vectors for matrices.
#include <ATen/core/Scalar.h>

#include "../rule.h"

namespace gpfast {

struct Factor {
  size_t input = 0;       // which input it is
  int vector = -1;        // a vector is made a matrix by a dimension of size 1 here: 0 a row, 1 a column; -1: it is a matrix
  at::Tensor value = {};  // undefined where autograd did not save it, as the other factor needs no gradient
};

struct Product {
  Factor left, right;
  int addend = -1;  // which input it is; -1: none
  at::Scalar alpha = 1, beta = 1;
};

// Any of the inputs may be live.
std::unique_ptr<Rule> matmul(Place place, Product product);

}  // namespace gpfast

#include "nodes/dropout.h"

#include <ATen/ops/native_dropout_backward.h>

#include "nodes/map.h"

namespace gpfast {

std::unique_ptr<Rule> dropout_rule(const Place& place, const at::Tensor& mask, double scale) {
  if (!place.only(0b1)) return nullptr;
  const auto drop = [mask, scale](const at::Tensor& z) { return at::native_dropout_backward(z, mask, scale); };
  return map(place, "dropout", drop, drop, bytes_of({mask}));
}

}  // namespace gpfast

#include "nodes/pool.h"

#include <ATen/ops/_adaptive_avg_pool2d.h>
#include <ATen/ops/_adaptive_avg_pool2d_backward.h>
#include <ATen/ops/_adaptive_avg_pool3d.h>
#include <ATen/ops/_adaptive_avg_pool3d_backward.h>
#include <ATen/ops/adaptive_max_pool2d_backward.h>
#include <ATen/ops/adaptive_max_pool3d_backward.h>
#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/avg_pool2d_backward.h>
#include <ATen/ops/avg_pool3d.h>
#include <ATen/ops/avg_pool3d_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/fractional_max_pool2d_backward.h>
#include <ATen/ops/fractional_max_pool3d_backward.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/max_pool2d_with_indices_backward.h>
#include <ATen/ops/max_pool3d_with_indices_backward.h>

#include "ops/pool.h"

namespace gpfast {
namespace {

constexpr const char* kAverage = "average_pool";

// One number for each of the plane's dimensions.
Ints spread(const Ints& numbers, size_t spatial) {
  return numbers.size() == spatial ? numbers : Ints(spatial, numbers.at(0));
}

std::unique_ptr<Rule> average_tiles(const Place& place, const Shape& shape, const Ints& tile, int64_t divisor) {
  return map(
      place, kAverage, [=](const at::Tensor& t) { return sum_tiles(t, tile, divisor, shape.channels_last(t)); },
      [=](const at::Tensor& a) { return repeat_tiles(a, tile, divisor, shape.channels_last(a)); });
}

std::unique_ptr<Rule> average_windows(const Place& place, const Shape& shape, AveragePool p) {
  return map(
      place, kAverage,
      [p](const at::Tensor& t) {
        return at::avg_pool2d(t, p.kernel, p.stride, p.padding, p.ceil_mode, p.count_include_pad, p.divisor);
      },
      [p, shape](const at::Tensor& a) {
        // CUDA's backward for channels_last forgets the padding, up to PyTorch 2.13.
        const bool spared = !a.is_cpu() && p.padding != Ints(2, 0);
        // Of the pooled tensor the backward reads sizes and layout: what it writes serves as that.
        at::Tensor out = spared ? at::empty(shape.sizes(), a.options()) : shape.empty(a);
        return at::avg_pool2d_backward_out(out, a, out, p.kernel, p.stride, p.padding, p.ceil_mode, p.count_include_pad,
                                           p.divisor);
      });
}

std::unique_ptr<Rule> average_volumes(const Place& place, const Shape& shape, AveragePool p) {
  return map(
      place, kAverage,
      [p](const at::Tensor& t) {
        return at::avg_pool3d(t, p.kernel, p.stride, p.padding, p.ceil_mode, p.count_include_pad, p.divisor);
      },
      [p, shape](const at::Tensor& a) {
        return at::avg_pool3d_backward(a, shape.contiguous_stand_in(a), p.kernel, p.stride, p.padding, p.ceil_mode,
                                       p.count_include_pad, p.divisor);
      });
}

int64_t product(const Ints& numbers) {
  int64_t product = 1;
  for (const auto number : numbers) product *= number;
  return product;
}

// An adjoint is scattered to where the largest elements lay, a tangent gathered from there.
class Largest final : public Rule {
 public:
  using Scatter = std::function<at::Tensor(const at::Tensor& a, const at::Tensor& indices, const Shape& shape)>;
  Largest(Place place, Shape shape, at::Tensor indices, bool channels_last, Scatter scatter)
      : Rule(std::move(place)), shape_(std::move(shape)), indices_(std::move(indices)), channels_last_(channels_last),
        scatter_(std::move(scatter)) {}

  const char* name() const override { return "max_pool"; }

  Values adjoint(Values a) override {
    // The other sweeps will run in the adjoint's layout.
    if (channels_last_) layout_ = shape_.layout_of(a[0]);
    indices_ = indices_.contiguous(layout_);
    Values out(place.inputs.size());
    out[0] = scatter(a[0]);
    if (!place.tangent && !needs_second()) indices_.reset();
    return out;
  }

  Values tangent(Values t) override {
    Values out(place.outputs);
    if (place.tangent) out[0] = gathered(t[0].contiguous(layout_), needs_second() ? indices_ : take(indices_));
    return out;
  }

  Values second(Values b) override {
    Values out(place.inputs.size());
    if (needs_second() && b[0].defined()) out[0] = scatter(b[0]);
    if (!keep) indices_.reset();
    return out;
  }

  int64_t kept() const override { return bytes_of({indices_}); }

 private:
  bool needs_second() const { return place.bent && place.wanted(0); }
  at::Tensor scatter(const at::Tensor& value) const { return scatter_(value.contiguous(layout_), indices_, shape_); }

  at::Tensor gathered(const at::Tensor& t, const at::Tensor& indices) const {
    if (layout_ == at::MemoryFormat::Contiguous) {
      const auto planes = [&](const at::Tensor& x) { return x.flatten(-shape_.spatial()); };
      return at::gather(planes(t), -1, planes(indices)).view(indices.sizes());
    }
    // (N, plane, C), so that channels are innermost in the result too.
    const auto planes = [](const at::Tensor& x) { return x.movedim(1, -1).flatten(1, -2); };
    return at::gather(planes(t), 1, planes(indices)).view(indices.movedim(1, -1).sizes()).movedim(-1, 1);
  }

  Shape shape_;
  at::Tensor indices_;
  bool channels_last_;
  at::MemoryFormat layout_ = at::MemoryFormat::Contiguous;
  Scatter scatter_;
};

}  // namespace

std::unique_ptr<Rule> average_pool(const Place& place, const at::Tensor& input, size_t spatial, AveragePool pool) {
  const Shape shape(input, spatial);
  const Ints none(spatial, 0);
  pool.kernel = spread(pool.kernel, spatial);
  pool.stride = pool.stride.empty() ? pool.kernel : spread(pool.stride, spatial);
  pool.padding = spread(pool.padding, spatial);
  bool tiles = pool.stride == pool.kernel && pool.padding == none;
  for (size_t i = 0; i < spatial; ++i) tiles = tiles && shape.plane(i) % pool.kernel[i] == 0;
  if (tiles) return average_tiles(place, shape, pool.kernel, pool.divisor.value_or(product(pool.kernel)));
  return spatial == 2 ? average_windows(place, shape, std::move(pool)) : average_volumes(place, shape, std::move(pool));
}

std::unique_ptr<Rule> adaptive_average_pool(const Place& place, const at::Tensor& input, const Ints& output) {
  const Shape shape(input, output.size());
  bool tiles = true;
  Ints tile;
  for (size_t i = 0; i < output.size() && tiles; ++i) {
    tiles = output[i] > 0 && shape.plane(i) % output[i] == 0;
    if (tiles) tile.push_back(shape.plane(i) / output[i]);
  }
  if (tiles) return average_tiles(place, shape, tile, product(tile));
  if (output.size() == 2)
    return map(
        place, kAverage, [=](const at::Tensor& t) { return at::_adaptive_avg_pool2d(t, output); },
        [=](const at::Tensor& a) { return at::_adaptive_avg_pool2d_backward(a, shape.stand_in(a)); });
  return map(
      place, kAverage, [=](const at::Tensor& t) { return at::_adaptive_avg_pool3d(t, output); },
      [=](const at::Tensor& a) { return at::_adaptive_avg_pool3d_backward(a, shape.contiguous_stand_in(a)); });
}

std::unique_ptr<Rule> max_pool(const Place& place, const at::Tensor& input, at::Tensor indices, size_t spatial, MaxPool pool) {
  Largest::Scatter scatter = [p = pool](const at::Tensor& a, const at::Tensor& indices, const Shape& shape) {
    at::Tensor out = shape.empty(a);  // and what stands for the input, as above
    return at::max_pool2d_with_indices_backward_out(out, a, out, p.kernel, p.stride, p.padding, p.dilation, p.ceil_mode, indices);
  };
  if (spatial == 3)
    scatter = [p = pool](const at::Tensor& a, const at::Tensor& indices, const Shape& shape) {
      return at::max_pool3d_with_indices_backward(a, shape.contiguous_stand_in(a), p.kernel, p.stride, p.padding, p.dilation,
                                                  p.ceil_mode, indices);
    };
  return std::make_unique<Largest>(place, Shape(input, spatial), std::move(indices), spatial == 2, scatter);
}

std::unique_ptr<Rule> adaptive_max_pool(const Place& place, const at::Tensor& input, at::Tensor indices, size_t spatial) {
  const auto scatter = [=](const at::Tensor& a, const at::Tensor& indices, const Shape& shape) {
    return spatial == 2 ? at::adaptive_max_pool2d_backward(a, shape.stand_in(a), indices)
                        : at::adaptive_max_pool3d_backward(a, shape.contiguous_stand_in(a), indices);
  };
  const bool last = spatial == 2 && indices.is_cpu();
  return std::make_unique<Largest>(place, Shape(input, spatial), std::move(indices), last, scatter);
}

std::unique_ptr<Rule> fractional_max_pool(const Place& place, const at::Tensor& input, at::Tensor indices, Ints kernel,
                                          Ints output) {
  const size_t spatial = kernel.size();
  const auto scatter = [=](const at::Tensor& a, const at::Tensor& indices, const Shape& shape) {
    const at::Tensor input = shape.contiguous_stand_in(a);
    return spatial == 2 ? at::fractional_max_pool2d_backward(a, input, kernel, output, indices)
                        : at::fractional_max_pool3d_backward(a, input, kernel, output, indices);
  };
  return std::make_unique<Largest>(place, Shape(input, spatial), std::move(indices), false, scatter);
}

}  // namespace gpfast

#pragma once
// What pooling and resampling share: the rule for a linear map of one input, and the layout that its sweeps run in.
#include <c10/core/MemoryFormat.h>

#include <functional>
#include <vector>

#include "rule.h"

namespace gpfast {

using Ints = std::vector<int64_t>;

// For an operation without parameters, linear in its first input, the only live one: it has no second derivative.
class Map final : public Rule {
 public:
  using Function = std::function<at::Tensor(const at::Tensor&)>;
  // `held`: the bytes that the functions hold.
  Map(Place place, const char* name, Function forward, Function transposed, int64_t held)
      : Rule(std::move(place)), name_(name), forward_(std::move(forward)), transposed_(std::move(transposed)), held_(held) {}

  const char* name() const override { return name_; }
  Values adjoint(Values a) override;
  Values tangent(Values t) override;
  Values second(Values b) override;
  bool takes_second() const override { return true; }
  int64_t kept() const override { return held_; }

 private:
  const char* name_;
  Function forward_, transposed_;
  int64_t held_;
};

inline std::unique_ptr<Rule> map(const Place& place, const char* name, Map::Function forward, Map::Function transposed,
                                 int64_t held = 0) {
  return std::make_unique<Map>(place, name, std::move(forward), std::move(transposed), held);
}

// The sizes of an operation's input, of which the last `spatial` are its plane, and the layout that the forward gave it.
class Shape {
 public:
  Shape(const at::Tensor& input, size_t spatial);

  const Sizes& sizes() const { return sizes_; }
  int64_t spatial() const { return static_cast<int64_t>(spatial_); }
  int64_t plane(size_t i) const { return sizes_[sizes_.size() - spatial_ + i]; }
  // What a sweep's value lies in, channels_last or contiguous; where it is both, as the forward's input.
  at::MemoryFormat layout_of(const at::Tensor& value) const;
  bool channels_last(const at::Tensor& value) const { return layout_of(value) != at::MemoryFormat::Contiguous; }
  // For a result of these sizes, in the layout of `value`.
  at::Tensor empty(const at::Tensor& value) const;
  // For operators that read no more of the input than its sizes and layout. Without memory, except where the result is to be
  // channels_last, which it is kept on the CPU.
  at::Tensor stand_in(const at::Tensor& value) const;
  at::Tensor contiguous_stand_in(const at::Tensor& value) const;

 private:
  Sizes sizes_;
  size_t spatial_;
  at::MemoryFormat forward_;
};

}  // namespace gpfast

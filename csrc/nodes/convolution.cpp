// Convolutions: y = w * h + c, with h live. The adjoint is the data gradient, the tangent the convolution without its bias.
//   g_w = weight gradient of (a, t) + of (b, h)        g_c = sum b
// Where b is r a, sample by sample: g_w = weight gradient of (a, t + r h), g_c = sum r a.
#include "nodes/convolution.h"

#include <array>
#include <tuple>
#include <utility>

#include "ops/relayout.h"

namespace gpfast {
namespace {

using at::Tensor;

class Convolution final : public Rule {
 public:
  Convolution(Place place, Tensor input, ConvolutionMap map)
      : Rule(std::move(place)), input_(std::move(input)), map_(std::move(map)) {
    reads_input_ = adjoint_reads_input(map_);
    if (!reads_input_ && !needs_input()) input_ = Tensor();
  }

  const char* name() const override { return "convolution"; }

  Values adjoint(Values values) override {
    auto [below, a] = convolution_adjoint(map_, std::move(values[0]), reads_input_ ? input_ : Tensor());
    input_ = needs_input() ? convolution_saved(map_, input_) : Tensor();
    repeats_ = place.wanted(1) && !place.proportional ? repeats(a) : Reader{};
    if ((place.wanted(1) && !repeats_) || (place.proportional && place.wanted(2))) adjoint_ = std::move(a);
    return {std::move(below), Tensor(), Tensor()};
  }

  Values tangent(Values values) override {
    const bool multiples = ratio.defined();
    const std::array<bool, 3> wanted{place.tangent, place.wanted(1), multiples && place.wanted(2)};
    if (!values[0].defined() || wanted == std::array<bool, 3>{}) return Values(1);
    Tensor a, h, into, result, sum;
    if (wanted[1]) into = room(gradient_ = std::move(onto[1]));
    if (wanted[1] || wanted[2]) a = repeats_ ? repeats_.adjoint_again() : take(adjoint_);
    if (wanted[1] && multiples) h = place.bent ? input_ : take(input_);
    std::tie(result, sum, bias_) = convolution_tangent(map_, std::move(values[0]), std::move(a), std::move(into), ratio,
                                                       std::move(h), place.bent, wanted);
    accumulate(gradient_, std::move(sum));
    return {std::move(result)};
  }

  Values second(Values values) override {
    Tensor below, sum, of_bias, gradient = std::move(gradient_), bias = std::move(bias_);
    if (!gradient.defined() && place.wanted(1)) gradient = std::move(onto[1]);
    if (values[0].defined()) {
      Tensor into = room(gradient);
      std::tie(below, sum, of_bias) = convolution_second(map_, std::move(values[0]), take(input_), std::move(into),
                                                         {place.wanted(0), place.wanted(1), place.wanted(2)});
      accumulate(gradient, std::move(sum));
      accumulate(bias, std::move(of_bias));
    }
    return {std::move(below), as_the_weight(std::move(gradient)), std::move(bias)};
  }

  Values begun() override { return {Tensor(), as_the_weight(std::move(gradient_))}; }

  int64_t kept() const override { return bytes_of({input_, adjoint_, gradient_, bias_}); }

 private:
  bool needs_input() const { return (place.bent || place.proportional) && place.wanted(1); }

  // What may be added to in place.
  static Tensor room(Tensor& gradient) { return ours(gradient) ? std::move(gradient) : Tensor(); }

  // So that .grad takes it without a copy.
  Tensor as_the_weight(Tensor gradient) const { return gradient.defined() ? in_layout_of(gradient, map_.weight) : gradient; }

  Tensor input_;
  ConvolutionMap map_;
  Tensor adjoint_;           // until the tangent comes
  Tensor gradient_, bias_;   // as far as they are made with the tangent
  Reader repeats_;           // the adjoint
  bool reads_input_;
};

bool plain_and_real(const Tensor& z) { return z.layout() == at::kStrided && z.is_floating_point(); }

}  // namespace

std::unique_ptr<Rule> convolution(const Place& place, Tensor input, Tensor weight, ConvolutionOptions options) {
  const int64_t spatial = weight.dim() - 2;
  if (!place.only(0b001) || spatial < 1 || spatial > 3 || input.dim() != weight.dim()) return nullptr;
  if (!plain_and_real(input) || !plain_and_real(weight) || input.scalar_type() != weight.scalar_type()) return nullptr;
  for (auto* values : {&options.stride, &options.padding, &options.dilation, &options.output_padding}) {
    if (values->size() == 1) values->resize(spatial, values->front());
    if (static_cast<int64_t>(values->size()) != spatial) return nullptr;
  }
  // Beyond the stride, which a dilation allows, output padding makes the data gradient longer than the input.
  for (int64_t d = 0; d < spatial; ++d)
    if (options.output_padding[d] >= options.stride[d]) return nullptr;
  ConvolutionMap map{weight, input.sizes().vec(), std::move(options), launched(weight)};
  return std::make_unique<Convolution>(place, std::move(input), std::move(map));
}

}  // namespace gpfast

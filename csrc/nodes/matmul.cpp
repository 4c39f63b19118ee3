// Matrix products: any of the factors and the addend may be live, and two live factors bend.
#include "matmul.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>

#include "nodes/values.h"

namespace gpfast {
namespace {

using at::Scalar;
using at::Tensor;

constexpr int kLeft = 0, kRight = 1;
constexpr int kSides[] = {kLeft, kRight};

Tensor as_matrix(Tensor x, int at) { return x.defined() && at >= 0 ? x.unsqueeze(at) : x; }
Tensor as_vector(Tensor x, int at) { return x.defined() && at >= 0 ? x.squeeze(at) : x; }
Tensor scaled(const Tensor& x, const Scalar& by) { return by.equal(1) ? x : at::mul(x, by); }

// Stored column by column, like the transposed weight of a linear layer.
bool by_columns(const Tensor& x) { return x.stride(-2) == 1 && x.stride(-1) != 1 && x.size(-2) > 1 && x.size(-1) > 1; }

// MKL's products of few columns and a long sum take the terms one by one: six times the time, and the error, of the same product
// turned. Other dtypes and devices are left alone.
bool better_turned(const Tensor& x, const Tensor& y) {
  constexpr int64_t kFewest = 4, kMost = 10, kLong = 256;
  if (x.dim() != 2 || launched(x) || x.scalar_type() != at::kFloat) return false;
  const int64_t rows = x.size(0), columns = y.size(1), sum = x.size(1);
  return columns >= kFewest && columns <= kMost && rows > columns && sum >= kLong && sum > rows;
}
Tensor turned_product(const Tensor& x, const Tensor& y) { return at::mm(y.t(), x.t()).t(); }

// alpha x @ y
Tensor multiplied(const Tensor& x, const Tensor& y, const Scalar& alpha) {
  // An outer product is no work for a matrix kernel.
  auto product = x.size(-1) == 1      ? at::mul(x, y)
                 : better_turned(x, y) ? turned_product(x, y).contiguous()
                 : x.dim() == 2        ? at::mm(x, y)
                                       : at::bmm(x, y);
  return alpha.equal(1) ? product : product.mul_(alpha);
}

// into += alpha x @ y, in place; where it is undefined it is made, stored by rows.
void add_product(Tensor& into, const Tensor& x, const Tensor& y, const Scalar& alpha) {
  if (!into.defined()) {
    into = multiplied(x, y, alpha);
  } else if (better_turned(x, y)) {
    into.add_(turned_product(x, y), alpha);
  } else if (x.dim() == 2) {
    into.addmm_(x, y, 1, alpha);
  } else {
    into.baddbmm_(x, y, 1, alpha);
  }
}

class Matmul final : public Rule {
 public:
  Matmul(Place where, Product product)
      : Rule(std::move(where)), addend_(product.addend), alpha_(product.alpha), beta_(product.beta) {
    for (const int side : kSides) {
      auto& factor = factors_[side];
      static_cast<Factor&>(factor) = std::move(side == kLeft ? product.left : product.right);
      factor.live = place.live(factor.input);
      factor.wanted = place.wanted(factor.input);
      factor.value = as_matrix(std::move(factor.value), factor.vector);
      factor.columns = factor.value.defined() && by_columns(factor.value);
    }
    for (const int side : kSides)
      if (!factors_[side].live && !meets_second(side)) other(side).value.reset();
  }

  const char* name() const override { return bends() ? "matmul" : "linear"; }
  bool bends() const override { return factors_[kLeft].live && factors_[kRight].live; }

  Values adjoint(Values values) override {
    Values out(place.inputs.size());
    if (live_addend()) {
      sizes_ = Sizes(values[0].sizes());
      out[addend_] = of_addend(values[0]);
    }
    repeats_ = place.proportional ? Reader{} : repeats(values[0]);
    const Tensor a = output_as_matrix(std::move(values[0]));
    for (const int side : kSides) {
      const auto& factor = factors_[side];
      if (factor.live) out[factor.input] = as_vector(gradient(side, a, conjugate(other(side).value), {}), factor.vector);
      if (meets_tangent(side) && !repeats_) a_ = a;
      if (!(factor.live && place.tangent) && !meets_second(side)) other(side).value.reset();
    }
    if (place.proportional && wanted_addend()) a_ = a;
    return out;
  }

  Values tangent(Values t) override {
    for (auto& factor : factors_)
      if (factor.live) factor.tangent = as_matrix(std::move(t[factor.input]), factor.vector);
    Values out(1);
    if (place.tangent) out[0] = pushed(live_addend() ? std::move(t[addend_]) : Tensor());
    for (const int side : kSides) {
      if (!meets_tangent(side)) other(side).tangent.reset();
      else if (repeats_ && !a_.defined() && other(side).tangent.defined()) a_ = output_as_matrix(repeats_.adjoint_again());
      if (!meets_second(side)) take(other(side).value);
    }
    if (ratio.defined()) meet_ratio();
    if (!place.bent || parts_are_smaller()) make_parts();
    return out;
  }

  Values second(Values values) override {
    Values out(place.inputs.size());
    make_parts();
    if (wanted_addend()) out[addend_] = std::move(addend_part_);
    if (wanted_addend() && values[0].defined()) accumulate(out[addend_], of_addend(values[0]));
    const Tensor b = output_as_matrix(std::move(values[0]));
    for (const int side : kSides) {
      auto& factor = factors_[side];
      if (!factor.wanted) continue;
      auto grad = factor.part.defined() ? std::move(factor.part) : b.defined() ? arrived(factor) : Tensor();
      if (b.defined()) grad = gradient(side, b, conjugate(other(side).value), std::move(grad));
      out[factor.input] = as_vector(std::move(grad), factor.vector);
    }
    return out;
  }

  Values begun() override {
    Values out(place.inputs.size());
    for (auto& factor : factors_)
      if (!factor.live && factor.part.defined()) out[factor.input] = as_vector(std::move(factor.part), factor.vector);
    return out;
  }

  OfRows of_rows() const override {
    const auto &left = factors_[kLeft], &right = factors_[kRight];
    const bool plain = left.live && !right.live && !live_addend() && left.vector < 0 && right.vector < 0 && alpha_.equal(1);
    if (!plain) return {};
    const bool sums = (place.bent || place.proportional) && wanted_addend();
    if (sums && !alike_in_rows()) return {};
    return {.weight = right.value, .wanted = right.wanted, .input = meets_second(kRight) ? left.value : Tensor(), .sums = sums};
  }
  void made(Tensor of_weight, Tensor sums) override {
    factors_[kRight].part = std::move(of_weight);
    if (sums.defined()) addend_part_ = of_addend(as_matrix(std::move(sums), place.sizes(addend_).size() == 2 ? 0 : -1));
  }

  int64_t kept() const override {
    int64_t bytes = bytes_of({a_, addend_part_});
    for (const auto& factor : factors_) bytes += bytes_of({factor.live ? factor.value : Tensor(), factor.tangent, factor.part});
    return bytes;
  }

 private:
  struct Side : Factor {
    bool live = false, wanted = false;
    bool columns = false;  // and its gradient alike, so that the parameter takes it without a copy
    Tensor tangent;
    Tensor part;  // of its gradient or second adjoint: what is of the other factor's tangent
  };

  Side& other(int side) { return factors_[1 - side]; }
  bool live_addend() const { return addend_ >= 0 && place.live(addend_); }
  bool wanted_addend() const { return addend_ >= 0 && place.wanted(addend_); }
  bool meets_tangent(int side) const { return factors_[side].wanted && factors_[1 - side].live; }
  bool meets_second(int side) const { return factors_[side].wanted && (place.bent || place.proportional); }
  bool alike_in_rows() const {
    const auto sizes = place.sizes(addend_);
    return sizes.size() < 2 || sizes[0] == 1;
  }
  Tensor of_addend(const Tensor& a) const { return scaled(reduced_to(a, place.sizes(addend_), place.dtype(addend_)), beta_); }

  Tensor output_as_matrix(Tensor y) const {
    if (factors_[kLeft].vector == 0) y = as_matrix(std::move(y), 0);
    return factors_[kRight].vector == 1 ? as_matrix(std::move(y), 1) : y;
  }
  Tensor output_as_vector(Tensor y) const {
    if (factors_[kRight].vector == 1) y = as_vector(std::move(y), 1);
    return factors_[kLeft].vector == 0 ? as_vector(std::move(y), 0) : y;
  }

  // into + alpha z @ right^T, or left^T @ z: of a factor, from the output's z and the other factor, or the other's tangent, either
  // conjugated.
  Tensor gradient(int side, const Tensor& z, const Tensor& other, Tensor into) const {
    if (factors_[side].columns) {
      if (into.defined()) into = transposed(into);
      side == kLeft ? add_product(into, other, transposed(z), alpha_) : add_product(into, transposed(z), other, alpha_);
      return transposed(into);
    }
    side == kLeft ? add_product(into, z, transposed(other), alpha_) : add_product(into, transposed(other), z, alpha_);
    return into;
  }

  // beta addend + alpha (left_t @ right + left @ right_t)
  Tensor pushed(Tensor addend) const {
    const auto &left = factors_[kLeft], &right = factors_[kRight];
    Tensor y;
    if (addend.defined() && (left.vector >= 0 || right.vector >= 0)) addend = output_as_matrix(addend.expand(sizes_));
    const auto push = [&](const Tensor& x, const Tensor& z) {
      if (!addend.defined()) return add_product(y, x, z, alpha_);
      y = x.dim() == 2 ? at::addmm(addend, x, z, beta_, alpha_) : at::baddbmm(addend, x, z, beta_, alpha_);
      addend.reset();
    };
    if (left.tangent.defined()) push(left.tangent, right.value);
    if (right.tangent.defined()) push(left.value, right.tangent);
    if (y.defined()) return output_as_vector(y);
    if (!addend.defined()) return y;
    y = scaled(output_as_vector(addend), beta_);
    return y.sizes() == at::IntArrayRef(sizes_) && y.is_non_overlapping_and_dense() ? y : y.expand(sizes_).contiguous();
  }

  // Of a live matrix on the left: what second adjoints in proportion to the adjoints add.
  void meet_ratio() {
    auto& left = factors_[kLeft];
    if (meets_tangent(kRight)) left.tangent = with_ratio(std::move(left.tangent), ratio, left.value);
    if (wanted_addend()) addend_part_ = of_addend(by_ratio(ratio, a_));
  }

  // The parts that are of a tangent; those made before are left as they are.
  void make_parts() {
    for (const int side : kSides) {
      auto& factor = factors_[side];
      if (!meets_tangent(side) || !other(side).tangent.defined()) continue;
      factor.part = gradient(side, a_, conjugate(other(side).tangent), arrived(factor));
      other(side).tangent.reset();
    }
    if (repeats_) a_.reset();
    else take(a_);
  }

  // Of a gradient that goes where the factor's own goes, as far as that can be added to.
  Tensor arrived(const Side& factor) {
    Tensor& there = onto[factor.input];
    return factor.vector < 0 && ours(there) ? std::move(there) : Tensor();
  }

  // Than what they are made of.
  bool parts_are_smaller() const {
    const auto &left = factors_[kLeft].tangent, &right = factors_[kRight].tangent;
    if (!left.defined() && !right.defined()) return true;
    const int64_t rows = a_.size(-2), columns = a_.size(-1), inner = left.defined() ? left.size(-1) : right.size(-2);
    int64_t saved = rows * columns;
    for (const int side : kSides) {
      const int64_t size = inner * (side == kLeft ? rows : columns);
      if (factors_[side].tangent.defined()) saved += size;
      if (meets_tangent(side)) saved -= size;
    }
    return saved >= 0;
  }

  int addend_;
  Scalar alpha_, beta_;
  Side factors_[2];
  Tensor addend_part_;  // of the addend's gradient: what is in proportion to the adjoint, or what a run made
  Sizes sizes_;  // of the output, where the addend is live
  Tensor a_;
  Reader repeats_;  // the adjoint, which is then held from the tangent on
};

}  // namespace

std::unique_ptr<Rule> matmul(Place place, Product product) {
  return std::make_unique<Matmul>(std::move(place), std::move(product));
}

}  // namespace gpfast

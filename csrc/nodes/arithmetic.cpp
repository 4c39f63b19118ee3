// Rules for elementwise arithmetic that is linear, or linear in pieces.
#include "nodes/arithmetic.h"

#include <ATen/ops/add.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/ge.h>
#include <ATen/ops/le.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "nodes/elementwise.h"

namespace gpfast {
namespace {

using at::Tensor;

class Combination final : public Elementwise {
 public:
  Combination(Place place, const char* name, std::vector<double> factors)
      : Elementwise(std::move(place)), name_(name), factors_(std::move(factors)) {}

  const char* name() const override { return name_; }
  Values adjoint(Values a) override {
    see(a[0]);
    above_ = reader;
    return back(std::move(a[0]), &Input::live);
  }
  Values tangent(Values t) override {
    Values out(place.outputs);
    Tensor sum;
    for (size_t i = 0; i < factors_.size() && place.tangent; ++i) {
      if (!place.live(i) || !t[i].defined() || factors_[i] == 0) continue;
      sum = sum.defined() ? added(std::move(sum), std::move(t[i]), factors_[i])
                          : scaled(cast(std::move(t[i]), dtype_), factors_[i]);
    }
    if (sum.defined()) out[0] = to_output(std::move(sum));
    return out;
  }
  Values second(Values b) override { return back(std::move(b[0]), &Input::wanted); }
  bool takes_second() const override { return true; }
  bool repeats_adjoint(size_t input) const override { return factors_[input] != 0 && above_.repeats_adjoint(); }
  Tensor adjoint_again(size_t input) const override { return back(above_.adjoint_again(), input); }
  int64_t kept() const override { return 0; }

 private:
  Values back(Tensor z, bool Input::* asked) const {
    Values out(factors_.size());
    if (!z.defined()) return out;
    for (size_t i = 0; i < factors_.size(); ++i) {
      if (!(place.inputs[i].*asked) || factors_[i] == 0) continue;
      bool last = true;
      for (size_t j = i + 1; j < factors_.size(); ++j) last = last && !(place.inputs[j].*asked);
      out[i] = back(last ? std::move(z) : z, i);
    }
    return out;
  }
  Tensor back(Tensor z, size_t i) const {
    Tensor part = reduced_to(std::move(z), place.sizes(i), dtype_);
    return cast(scaled(std::move(part), factors_[i]), place.dtype(i));
  }
  Tensor added(Tensor sum, Tensor z, double factor) const {
    if (fits(sum)) return sum.add_(z, factor);
    if (factor == 1 && fits(z)) return z.add_(sum);
    return at::add(sum, z, factor);
  }

  const char* name_;
  std::vector<double> factors_;
  Reader above_;  // while adjoints arrived
};

class Selection final : public Elementwise {
 public:
  Selection(Place place, const char* name, Tensor mask, size_t yes, size_t no)
      : Elementwise(std::move(place)), name_(name), mask_(std::move(mask)), yes_(yes), no_(no) {}

  const char* name() const override { return name_; }
  Values adjoint(Values a) override {
    see(a[0]);
    return back(std::move(a[0]), &Input::live);
  }
  Values tangent(Values t) override {
    Values out(place.outputs);
    if (place.tangent) {
      Tensor z, other;
      if (asked(yes_, &Input::live)) z = std::move(t[yes_]);
      if (asked(no_, &Input::live)) other = std::move(t[no_]);
      if (z.defined() && other.defined()) {
        z = at::where(mask_, z, other);
      } else if (z.defined() || other.defined()) {
        z = z.defined() ? where_yes(z) : where_no(std::move(other));
      }
      if (z.defined()) out[0] = to_output(std::move(z));
    }
    if (!keep && !(place.bent && place.any_wanted())) mask_ = Tensor();
    return out;
  }
  Values second(Values b) override {
    Values out = back(std::move(b[0]), &Input::wanted);
    if (!keep) mask_ = Tensor();
    return out;
  }
  int64_t kept() const override { return bytes_of({mask_}); }

 private:
  bool asked(size_t i, bool Input::* what) const { return i < place.inputs.size() && place.inputs[i].*what; }
  Tensor where_yes(const Tensor& z) const { return at::where(mask_, z, at::zeros({}, z.options())); }
  Tensor where_no(Tensor z) const {
    return fits(z) ? z.masked_fill_(mask_, 0) : at::where(mask_, at::zeros({}, z.options()), z);
  }
  Values back(Tensor z, bool Input::* what) const {
    Values out(place.inputs.size());
    if (!z.defined()) return out;
    if (asked(yes_, what)) out[yes_] = to_input(where_yes(z), yes_);
    if (asked(no_, what)) out[no_] = to_input(where_no(std::move(z)), no_);
    return out;
  }

  const char* name_;
  Tensor mask_;
  size_t yes_, no_;
};

// y = sum of weights_i * h_i, with weights that depend on nothing wanted.
class Weighted final : public Elementwise {
 public:
  Weighted(Place place, const char* name, Values weights)
      : Elementwise(std::move(place)), name_(name), weights_(std::move(weights)) {}

  const char* name() const override { return name_; }
  Values adjoint(Values a) override {
    see(a[0]);
    return back(std::move(a[0]), &Input::live);
  }
  Values tangent(Values t) override {
    Values out(place.outputs);
    Tensor sum;
    for (size_t i = 0; i < weights_.size() && place.tangent; ++i) {
      if (!place.live(i) || !t[i].defined()) continue;
      Tensor z = std::move(t[i]);
      if (z.dim() == 0 && weights_[i].dim() > 0) z = z.view(1);  // it would yield to the dtype of the weights
      sum = sum.defined() ? plus(std::move(sum), z, weights_[i]) : times(std::move(z), weights_[i]);
    }
    if (sum.defined()) out[0] = to_output(std::move(sum));
    if (!keep && !(place.bent && place.any_wanted())) weights_.clear();
    return out;
  }
  Values second(Values b) override {
    Values out = back(std::move(b[0]), &Input::wanted);
    if (!keep) weights_.clear();
    return out;
  }
  int64_t kept() const override {
    int64_t bytes = 0;
    for (const auto& weight : weights_) bytes += bytes_of({weight});
    return bytes;
  }

 private:
  Values back(Tensor z, bool Input::* asked) const {
    Values out(place.inputs.size());
    if (!z.defined()) return out;
    for (size_t i = 0; i < weights_.size(); ++i) {
      if (!(place.inputs[i].*asked)) continue;
      bool last = true;
      for (size_t j = i + 1; j < weights_.size(); ++j) last = last && !(place.inputs[j].*asked);
      out[i] = to_input(times(last ? std::move(z) : z, weights_[i]), i);
    }
    return out;
  }

  const char* name_;
  Values weights_;
};

// 1 where the first is chosen, 1/2 where they are equal: exact in half the bytes of a float.
Tensor chosen(const Tensor& at_least, const Tensor& equal, at::ScalarType dtype) {
  return at_least.to(at::isReducedFloatingType(dtype) ? dtype : at::kBFloat16).masked_fill_(equal, 0.5);
}

std::unique_ptr<Rule> extremum(Place place, bool max, const Tensor& u, const Tensor& w) {
  Values weights(2);
  const Tensor equal = at::eq(u, w);
  for (size_t i : {0, 1}) {
    if (!place.live(i) && !place.wanted(i)) continue;
    weights[i] = chosen(max == (i == 0) ? at::ge(u, w) : at::le(u, w), equal, u.scalar_type());
  }
  return std::make_unique<Weighted>(std::move(place), max ? "maximum" : "minimum", std::move(weights));
}

}  // namespace

std::unique_ptr<Rule> combination(Place place, const char* name, std::vector<double> factors) {
  return std::make_unique<Combination>(std::move(place), name, std::move(factors));
}
std::unique_ptr<Rule> selection(Place place, const char* name, Tensor mask, size_t yes, size_t no) {
  return std::make_unique<Selection>(std::move(place), name, std::move(mask), yes, no);
}
std::unique_ptr<Rule> larger(Place place, const Tensor& u, const Tensor& w) { return extremum(std::move(place), true, u, w); }
std::unique_ptr<Rule> smaller(Place place, const Tensor& u, const Tensor& w) { return extremum(std::move(place), false, u, w); }

}  // namespace gpfast

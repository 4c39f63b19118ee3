// Rules for products and quotients.
#include "nodes/product.h"

#include "nodes/elementwise.h"

namespace gpfast {
namespace {

using at::Tensor;

class Product final : public Elementwise {
 public:
  Product(Place place, Tensor u, Tensor w) : Elementwise(std::move(place)) {
    others_[0] = std::move(w);
    others_[1] = std::move(u);
  }

  const char* name() const override { return "product"; }
  bool bends() const override { return place.live(0) && place.live(1); }
  Values adjoint(Values a) override {
    Tensor z = std::move(a[0]);
    see(z);
    above_ = reader;
    if (mixed(0) || mixed(1)) a_ = z;
    for (auto& other : others_) other = as_it_lies(std::move(other), z);
    Values out(2);
    if (place.live(0)) out[0] = back(place.live(1) ? z : std::move(z), 0);
    if (place.live(1)) out[1] = back(std::move(z), 1);
    for (size_t i : {0, 1})
      if (!(place.live(i) && place.tangent)) forget(i);
    return out;
  }
  Values tangent(Values t) override {
    Values out(place.outputs);
    Tensor sum;
    for (size_t i : {0, 1}) {
      if (!place.tangent || !place.live(i) || !t[i].defined()) continue;
      Tensor z = mixed(1 - i) ? t[i] : std::move(t[i]);
      sum = sum.defined() ? plus(std::move(sum), z, others_[i]) : times(std::move(z), others_[i]);
    }
    if (sum.defined()) out[0] = to_output(std::move(sum));
    const Tensor a = take(a_);
    for (size_t i : {0, 1}) {
      parts_[i] = mixed(i) && t[1 - i].defined() ? to_input(times(conjugated(std::move(t[1 - i])), a), i) : Tensor();
      parts_[i] = handed_down(std::move(parts_[i]), i);
      if (!keep) forget(i);
    }
    return out;
  }
  Values second(Values values) override {
    Values out(2);
    Tensor b = std::move(values[0]);
    for (size_t i : {0, 1}) {
      if (!place.wanted(i)) continue;
      out[i] = std::move(parts_[i]);
      if (b.defined()) add(out[i], i == 1 || !place.wanted(1) ? std::move(b) : b, i);
      if (!keep) others_[i] = Tensor();
    }
    return out;
  }
  bool repeats_adjoint(size_t input) const override {
    return others_[input].defined() && (a_.defined() || (!bends() && above_.repeats_adjoint()));
  }
  Tensor adjoint_again(size_t input) const override { return back(a_.defined() ? a_ : above_.adjoint_again(), input); }
  OfRows of_rows() const override {
    const size_t live = place.live(0) ? 0 : 1;
    const auto& factor = others_[live];
    if (place.live(1 - live) || place.wanted(1 - live) || !factor.defined()) return {};
    if (factor.sizes() != at::IntArrayRef(place.sizes(live))) return {};  // one of them is broadcast
    return {.factor = factor};
  }
  int64_t kept() const override { return bytes_of({a_, parts_[0], parts_[1], others_[0], others_[1]}); }

 private:
  // Whether a and the other's tangent meet in what input i gets.
  bool mixed(size_t i) const { return place.wanted(i) && place.live(1 - i); }
  void forget(size_t i) {
    if (!(place.bent && place.wanted(i))) others_[i] = Tensor();
  }
  // What input i gets of an adjoint of the output.
  Tensor back(Tensor z, size_t i) const { return to_input(times(std::move(z), conjugate(others_[i])), i); }
  void add(Tensor& part, Tensor b, size_t i) const {
    if (fits(part)) part = plus(std::move(part), b, conjugate(others_[i]));
    else accumulate(part, back(std::move(b), i));
  }

  Reader above_;  // while adjoints arrived
  Tensor others_[2];  // what each input is multiplied with
  Tensor a_;
  Tensor parts_[2];  // of what each input gets: a times the other's tangent
};

class Square final : public Elementwise {
 public:
  Square(Place place, Tensor x) : Elementwise(std::move(place)), x_(std::move(x)) {}

  const char* name() const override { return "square"; }
  bool bends() const override { return true; }
  Values adjoint(Values a) override {
    Tensor z = std::move(a[0]);
    see(z);
    if (wanted()) a_ = z;
    x_ = as_it_lies(std::move(x_), z);
    Values out(2);
    out[0] = scaled(times(std::move(z), conjugate(x_)), 2);
    if (!place.tangent) forget();
    return out;
  }
  Values tangent(Values t) override {
    Values out(place.outputs);
    Tensor z = std::move(t[0]);
    t = Values();
    if (z.defined() && wanted()) t_ = z;
    if (z.defined() && place.tangent) out[0] = scaled(times(std::move(z), x_), 2);
    if (!keep) forget();
    z = Tensor();
    if (!place.bent) part_ = finish(Tensor());
    return out;
  }
  Values second(Values b) override {
    Values out(2);
    out[0] = place.bent ? finish(std::move(b[0])) : std::move(part_);
    return out;
  }
  int64_t kept() const override { return bytes_of({x_, a_, t_, part_}); }

 private:
  bool wanted() const { return place.wanted(0) || place.wanted(1); }
  void forget() {
    if (!(place.bent && wanted())) x_ = Tensor();
  }
  Tensor finish(Tensor b) {
    Tensor a = take(a_), t = std::move(t_), sum;
    if (b.defined()) sum = times(std::move(b), conjugate(x_));
    if (t.defined()) t = conjugated(std::move(t));
    if (t.defined()) sum = sum.defined() ? plus(std::move(sum), a, t) : times(std::move(a), t);
    if (!keep) x_ = Tensor();
    return sum.defined() ? scaled(std::move(sum), 2) : sum;
  }

  Tensor x_, a_, t_, part_;
};

// With s = t_w / w and t_y = (t_u - u s) / w: b_u = (b - a s) / w, b_w = -(u b_u + a t_y) / w; of complex values, with the
// conjugates of u, w, s and t_y.
class Quotient final : public Elementwise {
 public:
  Quotient(Place place, Tensor u, Tensor w) : Elementwise(std::move(place)), u_(std::move(u)), w_(std::move(w)) {}

  const char* name() const override { return "quotient"; }
  bool bends() const override { return place.live(1); }
  Values adjoint(Values a) override {
    Tensor z = std::move(a[0]);
    see(z);
    if (place.wanted(1) || (place.wanted(0) && place.live(1))) a_ = z;
    u_ = as_it_lies(std::move(u_), z);
    w_ = as_it_lies(std::move(w_), z);
    Values out(2);
    z = over(std::move(z), conjugate(w_));
    if (place.live(0)) out[0] = to_input(place.live(1) ? z : std::move(z), 0);
    if (place.live(1)) out[1] = to_divisor(times(std::move(z), conjugate(u_)));
    if (!place.live(1) && !(place.bent && place.wanted(1))) u_ = Tensor();
    return out;
  }
  Values tangent(Values t) override {
    Values out(place.outputs);
    Tensor sum = std::move(t[0]);
    if (place.live(1) && t[1].defined()) {
      s_ = over(std::move(t[1]), w_);
      sum = sum.defined() ? plus(std::move(sum), u_, s_, -1) : at::mul(u_, s_).neg_();
    }
    if (sum.defined() && (place.tangent || place.wanted(1))) sum = to_output(over(std::move(sum), w_));
    if (place.wanted(1)) t_ = sum;
    if (!(place.wanted(1) || place.wanted(0))) s_ = Tensor();
    if (place.tangent) out[0] = std::move(sum);
    sum = Tensor();
    if (!place.bent) parts_ = finish(Tensor());
    return out;
  }
  Values second(Values b) override { return place.bent ? finish(std::move(b[0])) : std::move(parts_); }
  int64_t kept() const override {
    int64_t bytes = bytes_of({u_, w_, a_, s_, t_});
    for (const auto& part : parts_) bytes += bytes_of({part});
    return bytes;
  }

 private:
  // The sum of -z / w over what one entry of w is broadcast to.
  Tensor to_divisor(Tensor z) const {
    z = reduced_to(std::move(z), w_.sizes(), dtype_);
    return cast((ours(z) ? z.div_(conjugate(w_)) : at::div(z, conjugate(w_))).neg_(), place.dtype(1));
  }
  Values finish(Tensor b) {
    Values out(2);
    Tensor a = take(a_), s = std::move(s_), t = std::move(t_);
    if (s.defined()) s = conjugated(std::move(s));
    if (t.defined()) t = conjugated(std::move(t));
    if (s.defined() && a.defined()) b = b.defined() ? plus(std::move(b), a, s, -1) : at::mul(a, s).neg_();
    s = Tensor();
    if (b.defined()) b = over(std::move(b), conjugate(w_));
    if (place.wanted(0) && b.defined()) out[0] = to_input(place.wanted(1) ? b : std::move(b), 0);
    if (place.wanted(1)) {
      if (b.defined()) b = times(std::move(b), conjugate(u_));
      if (t.defined()) b = b.defined() ? plus(std::move(b), a, t) : times(std::move(a), t);
      if (b.defined()) out[1] = to_divisor(std::move(b));
    }
    if (!keep) u_ = w_ = Tensor();
    return out;
  }

  Tensor u_, w_, a_, s_, t_;
  Values parts_;
};

}  // namespace

std::unique_ptr<Rule> product(Place place, Tensor u, Tensor w) {
  return std::make_unique<Product>(std::move(place), std::move(u), std::move(w));
}
std::unique_ptr<Rule> square(Place place, Tensor x) { return std::make_unique<Square>(std::move(place), std::move(x)); }
std::unique_ptr<Rule> quotient(Place place, Tensor u, Tensor w) {
  return std::make_unique<Quotient>(std::move(place), std::move(u), std::move(w));
}

}  // namespace gpfast

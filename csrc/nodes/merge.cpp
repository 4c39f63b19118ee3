// Rules for cat, stack, split and unbind: the parts of a whole along a dimension.
#include "nodes/merge.h"

#include <ATen/WrapDimUtils.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/split_with_sizes.h>
#include <ATen/ops/unbind.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/function.h>

namespace gpfast {
namespace {

using Ints = std::vector<int64_t>;

// Where the parts lie in the whole. stacked: a part lacks the dimension, and has length 1 in it.
struct Parts {
  int64_t dim;
  Ints lengths, starts;
  int64_t total = 0;
  bool stacked;

  Parts(int64_t along, Ints lengths_of, bool without) : dim(along), lengths(std::move(lengths_of)), stacked(without) {
    for (const auto length : lengths) {
      starts.push_back(total);
      total += length;
    }
  }

  at::Tensor part(const at::Tensor& whole, size_t i) const {
    return stacked ? whole.select(dim, starts[i]) : whole.narrow(dim, starts[i], lengths[i]);
  }

  // With zeros for parts that are undefined; undefined where all are.
  at::Tensor whole(Values parts) const {
    size_t present = 0, last = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      if (!parts[i].defined()) continue;
      if (!lengths[i]) {
        parts[i] = at::Tensor();
        continue;
      }
      if (stacked) parts[i] = parts[i].unsqueeze(dim);
      ++present;
      last = i;
    }
    if (!present) return {};
    if (present == 1) return among_zeros(std::move(parts[last]), starts[last]);
    return joined(std::move(parts), last);
  }

 private:
  at::Tensor among_zeros(at::Tensor part, int64_t start) const {
    const int64_t length = part.size(dim);
    if (length == total) return part;
    Ints pad(2 * (part.dim() - dim));
    pad[pad.size() - 2] = start;
    pad[pad.size() - 1] = total - start - length;
    return at::constant_pad_nd(part, pad, 0);
  }

  at::Tensor joined(Values parts, size_t some) const {
    auto sizes = parts[some].sizes().vec();
    const auto options = parts[some].options().memory_format(parts[some].suggest_memory_format());
    std::vector<at::Tensor> list;
    int64_t gap = 0;
    const auto fill = [&] {
      if (!gap) return;
      sizes[dim] = gap;
      list.push_back(at::zeros(sizes, options));
      gap = 0;
    };
    for (size_t i = 0; i < parts.size(); ++i) {
      if (parts[i].defined()) {
        fill();
        list.push_back(std::move(parts[i]));
      } else {
        gap += lengths[i];
      }
    }
    fill();
    return at::cat(list, dim);
  }
};

at::Tensor as(at::Tensor tensor, at::ScalarType dtype) { return tensor.scalar_type() == dtype ? tensor : tensor.to(dtype); }

class Together final : public Rule {
 public:
  Together(const Place& place, Parts parts, at::ScalarType dtype) : Rule(place), parts_(std::move(parts)), dtype_(dtype) {}

  const char* name() const override { return parts_.stacked ? "stack" : "cat"; }

  Values adjoint(Values a) override {
    return taken_apart(std::move(a[0]), [this](size_t i) { return place.live(i); });
  }

  Values tangent(Values t) override {
    Values out(1);
    if (!place.tangent) return out;
    for (auto& value : t)
      if (value.defined()) value = as(std::move(value), dtype_);
    out[0] = parts_.whole(std::move(t));
    return out;
  }

  Values second(Values b) override {
    return taken_apart(std::move(b[0]), [this](size_t i) { return place.wanted(i); });
  }

  int64_t kept() const override { return 0; }

 private:
  template <typename F>
  Values taken_apart(const at::Tensor& whole, F asked) const {
    Values out(place.inputs.size());
    if (!whole.defined()) return out;
    for (size_t i = 0; i < out.size(); ++i)
      if (asked(i) && parts_.lengths[i]) out[i] = as(parts_.part(whole, i), place.dtype(i));
    return out;
  }

  Parts parts_;
  at::ScalarType dtype_;  // of the output
};

class Apart final : public Rule {
 public:
  Apart(const Place& place, Parts parts) : Rule(place), parts_(std::move(parts)) {}

  const char* name() const override { return parts_.stacked ? "unbind" : "split"; }

  Values adjoint(Values a) override { return put_together(std::move(a)); }

  Values tangent(Values t) override {
    if (!t[0].defined() || !place.tangent) return Values(place.outputs);
    const auto parts = parts_.stacked ? at::unbind(t[0], parts_.dim) : at::split_with_sizes(t[0], parts_.lengths, parts_.dim);
    return Values(parts.begin(), parts.end());
  }

  Values second(Values b) override { return place.wanted(0) ? put_together(std::move(b)) : Values(1); }

  int64_t kept() const override { return 0; }

 private:
  Values put_together(Values parts) const {
    Values out(1);
    out[0] = parts_.whole(std::move(parts));
    return out;
  }

  Parts parts_;
};

std::unique_ptr<Rule> together(const Place& place, int64_t dim, Ints lengths, const std::vector<at::ScalarType>& dtypes,
                               bool stacked) {
  const auto& output = place.node->input_metadata(0);
  const auto dtype = c10::typeMetaToScalarType(output.dtype());
  // A complex whole of real parts is linear in them over the real numbers only.
  for (const auto part : dtypes)
    if (part != dtype && c10::isComplexType(dtype)) return nullptr;
  dim = c10::maybe_wrap_dim(dim, static_cast<int64_t>(output.shape_as_dim_vector().size()));
  return std::make_unique<Together>(place, Parts(dim, std::move(lengths), stacked), dtype);
}

std::unique_ptr<Rule> apart(const Place& place, int64_t dim, Ints lengths, bool stacked) {
  dim = c10::maybe_wrap_dim(dim, static_cast<int64_t>(place.sizes(0).size()));
  return std::make_unique<Apart>(place, Parts(dim, std::move(lengths), stacked));
}

}  // namespace

std::unique_ptr<Rule> cat(const Place& place, int64_t dim, Ints lengths, const std::vector<at::ScalarType>& dtypes) {
  return together(place, dim, std::move(lengths), dtypes, /*stacked=*/false);
}

std::unique_ptr<Rule> stack(const Place& place, int64_t dim, const std::vector<at::ScalarType>& dtypes) {
  return together(place, dim, Ints(place.inputs.size(), 1), dtypes, /*stacked=*/true);
}

std::unique_ptr<Rule> split(const Place& place, int64_t dim, Ints lengths) {
  return apart(place, dim, std::move(lengths), /*stacked=*/false);
}

std::unique_ptr<Rule> unbind(const Place& place, int64_t dim) {
  return apart(place, dim, Ints(place.outputs, 1), /*stacked=*/true);
}

}  // namespace gpfast

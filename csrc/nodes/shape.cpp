// Rules for views, expansion, slices, indexing and padding.
#include "nodes/shape.h"

#include <ATen/ops/_index_put_impl.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/diag_embed.h>
#include <ATen/ops/diagonal_backward.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/index.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/masked_select.h>
#include <ATen/ops/select_backward.h>
#include <ATen/ops/slice_backward.h>
#include <ATen/ops/take.h>
#include <ATen/ops/unfold_backward.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/function.h>

#include <algorithm>

#include "nodes/indices.h"
#include "ops/relayout.h"

namespace gpfast {
namespace {

using at::Tensor;
using Ints = std::vector<int64_t>;

// Linear, of one input, without parameters. Back: J^T, of the second adjoint as of the adjoint. Forth: J; part: it is a view, so
// what arrives can be added to that part of what is there.
template <bool part, typename Back, typename Forth>
class Linear final : public Rule {
 public:
  Linear(const Place& place, const char* label, Back back, Forth forth, int64_t kept)
      : Rule(place), label_(label), back_(std::move(back)), forth_(std::move(forth)), kept_(kept) {}

  const char* name() const override { return label_; }
  Values adjoint(Values a) override { return pulled(std::move(a)); }
  Values tangent(Values t) override { return place.tangent ? mapped(forth_, std::move(t)) : Values(1); }
  Values second(Values b) override { return place.wanted(0) ? pulled(std::move(b)) : Values(1); }
  bool takes_second() const override { return true; }
  int64_t kept() const override { return kept_; }

 private:
  Values pulled(Values values) {
    if (!part || !values[0].defined() || !ours(onto[0])) return mapped(back_, std::move(values));
    forth_(onto[0]).add_(values[0]);
    return {std::move(onto[0])};
  }

  template <typename F>
  static Values mapped(const F& f, Values values) {
    if (values[0].defined()) values[0] = f(std::move(values[0]));
    return values;
  }

  const char* label_;
  Back back_;
  Forth forth_;
  int64_t kept_;
};

template <typename Back, typename Forth>
std::unique_ptr<Rule> linear(const Place& place, const char* name, Back back, Forth forth, int64_t kept = 0) {
  return std::make_unique<Linear<false, Back, Forth>>(place, name, std::move(back), std::move(forth), kept);
}

template <typename Back, typename Forth>
std::unique_ptr<Rule> part(const Place& place, const char* name, Back back, Forth forth) {
  return std::make_unique<Linear<true, Back, Forth>>(place, name, std::move(back), std::move(forth), 0);
}

Sizes output_sizes(const Place& place) { return sizes_of(place.node->input_metadata(0)); }

// What lies in one piece in order is the same memory on either side: a gate above may be lent to what is below, and an adjoint from
// above repeated.
class Reshape final : public Rule {
 public:
  explicit Reshape(const Place& place) : Rule(place), in_(place.sizes(0)), out_(output_sizes(place)) {}

  const char* name() const override { return "view"; }
  Values adjoint(Values a) override {
    above_ = reader;
    return as(in_, std::move(a));
  }
  Values tangent(Values t) override { return place.tangent ? as(out_, std::move(t)) : Values(1); }
  Values second(Values b) override { return place.wanted(0) ? as(in_, std::move(b)) : Values(1); }
  bool takes_second() const override { return true; }
  int64_t kept() const override { return 0; }

  GateOfBits lend(const Order& order) override {
    const bool whole = reader && order == contiguous_order(static_cast<int64_t>(in_.size()));
    return whole ? reader.rule->lend(contiguous_order(static_cast<int64_t>(out_.size()))) : GateOfBits{};
  }
  bool repeats_adjoint(size_t /*input*/) const override { return above_.repeats_adjoint(); }
  Tensor adjoint_again(size_t /*input*/) const override { return reshaped(above_.adjoint_again(), in_); }

 private:
  static Values as(const Sizes& sizes, Values values) {
    if (values[0].defined()) values[0] = reshaped(values[0], sizes);
    return values;
  }

  const Sizes in_, out_;
  Reader above_;  // while adjoints arrived
};

int64_t wrapped(int64_t dim, int64_t dims) { return dim < 0 ? dim + dims : dim; }

// A view where no element is in two of them.
Tensor windows(const Tensor& z, int64_t dim, int64_t size, int64_t step) {
  const Tensor found = z.unfold(dim, size, step);
  return step < size ? found.clone() : found;
}

// Pads for constant_pad_nd, which counts dimensions from the last.
Tensor padded(const Tensor& tensor, int64_t dim, int64_t before, int64_t after) {
  if (!before && !after) return tensor;
  Ints pad(2 * (tensor.dim() - dim));
  pad[pad.size() - 2] = before;
  pad[pad.size() - 1] = after;
  return at::constant_pad_nd(tensor, pad, 0);
}

// Whether elements may share a place.
bool overlap(const Ints& sizes, const Ints& strides) {
  std::vector<std::pair<int64_t, int64_t>> steps;  // of the dimensions, inner ones first
  for (size_t i = 0; i < sizes.size(); ++i)
    if (sizes[i] > 1) steps.emplace_back(strides[i], sizes[i]);
  std::sort(steps.begin(), steps.end());
  int64_t reached = 0;
  for (const auto& [stride, size] : steps) {
    if (stride <= reached) return true;
    reached += stride * (size - 1);
  }
  return false;
}

}  // namespace

std::unique_ptr<Rule> reshape(const Place& place) { return std::make_unique<Reshape>(place); }

std::unique_ptr<Rule> transpose(const Place& place, int64_t dim0, int64_t dim1) {
  const auto swap = [dim0, dim1](const Tensor& z) { return z.transpose(dim0, dim1); };
  return linear(place, "transpose", swap, swap);
}

std::unique_ptr<Rule> matrix_transpose(const Place& place) {
  const auto swap = [](const Tensor& z) { return z.t(); };
  return linear(place, "transpose", swap, swap);
}

std::unique_ptr<Rule> permute(const Place& place, Ints dims) {
  Ints inverse(dims.size());
  for (size_t i = 0; i < dims.size(); ++i) inverse[wrapped(dims[i], dims.size())] = static_cast<int64_t>(i);
  return linear(
      place, "permute", [inverse](const Tensor& z) { return z.permute(inverse); },
      [dims](const Tensor& z) { return z.permute(dims); });
}

std::unique_ptr<Rule> expand(const Place& place) {
  return linear(
      place, "expand",
      [in = place.sizes(0), dtype = place.dtype(0)](Tensor z) { return reduced_to(std::move(z), in, dtype); },
      [out = output_sizes(place)](const Tensor& z) {
        const Tensor wide = z.expand(out);
        return wide.numel() == z.numel() ? wide : wide.clone();
      });
}

std::unique_ptr<Rule> repeat(const Place& place, Ints repeats) {
  // (r0, r1 * n0, r2 * n1) is seen as (r0, r1, n0, r2, n1), and summed over every r but 1.
  const auto in = place.sizes(0);
  const size_t added = repeats.size() - in.size();
  Sizes apart, sums;
  for (size_t i = 0; i < repeats.size(); ++i) {
    if (repeats[i] != 1) sums.push_back(static_cast<int64_t>(apart.size()));
    if (repeats[i] != 1) apart.push_back(repeats[i]);
    if (i >= added) apart.push_back(in[i - added]);
  }
  return linear(
      place, "repeat",
      [apart, sums, in](const Tensor& z) { return sums.empty() ? z.reshape(in) : z.reshape(apart).sum(at::IntArrayRef(sums)); },
      [repeats](const Tensor& z) { return z.repeat(repeats); });
}

std::unique_ptr<Rule> flip(const Place& place, Ints dims) {
  const auto turn = [dims](const Tensor& z) { return z.flip(dims); };
  return linear(place, "flip", turn, turn);
}

std::unique_ptr<Rule> roll(const Place& place, Ints shifts, Ints dims) {
  Ints opposite;
  for (const auto shift : shifts) opposite.push_back(-shift);
  return linear(
      place, "roll", [opposite, dims](const Tensor& z) { return z.roll(opposite, dims); },
      [shifts, dims](const Tensor& z) { return z.roll(shifts, dims); });
}

std::unique_ptr<Rule> rot90(const Place& place, int64_t k, Ints dims) {
  return linear(
      place, "rot90", [k, dims](const Tensor& z) { return z.rot90(-k, dims); },
      [k, dims](const Tensor& z) { return z.rot90(k, dims); });
}

std::unique_ptr<Rule> slice(const Place& place, int64_t dim, std::optional<int64_t> start, std::optional<int64_t> end,
                            int64_t step) {
  const auto in = place.sizes(0);
  dim = wrapped(dim, in.size());
  const int64_t first = std::clamp<int64_t>(wrapped(start.value_or(0), in[dim]), 0, in[dim]);
  const auto back = [in, dim, first, end, step](const Tensor& z) {
    if (step == 1) return padded(z, dim, first, in[dim] - first - z.size(dim));
    return at::slice_backward(z, in, dim, first, end.value_or(INT64_MAX), step);
  };
  return part(place, "slice", back, [dim, first, end, step](const Tensor& z) { return z.slice(dim, first, end, step); });
}

std::unique_ptr<Rule> select(const Place& place, int64_t dim, int64_t index) {
  const auto in = place.sizes(0);
  dim = wrapped(dim, in.size());
  const auto back = [in, dim, index](const Tensor& z) {
    return in[dim] == 1 ? z.unsqueeze(dim) : at::select_backward(z, in, dim, index);
  };
  return part(place, "select", back, [dim, index](const Tensor& z) { return z.select(dim, index); });
}

std::unique_ptr<Rule> diagonal(const Place& place, int64_t offset, int64_t dim1, int64_t dim2) {
  return part(
      place, "diagonal",
      [in = place.sizes(0), offset, dim1, dim2](const Tensor& z) { return at::diagonal_backward(z, in, offset, dim1, dim2); },
      [offset, dim1, dim2](const Tensor& z) { return z.diagonal(offset, dim1, dim2); });
}

std::unique_ptr<Rule> strided(const Place& place, const Part& view) {
  const auto back = [view](const Tensor& z) { return view.whole_of(z); };
  if (view.in_any_layout()) return part(place, "slice", back, [view](const Tensor& z) { return view.in(z); });
  return linear(place, "slice", back, [view](const Tensor& z) { return view.in(view.laid(z)); });
}

std::unique_ptr<Rule> diag_embed(const Place& place, int64_t offset, int64_t dim1, int64_t dim2) {
  return linear(
      place, "diag_embed", [offset, dim1, dim2](const Tensor& z) { return z.diagonal(offset, dim1, dim2); },
      [offset, dim1, dim2](const Tensor& z) { return at::diag_embed(z, offset, dim1, dim2); });
}

std::unique_ptr<Rule> trace(const Place& place) {
  return linear(
      place, "trace",
      [in = place.sizes(0)](const Tensor& z) {
        auto into = at::zeros(in, z.options());
        into.diagonal().copy_(z);
        return into;
      },
      [](const Tensor& z) { return z.trace(); });
}

std::unique_ptr<Rule> unfold(const Place& place, int64_t dim, int64_t size, int64_t step) {
  return linear(
      place, "unfold",
      [in = place.sizes(0), dim, size, step](const Tensor& z) { return at::unfold_backward(z, in, dim, size, step); },
      [dim, size, step](const Tensor& z) { return windows(z, dim, size, step); });
}

std::unique_ptr<Rule> overlap_add(const Place& place, int64_t dim, int64_t size, int64_t step) {
  return linear(
      place, "overlap-add", [dim, size, step](const Tensor& z) { return windows(z, dim, size, step); },
      [out = output_sizes(place), dim, size, step](const Tensor& z) { return at::unfold_backward(z, out, dim, size, step); });
}

std::unique_ptr<Rule> as_strided(const Place& place, Ints sizes, Ints strides, int64_t offset) {
  const auto in = place.sizes(0);
  const int64_t all = c10::multiply_integers(in);
  int64_t last = offset;
  for (size_t i = 0; i < sizes.size(); ++i) last += (sizes[i] - 1) * strides[i];
  if (offset < 0 || last >= all || c10::multiply_integers(sizes) == 0) return nullptr;
  // The places that it reads, where one is read more than once.
  Tensor index;
  if (overlap(sizes, strides)) {
    const auto places = at::arange(all, at::dtype(at::kLong).device(place.node->input_metadata(0).device()));
    index = places.as_strided(sizes, strides, offset).reshape(-1);
  }
  const auto back = [in, all, sizes, strides, offset, index](const Tensor& z) {
    auto into = at::zeros({all}, z.options());
    if (index.defined()) return into.index_add_(0, index, z.reshape(-1)).view(in);
    into.as_strided(sizes, strides, offset).copy_(z);
    return into.view(in);
  };
  const auto forth = [sizes, strides, offset](const Tensor& z) {
    const auto base = z.contiguous();
    return base.as_strided(sizes, strides, base.storage_offset() + offset).clone();
  };
  return linear(place, "as_strided", back, forth, bytes_of({index}));
}

std::unique_ptr<Rule> constant_pad(const Place& place, Ints pad) {
  const auto back = [pad](Tensor z) {
    Ints cropped(pad.size());  // what the forward cut off is zero
    bool any = false;
    for (size_t i = 0; i < pad.size(); i += 2) {
      const int64_t dim = z.dim() - 1 - static_cast<int64_t>(i / 2);
      const int64_t before = std::max<int64_t>(pad[i], 0), after = std::max<int64_t>(pad[i + 1], 0);
      if (before || after) z = z.narrow(dim, before, z.size(dim) - before - after);
      cropped[i] = before - pad[i];
      cropped[i + 1] = after - pad[i + 1];
      any |= cropped[i] || cropped[i + 1];
    }
    return any ? at::constant_pad_nd(z, cropped, 0) : z;
  };
  return linear(place, "pad", back, [pad](const Tensor& z) { return at::constant_pad_nd(z, pad, 0); });
}

std::unique_ptr<Rule> triangle(const Place& place, int64_t diagonal, bool upper) {
  const auto cut = [diagonal, upper](Tensor z) {
    if (ours(z)) return upper ? z.triu_(diagonal) : z.tril_(diagonal);
    return upper ? z.triu(diagonal) : z.tril(diagonal);
  };
  return linear(place, "triangle", cut, cut);
}

namespace {

// On the CPU: elsewhere the number of its elements would be waited for in each sweep.
bool is_mask_of_all(const Place& place, const Tensor& mask) {
  const bool local = mask.is_cpu() && place.node->input_metadata(0).device().is_cpu();
  return local && mask.scalar_type() == at::kBool && mask.dim() && mask.sizes() == at::IntArrayRef(place.sizes(0));
}

// A byte an element, where indices take eight for each dimension.
std::unique_ptr<Rule> masked(const Place& place, const Tensor& mask) {
  return linear(
      place, "index",
      [in = place.sizes(0), mask](const Tensor& z) { return at::zeros(in, z.options()).masked_scatter_(mask, z); },
      [mask](const Tensor& z) { return at::masked_select(z, mask); }, bytes_of({mask}));
}

}  // namespace

std::unique_ptr<Rule> cumsum(const Place& place, int64_t dim) {
  const auto back = [dim](const Tensor& z) { return z.dim() ? z.flip(dim).cumsum(dim).flip(dim) : z; };
  return linear(place, "cumsum", back, [dim](const Tensor& z) { return z.cumsum(dim); });
}

std::unique_ptr<Rule> index(const Place& place, const std::vector<Tensor>& indices) {
  size_t given = 0, first = 0;
  for (size_t i = 0; i < indices.size(); ++i)
    if (indices[i].defined() && !given++) first = i;
  if (given == 1 && is_mask_of_all(place, indices[first])) return masked(place, indices[first]);
  const auto places = as_places(place, indices, given == 1 ? std::optional(output_sizes(place)[first]) : std::nullopt);
  if (!places) return nullptr;
  return linear(
      place, "index",
      [in = place.sizes(0), list = *places](const Tensor& z) {
        auto into = at::zeros(in, z.options());
        return at::_index_put_impl_(into, list, z, /*accumulate=*/true, /*unsafe=*/true);
      },
      [list = *places](const Tensor& z) { return at::index(z, list); }, bytes_of(*places));
}

std::unique_ptr<Rule> index_select(const Place& place, int64_t dim, Tensor index) {
  const auto kept = bytes_of({index});
  return linear(
      place, "index_select",
      [in = place.sizes(0), dim, index](const Tensor& z) { return at::zeros(in, z.options()).index_add_(dim, index, z); },
      [dim, index](const Tensor& z) { return at::index_select(z, dim, index); }, kept);
}

std::unique_ptr<Rule> gather(const Place& place, int64_t dim, Tensor index) {
  const auto kept = bytes_of({index});
  return linear(
      place, "gather",
      [in = place.sizes(0), dim, index](const Tensor& z) { return at::zeros(in, z.options()).scatter_add_(dim, index, z); },
      [dim, index](const Tensor& z) { return at::gather(z, dim, index); }, kept);
}

std::unique_ptr<Rule> take(const Place& place, Tensor index) {
  const auto kept = bytes_of({index});
  return linear(
      place, "take",
      [in = place.sizes(0), index](const Tensor& z) { return at::zeros(in, z.options()).put_(index, z, /*accumulate=*/true); },
      [index](const Tensor& z) { return at::take(z, index); }, kept);
}

}  // namespace gpfast

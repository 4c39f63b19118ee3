#include "nodes/overwrite.h"

#include <ATen/ops/_index_put_impl.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/index.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/masked_scatter_backward.h>
#include <ATen/ops/masked_select.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/function.h>

#include <algorithm>

#include "nodes/indices.h"
#include "nodes/values.h"

namespace gpfast {
namespace {

using at::Tensor;

bool share(const Tensor& one, const Tensor& other) { return one.storage().is_alias_of(other.storage()); }

// y = h where nothing is written, and the source there.
class Overwriting final : public Rule {
 public:
  Overwriting(const Place& place, Overwrite how)
      : Rule(place), how_(std::move(how)), sizes_(sizes_of(place.node->input_metadata(0))) {}

  const char* name() const override { return how_.name; }
  Values adjoint(Values a) override { return back(std::move(a[0]), &Input::live); }
  Values tangent(Values t) override {
    Values out(1);
    if (!place.tangent) return out;
    Tensor whole = place.live(0) ? std::move(t[0]) : Tensor();
    Tensor source = t.size() > 1 && place.live(1) ? std::move(t[1]) : Tensor();
    t.clear();
    if (how_.all) whole = Tensor();
    if (source.defined()) source = cast(std::move(source), dtype());
    out[0] = whole.defined() ? over(std::move(whole), std::move(source)) : among_zeros(source);
    return out;
  }
  Values second(Values b) override { return back(std::move(b[0]), &Input::wanted); }
  int64_t kept() const override { return how_.kept; }

 private:
  at::ScalarType dtype() const { return c10::typeMetaToScalarType(place.node->input_metadata(0).dtype()); }

  Values back(Tensor whole, bool Input::* asked) const {
    Values out(place.inputs.size());
    if (!whole.defined()) return out;
    const bool self = place.inputs[0].*asked && !how_.all, source = out.size() > 1 && place.inputs[1].*asked;
    if (how_.laid) whole = how_.laid(std::move(whole));
    const bool mine = ours(whole);
    if (source) {
      out[1] = reduced_to(how_.read(whole), place.sizes(1), place.dtype(1));
      if (self && mine && share(out[1], whole)) out[1] = out[1].clone();
    }
    if (!self) return out;
    if (how_.clear) {
      if (!mine) whole = whole.clone();
      how_.clear(whole);
    }
    out[0] = reduced_to(std::move(whole), place.sizes(0), place.dtype(0));
    return out;
  }

  Tensor over(Tensor whole, Tensor source) const {
    if (!how_.clear && !source.defined()) return whole;
    whole = expanded(std::move(whole), sizes_);
    if (how_.laid) whole = how_.laid(std::move(whole));
    // A part of the tensor itself, as of a value that was written over and written back.
    if (source.defined() && share(source, whole) && source.numel() < whole.numel()) source = source.clone();
    if (!ours(whole)) whole = whole.clone();
    if (how_.clear && !(how_.replaces && source.defined())) how_.clear(whole);
    if (source.defined()) how_.write(whole, source);
    return whole;
  }

  Tensor among_zeros(const Tensor& source) const {
    if (!source.defined()) return {};
    if (how_.whole_of) return how_.whole_of(source);
    const bool alike = source.dim() == static_cast<int64_t>(sizes_.size());
    const auto format = alike ? source.suggest_memory_format() : at::MemoryFormat::Contiguous;
    auto whole = at::zeros(sizes_, source.options().memory_format(format));
    how_.write(whole, source);
    return whole;
  }

  const Overwrite how_;
  const Sizes sizes_;
};

// Of a view: reading is the view itself.
template <typename View>
Overwrite of_view(const char* name, View view) {
  Overwrite how{.name = name, .read = view};
  how.clear = [view](const Tensor& whole) { view(whole).zero_(); };
  how.write = [view](const Tensor& whole, const Tensor& source) { view(whole).copy_(source); };
  how.replaces = true;
  return how;
}

// One mask from dimension `first` on: it names no place twice, and takes an eighth of its indices or less.
Overwrite of_one_mask(const Tensor& mask, IndexList list, int64_t first, bool add) {
  Overwrite how{.name = "index_put"};
  how.read = [mask, list](const Tensor& whole) {
    return mask.dim() == whole.dim() ? at::masked_select(whole, mask) : at::index(whole, list);
  };
  if (!add) {
    how.clear = [mask, first](const Tensor& whole) {
      Sizes sizes(whole.dim(), 1);
      std::copy(mask.sizes().begin(), mask.sizes().end(), sizes.begin() + first);
      whole.masked_fill_(mask.reshape(sizes), 0);
    };
  }
  how.write = [mask, list, add](const Tensor& whole, const Tensor& source) {
    if (!add && mask.dim() == whole.dim() && source.dim() == 1 && source.numel() > 1) {
      whole.masked_scatter_(mask, source);
      return;
    }
    Tensor into = whole;
    at::_index_put_impl_(into, list, source, /*accumulate=*/add, /*unsafe=*/true);
  };
  how.replaces = true;
  return how;
}

}  // namespace

std::unique_ptr<Rule> overwrite(const Place& place, Overwrite how) { return std::make_unique<Overwriting>(place, std::move(how)); }

Overwrite of_part(const char* name, Part part) {
  auto how = of_view(name, [part](const Tensor& whole) { return part.in(whole); });
  how.all = part.all();
  how.laid = [part](Tensor whole) { return part.laid(std::move(whole)); };
  how.whole_of = [part](const Tensor& source) { return part.whole_of(source); };
  return how;
}

Overwrite of_slice(int64_t dim, std::optional<int64_t> start, std::optional<int64_t> end, int64_t step) {
  return of_view("slice_scatter", [=](const Tensor& whole) { return whole.slice(dim, start, end, step); });
}

Overwrite of_select(int64_t dim, int64_t index) {
  return of_view("select_scatter", [=](const Tensor& whole) { return whole.select(dim, index); });
}

Overwrite of_diagonal(int64_t offset, int64_t dim1, int64_t dim2) {
  return of_view("diagonal_scatter", [=](const Tensor& whole) { return whole.diagonal(offset, dim1, dim2); });
}

Overwrite of_index_fill(int64_t dim, const Tensor& index) {
  Overwrite how{.name = "index_fill"};
  how.clear = [dim, index](const Tensor& whole) { whole.index_fill_(dim, index, 0); };
  how.kept = bytes_of({index});
  return how;
}

Overwrite of_index_add(int64_t dim, const Tensor& index, double alpha) {
  Overwrite how{.name = "index_add"};
  how.read = [dim, index, alpha](const Tensor& whole) { return scaled(at::index_select(whole, dim, index), alpha); };
  how.write = [dim, index, alpha](const Tensor& whole, const Tensor& source) {
    whole.index_add_(dim, index, source, alpha);
  };
  how.kept = bytes_of({index});
  return how;
}

Overwrite of_index_copy(int64_t dim, const Tensor& index) {
  auto how = of_index_add(dim, index, 1);
  how.name = "index_copy";
  how.clear = of_index_fill(dim, index).clear;
  return how;
}

Overwrite of_scatter(int64_t dim, const Tensor& index, bool add) {
  Overwrite how{.name = add ? "scatter_add" : "scatter"};
  how.read = [dim, index](const Tensor& whole) { return at::gather(whole, dim, index); };
  if (!add) how.clear = [dim, index](const Tensor& whole) { whole.scatter_(dim, index, 0); };
  how.write = [dim, index](const Tensor& whole, const Tensor& source) { whole.scatter_add_(dim, index, source); };
  how.kept = bytes_of({index});
  return how;
}

Overwrite of_mask(const Tensor& mask, const Sizes& source) {
  Overwrite how{.name = "masked_scatter"};
  how.read = [mask, source](const Tensor& whole) { return at::masked_scatter_backward(whole, mask, source); };
  how.clear = [mask](const Tensor& whole) { whole.masked_fill_(mask, 0); };
  how.kept = bytes_of({mask});
  how.write = [mask](const Tensor& whole, const Tensor& source) { whole.masked_scatter_(mask, source); };
  how.replaces = true;
  return how;
}

std::optional<Overwrite> of_indices(const Place& place, const std::vector<Tensor>& indices, bool add) {
  const auto given = std::count_if(indices.begin(), indices.end(), [](const Tensor& one) { return one.defined(); });
  const auto only = std::find_if(indices.begin(), indices.end(), [](const Tensor& one) { return one.defined(); });
  if (given == 1 && only->scalar_type() == at::kBool && only->dim() && only->device() == place.node->input_metadata(0).device()) {
    IndexList list;
    for (const auto& one : indices) list.push_back(one.defined() ? std::optional(one) : std::nullopt);
    auto how = of_one_mask(*only, list, only - indices.begin(), add);
    how.kept = bytes_of(list);
    return how;
  }
  const auto places = as_places(place, indices, std::nullopt);
  if (!places) return std::nullopt;
  Overwrite how{.name = "index_put"};
  how.read = [list = *places](const Tensor& whole) { return at::index(whole, list); };
  if (!add) {
    how.clear = [list = *places, zero = std::make_shared<Tensor>()](const Tensor& whole) {
      Tensor into = whole;
      if (!zero->defined()) *zero = at::zeros({}, whole.options());
      at::_index_put_impl_(into, list, *zero, /*accumulate=*/false, /*unsafe=*/true);
    };
  }
  how.write = [list = *places](const Tensor& whole, const Tensor& source) {
    Tensor into = whole;
    at::_index_put_impl_(into, list, source, /*accumulate=*/true, /*unsafe=*/true);
  };
  how.kept = bytes_of(*places);
  return how;
}

}  // namespace gpfast

#include "saved.h"

#include <torch/csrc/autograd/generated/Functions.h>

#include <typeindex>
#include <unordered_map>

namespace gpfast {
namespace {

using namespace torch::autograd::generated;
using torch::autograd::SavedVariable;
using Ints = std::vector<int64_t>;
using Made = std::unique_ptr<Rule>;
using Maker = Made (*)(Node&, const Place&);
using Table = std::unordered_map<std::type_index, Maker>;

// What an operation saved of its inputs, or of its own result. Raises as autograd does where it was written to since, or freed.
at::Tensor input(const SavedVariable& saved) { return saved.unpack(); }
at::Tensor result(const SavedVariable& saved, Node& node) { return saved.unpack(node.getptr()); }
int64_t integer(const c10::SymInt& value) { return value.guard_int(__FILE__, __LINE__); }
Ints integers(const std::vector<c10::SymInt>& values) {
  Ints out;
  out.reserve(values.size());
  for (const auto& value : values) out.push_back(integer(value));
  return out;
}
std::optional<Ints> integers(const c10::OptionalArray<c10::SymInt>& values) {
  if (!values.list) return std::nullopt;
  return integers(*values.list);
}

// on<ReluBackward0>(table, [](auto& node, const Place& place) -> Made { ... });
template <typename T, typename F>
void on(Table& table, F) {
  table.emplace(typeid(T), [](Node& node, const Place& place) -> Made { return F{}(static_cast<T&>(node), place); });
}

// Linear maps: nodes/linear.h, nodes/matmul.h, nodes/attention.h

void linear_maps(Table& table) {}

// Convolutions: nodes/convolution.h

void convolutions(Table& table) {}

// Activations: nodes/activation.h, nodes/softmax.h, nodes/dropout.h

void activations(Table& table) {}

// Normalisation: nodes/normalize.h

void normalizations(Table& table) {}

// Arithmetic and reductions: nodes/arithmetic.h, nodes/reduce.h

void arithmetic_and_reductions(Table& table) {}

// Shapes: nodes/shape.h, nodes/merge.h

void shapes(Table& table) {}

// Pooling and resampling: nodes/pool.h, nodes/resample.h

void pools(Table& table) {}

const Table& table() {
  static const Table made = [] {
    Table all;
    for (auto* add : {&linear_maps, &convolutions, &activations, &normalizations, &arithmetic_and_reductions, &shapes, &pools})
      add(all);
    return all;
  }();
  return made;
}

thread_local bool enabled = true;

}  // namespace

bool has_rule(const Node& node) { return enabled && table().count(typeid(node)); }

std::unique_ptr<Rule> rule_for(Node& node, const Place& place) {
  if (!enabled) return nullptr;
  const auto found = table().find(typeid(node));
  return found == table().end() ? nullptr : found->second(node, place);
}

void set_rules_enabled(bool value) { enabled = value; }
bool rules_enabled() { return enabled; }

}  // namespace gpfast

#pragma once
// The one place where PyTorch's generated node structs are read: from a node's type to the rule made of what it saved.
#include <c10/core/TensorImpl.h>

#include <vector>

#include "rule.h"

namespace gpfast {

// The versions of what rules have read of a graph. A rule holds plain tensors: autograd, which unpacks what it saved each time it is
// needed, would notice that one of them has been written to in between.
class Versions {
 public:
  void note(const at::Tensor& read);
  // Raises as autograd does where anything that was read has been written to since.
  void check() const;

 private:
  std::vector<std::pair<c10::VariableVersion, uint32_t>> read_;
};

// The rule for a node at its place in the plan; null where there is none, and the node runs alone. What it reads is noted. hooked: set
// where hooks unpacked any of it.
std::unique_ptr<Rule> rule_for(Node& node, const Place& place, Versions* versions, bool& hooked);
// Whether the operation does not bend, takes samples one by one, each with its share of dimension 0 of its values, and has a rule: what
// is certain from the node alone.
bool passes_ratio(const Node& node, const Place& place, int64_t samples);
// Whether its rule takes Rule::ratio for second adjoints.
bool knows_ratio(const Node& node);
// Of a node just made, whose operation saved the result of an activation that saved its own input: that one holds the result
// instead, of so many bytes at least.
void share_inputs(const Node& made, size_t least);
// Whether any rule is for nodes of this type.
bool has_rule(const Node& node);
// Whether the node is that of a matrix' transpose.
bool is_transpose(const Node& node);
// Tests compare every rule with its node run alone: switches all rules off, in this thread.
void set_rules_enabled(bool enabled);
bool rules_enabled();

}  // namespace gpfast

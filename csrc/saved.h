#pragma once
// The one place where PyTorch's generated node structs are read: from a node's type to the rule made of what it saved.
#include "rule.h"

namespace gpfast {

// The rule for a node at its place in the plan; null where there is none, and the node runs alone.
std::unique_ptr<Rule> rule_for(Node& node, const Place& place);
// Whether any rule is for nodes of this type.
bool has_rule(const Node& node);
// Whether the node is that of a matrix' transpose.
bool is_transpose(const Node& node);
// Tests compare every rule with its node run alone: switches all rules off, in this thread.
void set_rules_enabled(bool enabled);
bool rules_enabled();

}  // namespace gpfast

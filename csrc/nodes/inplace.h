#pragma once
// Operations that overwrite a view: autograd differentiates them as an operation on the view's base.
#include "graph.h"
#include "nodes/part.h"
#include "rule.h"

namespace gpfast {

// The place that the operation's own node has, of which the view is input 0 and the only output.
Place place_on_view(const Place& place, const Node& operation);
// The rule of an operation that overwrote all of its base through a view in the same order, where `inner` is that of the operation
// itself and `operation` its node, which it may read from.
std::unique_ptr<Rule> on_view(const Place& place, NodePtr operation, std::unique_ptr<Rule> inner);

// The same where the view is a part of the base, or all of it in another order.
std::unique_ptr<Rule> on_part(const Place& place, NodePtr operation, std::unique_ptr<Rule> inner, Part part);

}  // namespace gpfast

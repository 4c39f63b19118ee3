#pragma once
// Reading autograd's graph: which nodes depend on the points, in what order, and where the parameters join.
#include <string>
#include <vector>

#include "graph.h"
#include "rule.h"

namespace gpfast {

class Alone;

// Where an input of a step comes from: an output of another step, one of the points, or the parameter side; or from nowhere.
struct Source {
  int step = -1;
  uint32_t output = 0;
  int target = -1;
  int side = -1;
  bool transposed = false;  // the side is where the gradient's transpose goes
};

// A place of the graph that a node's derivative depends on although it is no input of the node, and where its gradient belongs:
// at sources[0], or, where nodes outside the plan lie between, at the sources of what those lead to.
struct Escape {
  Edge edge;
  std::vector<NodePtr> between;  // from the edge down
  edge_list ends;                // one a source, where anything lies between
  std::vector<Source> sources;   // of neither step nor target on the parameter side
};

constexpr int kNobody = -1, kSeveral = -2;
struct ReadBy {
  int step = kNobody;
  size_t input = 0;
};

// A live node: the points can be reached from it.
struct Step {
  NodePtr node;
  c10::SmallVector<Source, 3> sources;  // one an input
  Place place;
  std::unique_ptr<Rule> rule;  // made in the adjoint sweep
  Alone* alone = nullptr;      // the rule, where it is the one that runs the node by PyTorch
  Values a, t, b;              // one an output; each only between its sweep's writer and reader
  c10::SmallVector<int, 2> uses;  // of the tangents, one an output
  ReadBy reader;  // the only step that reads the output, as which of its inputs, where there is no more than that
  bool runs_tangent = false, runs_second = false;
  bool awaits_second = false;  // a second adjoint may arrive although no adjoint does
  bool sink = false;  // one of Plan::sinks
  at::Tensor held;    // the output's adjoint, whose multiple by Rule::ratio will be the second adjoint
  std::vector<Escape> escapes;  // of a step that runs alone
};

struct Plan {
  std::vector<Step> steps;  // from the points to the scores
  edge_list targets;        // the points
  std::vector<bool> target_wanted;
  edge_list sides;  // the parameter side: distinct edges that leave the live nodes
  std::vector<Source> roots;  // the outputs; step is -1 where an output does not depend on the points
  bool half = false;          // some of it is in float16, whose range is short
  size_t lowest_custom = SIZE_MAX;  // step of a Function written in Python, whose derivative may depend on values it was not given
  // DistributedDataParallel's marks in the graph of what it returns: identities, whose call in the backward pass that reaches the
  // parameters tells it to reduce their gradients at its end.
  std::vector<NodePtr> sinks;
  std::string refused;        // why the graph must be differentiated whole, by autograd; empty where it need not
};

// The plan of the graph that leads from `outputs` to `targets`. Without `derivatives`, nothing is wanted beyond the adjoints.
Plan read_graph(const edge_list& outputs, const edge_list& targets, bool derivatives);
// Where a gradient that arrives at `edges` belongs.
std::vector<Escape> find_escapes(const Plan& plan, const edge_list& edges);

}  // namespace gpfast

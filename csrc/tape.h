#pragma once
// The sweeps over a plan.
#include "dense_run.h"
#include "plan.h"
#include "saved.h"
#include "waist.h"
#include "watch.h"

namespace gpfast {

class Tape {
 public:
  // release: the graph is nobody else's, so what it saved is freed as the sweeps pass. later: others work between adjoint and
  // finish, and may write to what the rules hold. adding: finish will be given gradients to add to, one at a time.
  Tape(Plan plan, bool release, bool later, bool adding)
      : plan_(std::move(plan)), release_(release), later_(later), adding_(adding) {}

  // From the scores down. seeds: one an output, undefined for zero. bent: finish will be given second adjoints of the outputs.
  // Returns the gradient at each point, undefined where there is none; of points in float16 in float32.
  variable_list adjoint(variable_list seeds, bool bent);
  // Tangent sweep from the points' tangents v up, then the last sweep down from the outputs' second adjoints b, each undefined for
  // zero. Returns the gradient at every edge of edges(), undefined for zero, to be multiplied by unscale() where that is defined.
  // keep: it will be called again. begun: gradients at edges() that are added to.
  variable_list finish(variable_list v, variable_list b, bool keep, variable_list begun = {});

  // The parameter side, then the points that lead on. Complete after adjoint.
  const edge_list& edges() const { return edges_; }
  const Plan& plan() const { return plan_; }
  bool finished() const { return finished_; }
  const at::Tensor& unscale() const { return unscale_; }

 private:
  void scale_adjoints(variable_list& seeds);
  void unscale_gradients(variable_list& gradients) const;
  void scale_tangents(variable_list& v, variable_list& b);
  bool make_rule(Step& step);
  void make_rules(size_t at);
  void settle(Step& step);
  void drop(Step& step);
  void await_second(const Step& step, const Values& out);
  Reader reader(const Step& step) const;
  void offer_adjoints(Step& step);
  at::Tensor* arrived_second(const Source& source, variable_list& grads);  // null where a rule may not add to it
  void offer_second(Step& step, variable_list& grads, bool parameters_only);
  void withdraw_second(Step& step, variable_list& grads);
  bool adjoint_of_run(size_t top, variable_list& gradients);
  void find_makers(Step& step);
  void give_begun(Step& step, variable_list& grads);
  void end_tangent(Step& step, variable_list& grads);
  void give_adjoint(Step& step, Values out, variable_list& gradients);
  void place_escapes(Step& step);
  void admit_second(int index, int made_from);
  void find_waist(size_t at);
  void tangent_sweep(variable_list v, variable_list& grads, size_t begin, size_t end);
  void last_sweep(variable_list& grads, size_t begin, size_t end);
  void pass_waist(variable_list& v, variable_list& grads, bool keep);
  void run_second(Step& step, variable_list& grads);
  void second_of_run(DenseRun& run, variable_list& grads);
  void give_second(const Source& source, at::Tensor value, variable_list& grads);
  void give_escaped(const Escape& escape, at::Tensor value, variable_list& grads);

  Plan plan_;
  bool release_, later_, adding_;
  size_t made_ = 0;  // the lowest step that has a rule
  edge_list edges_;
  std::vector<int> target_edges_, target_uses_;
  std::vector<int> side_uses_;  // of each edge, the steps that have a gradient for it
  bool finished_ = false;
  Versions versions_;
  Waist waist_;
  std::optional<size_t> waist_at_;  // the step
  at::Tensor waist_second_;  // the second adjoint that arrived there
  int exponent_ = 0;    // adjoints are carried times 2^exponent
  at::Tensor unscale_;  // 0-dim float32
  Watched watched_;
  std::vector<std::unique_ptr<DenseRun>> runs_;  // from the scores down
};

}  // namespace gpfast

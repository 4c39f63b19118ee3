#pragma once
// What a rule is: one node of autograd's graph that depends on the points, and its part in the four sweeps.
#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <memory>

#include "ops/activation_launch.h"
#include "ops/gate.h"
#include "ops/launched.h"
#include "ops/relayout.h"
#include "ops/tensors.h"

namespace torch::autograd {
struct InputMetadata;
struct Node;
}

namespace gpfast {

using Node = torch::autograd::Node;
// One tensor an input of the operation (a next edge of the node), or one an output; undefined where there is none.
using Values = c10::SmallVector<at::Tensor, 3>;
using Sizes = c10::SmallVector<int64_t, 6>;

struct Input {
  bool live = false;    // depends on the points: it has an adjoint and a tangent
  bool wanted = false;  // second() must return it: the gradient of a parameter, or the second adjoint of a live input
};

// Where a node stands in the plan. All of it is known when its rule is made, from the scores down.
struct Place {
  const Node* node = nullptr;
  c10::SmallVector<Input, 4> inputs;
  size_t outputs = 1;    // of the operation
  bool bent = false;     // second adjoints may arrive at its outputs
  bool tangent = false;  // the tangent of its outputs is used further up
  bool proportional = false;  // second adjoints are Rule::ratio times the adjoints; rules that do not know it are bent, for parameters

  bool live(size_t i) const { return inputs[i].live; }
  bool wanted(size_t i) const { return inputs[i].wanted; }
  bool any_wanted() const;
  bool parameters_wanted() const;
  // Exactly these inputs are live, in a mask of bits: only(0b10) is input 1 alone.
  bool only(unsigned mask) const;
  // Of an input that has an edge, which every live or wanted one has.
  Sizes sizes(size_t i) const;
  at::ScalarType dtype(size_t i) const;
};

// What a rule does to each row of a matrix, where that is all it does; one of four. Sweeps may then run several in one call
// (dense_run.h).
struct OfRows {
  at::Tensor weight;    // (in, out): y = x @ weight, plus what does not depend on x
  bool wanted = false;  // its gradient
  at::Tensor input;     // x, where second adjoints arrive and it is wanted
  bool sums = false;    // of the second adjoints over the rows: for the gradient of what is added
  at::Tensor decider;   // of the gate
  Gate gate{};
  at::Tensor saved;  // by the smooth activation
  Curve curve{};
  at::Tensor factor;  // y = x * factor
};

class Rule;
// The only operation that reads a value, and as which of its inputs; none where several do.
struct Reader {
  Rule* rule = nullptr;
  size_t input = 0;

  explicit operator bool() const { return rule; }
  bool repeats_adjoint() const;
  at::Tensor adjoint_again() const;
};

// Runs below autograd and with autocast off. Values have the shape and dtype of the operation's input or output, any strides
// (but no overlap), and are moved in: a rule that finds one `ours` may write into it and hand it on. Absent values are undefined:
// an adjoint or tangent of zero is never made, and every function must do with any of its values undefined (of adjoint's and
// tangent's at least one is there; of second's none may be). What a rule no longer needs it lets go of.
class Rule {
 public:
  explicit Rule(Place at) : makers(at.inputs.size()), onto(at.inputs.size()), place(std::move(at)) {}
  virtual ~Rule() = default;

  // For people: the rule's name in explain().
  virtual const char* name() const = 0;
  // Whether inputs get second adjoints although the outputs have none: d2y/dh2 is not zero, or two live inputs are multiplied.
  virtual bool bends() const { return false; }
  // a, one an output of the operation -> J^T a, one an input; read where the input is live.
  virtual Values adjoint(Values a) = 0;
  // t, one an input -> J t, one an output; read where place.tangent. Called where that holds, or bends(), or anything is wanted.
  virtual Values tangent(Values t) = 0;
  // b, one an output -> one an input, where it is wanted: J^T b + d/dh <a, J t>, and for a parameter its gradient.
  // Called after tangent, where anything is wanted and the operation is bent, bends(), or has parameters.
  virtual Values second(Values b) = 0;
  // Of the parameters' gradients what tangent has made, one an input: second then returns the rest. Asked for where second adjoints
  // come and a parameter has other uses, each of which would hold a gradient until the last sweep.
  virtual Values begun() { return {}; }
  // Whether second may be given what place.bent did not announce: it is linear, and holds nothing for it.
  virtual bool takes_second() const { return false; }
  // Bytes the rule holds now, for explain().
  virtual int64_t kept() const = 0;

  // A rule that does nothing but gate what passes, in tangent and in second, leaves that to the rule of the operation below, whose
  // values lie in `order` in memory: that one gates what its tangent returns and what its second is given. No bits where it does
  // not. borrow: called from the scores down before the sweeps that finish.
  virtual GateOfBits lend(const Order& /*order*/) { return {}; }
  virtual void borrow() {}

  // What adjoint returned for a live input, made anew: rules below need not hold it. Until the rule's tangent has run, and where
  // repeats_adjoint, asked after adjoint.
  virtual bool repeats_adjoint(size_t /*input*/) const { return false; }
  virtual at::Tensor adjoint_again(size_t /*input*/) const { return {}; }

  // Where place.proportional, set by the sweeps before tangent: a number for each sample, by which tangent and second give parameters
  // what second adjoints would give them. Each sample has an equal share of dimension 0 of every value, one after the other.
  at::Tensor ratio;

  // Takes a part of what second will be given, after its tangent, if it then holds no more than before; false where it does not.
  virtual bool absorb(const at::Tensor& /*b*/) { return false; }

  // Nothing is defined where the rule does something else. made: the gradients, undefined where there is none, which second then
  // returns.
  virtual OfRows of_rows() const { return {}; }
  virtual void made(at::Tensor /*of_weight*/, at::Tensor /*sums*/) {}

  // Of the first output, where no other has one. Set by the sweeps before adjoint, for what then arrives, and again before borrow.
  Reader reader;

  // Of what made each input, which gets the second adjoint that this one returns for it; or null, as of a rule within another.
  // Set by the sweeps before tangent.
  c10::SmallVector<Rule*, 3> makers;

  // What is there already where the values go that adjoint or second return, and tangent's for parameters: one an input, undefined
  // where there is nothing. Set by the sweeps before each call; a rule that can add to one, which must be `ours`, moves it out and
  // returns the sum: in second what it moved out in tangent.
  Values onto;

  // tangent and second will be called again: what adjoint left must outlive them. Set by the sweeps.
  bool keep = false;

 protected:
  // The reader, where it makes an adjoint of this size again: the passes over memory that it takes are worth what need not be held.
  Reader repeats(const at::Tensor& adjoint) const;

  // What is left of a part of input i's second adjoint that tangent made: nothing where the maker absorbs it, which is worth a pass.
  at::Tensor handed_down(at::Tensor part, size_t i) const;

  // The tensor, which is let go of unless the sweeps run again.
  at::Tensor take(at::Tensor& held) const { return keep ? held : std::move(held); }

  Place place;
};

inline bool Reader::repeats_adjoint() const { return rule && rule->repeats_adjoint(input); }
inline at::Tensor Reader::adjoint_again() const { return rule->adjoint_again(input); }

Sizes sizes_of(const torch::autograd::InputMetadata& value);
// A view, as at::as_strided makes it, in a tenth of its time where it is of a plain tensor.
at::Tensor viewed(const at::Tensor& tensor, at::IntArrayRef sizes, at::IntArrayRef strides, int64_t offset);
// The last two dimensions swapped: such a view.
at::Tensor transposed(const at::Tensor& matrix);
// into += value, in place where `into` is ours.
void accumulate(at::Tensor& into, at::Tensor value);
// From how many bytes on oneDNN's CPU takes a pass more so that a value need not be held; for tests. Returns what was set before.
int64_t set_worth_passes(int64_t bytes);
// The bytes of the elements of what is defined.
int64_t bytes_of(std::initializer_list<at::Tensor> tensors);
// Summed over the dimensions that broadcasting added or stretched, to `sizes`, and cast.
at::Tensor reduced_to(at::Tensor tensor, at::IntArrayRef sizes, at::ScalarType dtype);

}  // namespace gpfast

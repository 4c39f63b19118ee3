"""The critics of the field at their published sizes, each also in a small form: for tests, benchmarks and explanations.

    from gpfast import zoo

    critic = zoo.build("resnet32")                          # float32, on the CPU, in training mode, the same every time
    entry = zoo.ZOO["resnet32"]
    case = entry.inputs(entry.batch, small=False)           # real, fake, args, kwargs, output
    gpfast.gradient_penalty(critic, case.real, case.fake, args=case.args, kwargs=case.kwargs, output=case.output)

`ZOO` maps a name to its `Entry`, in a fixed order. `small=True` (in `build` and in `inputs` alike) gives the same
operations at a width of at most 8 and a resolution of at most 16, with every parameter moved a little off its initial
value, so that no gradient is zero by symmetry. `entry.batch` and `entry.small_batch` are meant for the two forms.

`case.real` and `case.fake` are tensors, or tuples of tensors for a critic of several inputs; `case.args` holds the
labels of a conditional critic; `case.output` picks the score where a critic returns more. The critics are plain modules
with PyTorch's initial weights, except where their source prescribes others. Two runs that shall agree need the same
random state and a deepcopy each: tabular-mlp (dropout) and audio-1d (phase shuffle) draw from the global generator of
their device when they run, and spectral-norm moves its buffers. In minibatch-stddev the samples of a batch depend on
each other.
"""

from gpfast.zoo.catalog import ZOO, build
from gpfast.zoo.entry import Case, Entry

__all__ = ["ZOO", "Case", "Entry", "build"]

"""Random critics as programs: lines of Python over tensors of any shape, typed by running them as they are drawn."""

import math
import warnings

import torch
from program_shapes import BETWEEN, IN_PLACE, MERGES, POOLS, SCATTERS, SHAPES
from program_spectra import SPECTRA
from program_values import ARITHMETIC, CONVOLUTIONS, NORMS, PIECEWISE, PRODUCTS, REDUCTIONS, SMOOTH
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

MOST_ELEMENTS = 240

FAMILIES = {
    "products": PRODUCTS,
    "activations": PIECEWISE + SMOOTH,
    "convolutions": CONVOLUTIONS,
    "piecewise": PIECEWISE,
    "shapes": SHAPES,
    "arithmetic": ARITHMETIC,
    "norms": NORMS,
    "in place": IN_PLACE,
    "merges": MERGES,
    "scatters": SCATTERS,
    "smooth": SMOOTH,
    "reductions": REDUCTIONS,
    "resampling": POOLS,
    "between": BETWEEN,
    "spectra": SPECTRA,
}


class Cube(torch.autograd.Function):
    """A node without a rule that saves its input and its result."""

    @staticmethod
    def forward(ctx, x):
        y = x**3
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        return grad * (2 * x * x + y / x.where(x != 0, torch.ones_like(x)))


def quiet(function, *args):
    """The result under no_grad: a constant, or a write that autograd does not see."""
    with torch.no_grad():
        return function(*args)


def attend(q, k, v):
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v)


def assigned(value, index, source):
    """A copy, of which a part was written to."""
    y = value.clone()
    y[index] = source
    return y


def twice(function, x):
    """A module called again on its own result."""
    return function(function(x))


def numbers(index, shape):
    scale = math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 1
    return torch.randn(shape, generator=torch.Generator().manual_seed(index), dtype=torch.float64) / scale


NAMESPACE = {"torch": torch, "F": F, "inf": math.inf, "Cube": Cube, "quiet": quiet, "attend": attend}
NAMESPACE |= {"twice": twice, "assigned": assigned, "checkpoint": checkpoint}


class Program:
    """What a critic is made of. `given`: {name: (index, shape, requires grad)}; `lines`: (names, expression)."""

    def __init__(self, shape, layout="contiguous"):
        self.shape, self.layout = tuple(shape), layout
        self.given, self.lines, self.output = {}, [], "x"

    def x(self):
        x = numbers(1000, self.shape) * math.sqrt(math.prod(self.shape[1:]))
        if self.layout == "transposed":
            return x.transpose(1, -1).contiguous().transpose(1, -1)
        return x

    def parameters(self):
        """{name: a fresh leaf}."""
        return {name: numbers(i, shape).requires_grad_(wanted) for name, (i, shape, wanted) in self.given.items()}

    def critic(self, parameters):
        names = {**NAMESPACE, **parameters}
        exec(compile(self.text(), "<program>", "exec"), names)
        return names["critic"]

    def text(self):
        return "\n    ".join(["def critic(x):", *(f"{a} = {b}" for a, b in self.lines), f"return {self.output}\n"])

    def __repr__(self):
        given = "".join(
            f"{name} = numbers({i}, {tuple(shape)})" + (".requires_grad_()\n" if wanted else "\n")
            for name, (i, shape, wanted) in self.given.items()
        )
        return f"# x: {self.shape} {self.layout}\n{given}{self.text()}"


class Name(str):
    """A variable's name, with the value it has when the line is drawn."""

    def __new__(cls, name, value):
        self = super().__new__(cls, name)
        self.value = value
        return self

    shape = property(lambda self: tuple(self.value.shape))
    ndim = property(lambda self: self.value.ndim)


class Writer:
    """Draws a program: each line is run at once, and dropped where PyTorch refuses it or its values are of no use."""

    def __init__(self, pick):
        self.pick = pick  # (how many choices) -> one of them
        rank = self.among([2, 4, 3])
        shape = (self.among([2, 3, 1]), self.among([4, 2, 3, 6]), *(self.among([4, 3, 5]) for _ in range(rank - 2)))
        self.program = Program(shape, self.among(["contiguous", "contiguous", "transposed"]))
        self.x = self.program.x().requires_grad_()
        self.values = {"x": self.x.view_as(self.x)}
        self.names = {**NAMESPACE, **self.values}
        self.expressions = []

    def among(self, choices):
        if not choices:
            raise ValueError("nothing to choose from")
        return choices[self.pick(len(choices))]

    def integer(self, least, most):
        return self.among(range(least, most + 1))

    def variable(self, shape=None):
        """A variable, rather a late one; of this shape where it is given and there is one."""
        names = [name for name, value in self.values.items() if shape is None or tuple(value.shape) == tuple(shape)]
        name = names[-1 - min(self.among([0, 0, 0, 0, 1, 1, 2, 3, 5]), len(names) - 1)]
        return Name(name, self.values[name])

    def given(self, *shape, wanted=True):
        given = self.program.given
        for name, (_, known, same) in given.items():
            if known == shape and same == wanted and self.pick(2):
                return Name(name, self.names[name])
        name = f"{'p' if wanted else 'c'}{len(given)}"
        given[name] = (len(given), shape, wanted)
        self.names[name] = numbers(len(given) - 1, shape).requires_grad_(wanted)
        return Name(name, self.names[name])

    def weight(self, *shape):
        """A parameter, a frozen one, or an expression of parameters and now and then of the points."""
        known = [name for name in self.expressions if self.names[name].shape == shape]
        if known and self.pick(2):
            return known[-1]
        kind = self.pick(12)
        if kind < 6:
            return self.given(*shape)
        if kind == 6:
            return self.given(*shape, wanted=False)
        plain = self.given(*shape)
        if kind == 7 and len(shape) == 2:
            return f"{self.given(*shape[::-1])}.t()"
        if kind == 8:
            return self.expression(f"{plain} * ({self.variable()}.mean() + 0.5)")
        if kind == 9:
            return self.expression(f"{plain} * {self.given(*shape)} + 0.3")
        if kind == 10 and plain.value.numel() > 1:
            return self.expression(f"{plain} * {self.given(1)} / {plain}.norm()")
        return self.expression(f"torch.tanh({plain})")

    def expression(self, text):
        name = f"e{len(self.program.lines)}"
        self.run(name, text)
        self.expressions.append(name)
        return name

    def run(self, name, text):
        self.names[name] = eval(text, self.names)
        self.program.lines.append((name, text))

    def line(self):
        """Draws a line, if PyTorch takes what was drawn."""
        v = self.variable()
        of_x = v.value.untyped_storage().data_ptr() == self.x.untyped_storage().data_ptr()
        families = [
            FAMILIES[name] for name in FAMILIES if not (of_x and name == "in place")
        ]  # the points are the caller's
        families = [[write for fits, write in family if fits(v.shape)] for family in families]
        lines, given = len(self.program.lines), dict(self.program.given)
        try:
            text = self.among(self.among([family for family in families if family]))(self, v)
            self.keep(text, eval(text, self.names))
        except (RuntimeError, NotImplementedError, ValueError, IndexError):
            del self.program.lines[lines:]
            self.program.given = given
            self.expressions = [name for name in self.expressions if name in dict(self.program.lines)]

    def keep(self, text, result):
        several = isinstance(result, (tuple, list))
        results = result if several else [result]
        if not all(value.isfinite().all() for value in results):
            raise ValueError(f"{text} is not finite")
        names = []
        for value in results:
            usable = value.dtype == torch.float64 and 0 < value.numel() <= MOST_ELEMENTS
            names.append(f"v{len(self.values)}" if usable else "_")
            if usable:
                self.values[names[-1]] = self.names[names[-1]] = value
        self.program.lines.append((", ".join(names) + "," * (len(names) == 1 and several), text))
        largest = self.values[names[-1]].detach().abs().amax() if names[-1] != "_" else 0
        if largest > 6:
            text = f"{names[-1]} / {2.0 ** math.ceil(math.log2(largest))}"
            self.keep(text, eval(text, self.names))

    def depends(self, value):
        """On the points, as far as autograd can tell: it raises where something it needs was overwritten."""
        try:
            (g,) = torch.autograd.grad(value.sum(), self.x, retain_graph=True, allow_unused=True)
            return g is not None and bool(g.any())
        except RuntimeError:
            return value.requires_grad

    def finish(self):
        """The program, whose output is the last variable that depends on the points."""
        self.program.output = next(name for name, value in reversed(self.values.items()) if self.depends(value))
        return self.program


def drawn(pick):
    """A random program; pick(n) is one of range(n)."""
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lines that are dropped
        writer = Writer(pick)
        for _ in range(writer.integer(2, 12)):
            writer.line()
        return writer.finish()

"""Bad input gets an error that names the argument, what was found, and the remedy; and nothing is changed."""

import functools
import re
import warnings

import pytest
import torch
from torch import nn

import gpfast

X, Y = torch.ones(4, 3), torch.zeros(4, 3)


def score(x, *_, **__):
    return (x**2).sum(1)


def call(critic=score, real=X, fake=Y, **options):
    return gpfast.gradient_penalty(critic, real, fake, **options)


def no_grad_inside(x):
    with torch.no_grad():
        return score(x)


class Answer:
    value = 1


# (what is called, the error, the words its message must hold)
CASES = {
    "fake missing": (lambda: call(fake=None), ValueError, ["`fake` is missing", "at='interpolates'", "at='real'"]),
    "fake missing at fake": (lambda: call(fake=None, at="fake"), ValueError, ["`fake` is missing", "at='fake'"]),
    "real missing": (lambda: call(real=None), ValueError, ["`real` is missing", "only at='fake'"]),
    "shapes differ": (
        lambda: call(fake=torch.zeros(4, 2)),
        ValueError,
        ["`real` and `fake`", "same shape", "(4, 3)", "(4, 2)"],
    ),
    "batches differ": (
        lambda: call(fake=torch.zeros(3, 3)),
        ValueError,
        ["same shape", "(4, 3)", "(3, 3)", "Cut both"],
    ),
    "batches differ, norm over the batch": (
        lambda: call(fake=torch.zeros(3, 3), norm_dims="batch"),
        ValueError,
        ["same shape", "Cut both"],
    ),
    "integers": (
        lambda: call(real=X.long(), fake=Y.long()),
        TypeError,
        ["`real` must be floating point", "torch.int64", ".float()"],
    ),
    "booleans": (lambda: call(fake=Y.bool()), TypeError, ["`fake` must be floating point", "torch.bool"]),
    "complex": (lambda: call(real=X.cfloat()), TypeError, ["`real` must be floating point", "torch.complex64"]),
    "sparse": (lambda: call(real=X.to_sparse()), TypeError, ["`real` must be a dense (strided) tensor", "to_dense"]),
    "no tensor": (lambda: call(real=[[1.0]], fake=[[2.0]]), TypeError, ["`real[0]` must be a tensor", "list"]),
    "numpy": (lambda: call(real=X.numpy()), TypeError, ["`real` must be a tensor", "ndarray"]),
    "empty batch": (lambda: call(real=X[:0], fake=Y[:0]), ValueError, ["`real` is empty", "(0, 3)"]),
    "empty samples": (lambda: call(real=X[:, :0], fake=Y[:, :0]), ValueError, ["`real` is empty", "(4, 0)"]),
    "no batch dimension": (
        lambda: call(real=torch.tensor(1.0), fake=torch.tensor(2.0)),
        ValueError,
        ["`real` must have a batch dimension"],
    ),
    "no input": (lambda: call(real=(), fake=()), ValueError, ["holds no tensor"]),
    "half-half": (lambda: call(real=X.to(torch.float8_e4m3fn)), TypeError, ["`real` must be floating point", "float8"]),
    "one_sided": (lambda: call(one_sided="no"), TypeError, ["`one_sided` must be True or False", "'no'"]),
    "args": (lambda: call(args=X), TypeError, ["`args` must be a tuple", "Tensor", "args=(labels,)"]),
    "kwargs": (lambda: call(kwargs=[1]), TypeError, ["`kwargs` must be a dict or None", "list"]),
    "output of no kind": (lambda: call(output=1.5), TypeError, ["`output` must be None", "float"]),
    "index of an object": (lambda: call(lambda x: Answer(), output=0), ValueError, ["`output`=0", "is a Answer"]),
    "weight complex": (lambda: call(weight=torch.tensor(1j)), ValueError, ["`weight`", "real tensor", "complex64"]),
    "weight elsewhere": (lambda: call(weight=torch.ones((), device="meta")), ValueError, ["`weight` is on meta"]),
    "alpha of numpy": (
        lambda: call(alpha=X.numpy()),
        TypeError,
        ["`alpha` must be a number or a tensor", "torch.as_tensor"],
    ),
    "norm_dims of floats": (lambda: call(norm_dims=(1.0,)), ValueError, ["`norm_dims` must be None", "(1.0,)"]),
    "inputs of different batches, one norm": (
        lambda: call(real=(X, X[:2]), fake=(Y, Y[:2]), norm_dims="batch"),
        ValueError,
        ["`real[1]` holds 2 samples"],
    ),
    "module's generator": (
        lambda: gpfast.GradientPenalty(generator=3),
        TypeError,
        ["`generator` must be a torch.Generator"],
    ),
    "devices differ": (lambda: call(fake=Y.to("meta")), ValueError, ["`fake` is on meta but `real` is on cpu"]),
    "structures differ": (
        lambda: call(real=(X, X), fake=[X]),
        ValueError,
        ["arranged alike", "a tuple of 2", "a list of 1"],
    ),
    "keys differ": (lambda: call(real={"a": X}, fake={"b": Y}), ValueError, ["arranged alike", "['a']", "['b']"]),
    "inputs of different batches": (
        lambda: call(real=(X, X[:2]), fake=(Y, Y[:2])),
        ValueError,
        ["`real[1]` holds 2 samples", "`real[0]` holds 4"],
    ),
    "norms of different shapes": (
        lambda: call(real=(X, torch.ones(4, 2)), fake=(Y, torch.zeros(4, 2)), norm_dims=(0,)),
        ValueError,
        ["one norm runs over all inputs", "`real[1]`"],
    ),
    "critic": (lambda: call(critic=None), TypeError, ["`critic` must be callable", "NoneType"]),
    "tuple without output": (lambda: call(lambda x: (score(x), x)), TypeError, ["returned a tuple of 2", "output=0"]),
    "dict without output": (
        lambda: call(lambda x: {"s": score(x)}),
        TypeError,
        ["returned a dict with keys ['s']", "output='s'"],
    ),
    "object without output": (lambda: call(lambda x: Answer()), TypeError, ["returned a Answer", "output="]),
    "None": (lambda: call(lambda x: None), TypeError, ["returned a NoneType"]),
    "index out of range": (lambda: call(lambda x: (score(x),), output=1), ValueError, ["`output`=1", "1 items"]),
    "key absent": (lambda: call(lambda x: {"a": score(x)}, output="b"), ValueError, ["`output`='b'", "['a']"]),
    "attribute absent": (lambda: call(lambda x: Answer(), output="score"), ValueError, ["`output`='score'"]),
    "output for a tensor": (
        lambda: call(output=0),
        TypeError,
        ["`output`=0 picks from a tuple or a dict", "(4,)", "lambda scores"],
    ),
    "output picks no tensor": (
        lambda: call(lambda x: (1.0, score(x)), output=0),
        TypeError,
        ["score must be a tensor", "float"],
    ),
    "integer score": (
        lambda: call(lambda x: score(x).long()),
        TypeError,
        ["score must be floating point", "torch.int64"],
    ),
    "empty score": (lambda: call(lambda x: score(x)[:0]), ValueError, ["score is empty"]),
    "detached": (
        lambda: call(lambda x: score(x).detach()),
        RuntimeError,
        ["carries no graph to the input", "detached"],
    ),
    "no_grad inside": (
        lambda: call(no_grad_inside),
        RuntimeError,
        ["carries no graph to the input", "torch.no_grad()"],
    ),
    "input detached": (
        lambda: call(nn.Sequential(Detach(), nn.Linear(3, 1))),
        RuntimeError,
        ["does not depend on `the interpolates`", "detached"],
    ),
    "one input unused": (
        lambda: call(lambda a, b: score(a), (X, X), (Y, Y)),
        RuntimeError,
        ["does not depend on `the interpolates[1]`", "`args` or `kwargs`"],
    ),
    "inference mode": (lambda: in_inference_mode(call), RuntimeError, ["torch.inference_mode()", "torch.no_grad()"]),
    "alpha of the wrong length": (
        lambda: call(alpha=torch.zeros(3)),
        ValueError,
        ["`alpha` of one dimension", "must be the batch, 4; got 3"],
    ),
    "alpha of length 1": (lambda: call(alpha=torch.zeros(1)), ValueError, ["must be the batch, 4; got 1", "0-dim"]),
    "alpha of the wrong shape": (
        lambda: call(alpha=torch.zeros(4, 2)),
        ValueError,
        ["`alpha`", "broadcast to the shape of `real`", "(4, 2)"],
    ),
    "alpha of the wrong rank": (
        lambda: call(alpha=torch.zeros(4, 1, 1)),
        ValueError,
        ["as many dimensions", "(4, 1, 1)"],
    ),
    "alpha above 1": (lambda: call(alpha=1.5), ValueError, ["`alpha` must lie in [0, 1]", "1.5"]),
    "alpha below 0": (
        lambda: call(alpha=torch.tensor([0.0, 0.5, -0.5, 1.0])),
        ValueError,
        ["`alpha` must lie in [0, 1]", "-0.5"],
    ),
    "alpha NaN": (lambda: call(alpha=float("nan")), ValueError, ["`alpha` must lie in [0, 1]"]),
    "alpha of integers": (
        lambda: call(alpha=torch.ones(4).long()),
        TypeError,
        ["`alpha` must be a floating-point tensor"],
    ),
    "alpha of text": (lambda: call(alpha="0.5"), TypeError, ["`alpha` must be a number or a tensor", "str"]),
    "alpha elsewhere": (
        lambda: call(alpha=torch.rand(4, device="meta")),
        ValueError,
        ["`alpha` is on meta but `real` is on cpu", ".to("],
    ),
    "alpha without use": (
        lambda: call(alpha=0.5, at="real"),
        ValueError,
        ["`alpha` mixes two points; at='real' has one"],
    ),
    "generator": (lambda: call(generator=3), TypeError, ["`generator` must be a torch.Generator", "int"]),
    "generator elsewhere": (
        lambda: call(real=X.to("meta"), fake=Y.to("meta"), generator=torch.Generator()),
        ValueError,
        ["`generator` is on cpu", "meta"],
    ),
    "at": (
        lambda: call(at="interpolate"),
        ValueError,
        ["`at` must be one of 'interpolates', 'real', 'fake', 'dragan'", "'interpolate'"],
    ),
    "reduction": (
        lambda: call(reduction="avg"),
        ValueError,
        ["`reduction` must be one of 'mean', 'sum', 'none'", "'avg'"],
    ),
    "engine": (
        lambda: call(engine="cuda"),
        ValueError,
        ["`engine` must be one of 'auto', 'tape', 'autograd', 'reference'", "'cuda'"],
    ),
    "unhashable word": (lambda: call(at=["real"]), ValueError, ["`at` must be one of"]),
    "center": (lambda: call(center=float("inf")), ValueError, ["`center` must be a finite number", "inf"]),
    "center tensor": (lambda: call(center=torch.tensor(1.0)), ValueError, ["`center` must be a finite number"]),
    "eps": (lambda: call(eps=-1e-12), ValueError, ["`eps` must be a finite number of at least 0", "-1e-12"]),
    "weight": (lambda: call(weight="10"), TypeError, ["`weight` must be a number or a 0-dim tensor", "str"]),
    "weight of a batch": (
        lambda: call(weight=torch.ones(4)),
        ValueError,
        ["`weight` must be a number or a 0-dim real tensor", "(4,)"],
    ),
    "norm_dims word": (
        lambda: call(norm_dims="sample"),
        ValueError,
        ["`norm_dims` must be None", "'batch'", "'sample'"],
    ),
    "norm_dims empty": (lambda: call(norm_dims=()), ValueError, ["`norm_dims`", "one or more dimensions", "()"]),
    "norm_dims out of range": (
        lambda: call(norm_dims=(1, 2)),
        ValueError,
        ["`norm_dims` holds 2, out of range", "(4, 3)"],
    ),
    "norm_dims twice": (
        lambda: call(norm_dims=(1, -1)),
        ValueError,
        ["`norm_dims` (1, -1) names a dimension of `real` twice"],
    ),
    "mask": (lambda: call(mask=2.0), TypeError, ["`mask` must be a tensor", "float"]),
    "mask of the wrong shape": (
        lambda: call(mask=torch.ones(2)),
        ValueError,
        ["`mask` of shape (2,) does not broadcast", "(4, 3)"],
    ),
    "mask of a larger rank": (
        lambda: call(mask=torch.ones(1, 4, 3)),
        ValueError,
        ["`mask` of shape (1, 4, 3) does not broadcast"],
    ),
    "mask complex": (lambda: call(mask=X.cfloat()), TypeError, ["`mask` must be real or boolean"]),
    "mask elsewhere": (lambda: call(mask=X.to("meta")), ValueError, ["`mask` is on meta but `real` is on cpu"]),
    "mask sparse": (
        lambda: call(mask=X.to_sparse()),
        TypeError,
        ["`mask` must be real or boolean, and dense", "sparse"],
    ),
    "made for inference": (
        lambda: call(real=inference_made(), at="real"),
        ValueError,
        ["`real` was made under torch.inference_mode()", "real.clone()"],
    ),
    "masks of another number": (
        lambda: call(real=(X, X), fake=(Y, Y), mask=(X,)),
        ValueError,
        ["`mask` must be arranged alike"],
    ),
    "mask member": (
        lambda: call(real=(X, X), fake=(Y, Y), mask=(X, 1.0)),
        TypeError,
        ["`mask` for `real[1]` must be a tensor"],
    ),
    "deviation of one value": (lambda: call(real=X[:1, :1], at="dragan"), ValueError, ["standard deviation of `real`"]),
    "outputs": (
        lambda: gpfast.gradient_penalty_from((score(X),), X),
        TypeError,
        ["`outputs` must be a tensor", "tuple"],
    ),
    "outputs detached": (
        lambda: gpfast.gradient_penalty_from(score(X), grown(X)),
        RuntimeError,
        ["`outputs` carries no graph"],
    ),
    "inputs": (
        lambda: gpfast.gradient_penalty_from(score(grown(X)), X),
        ValueError,
        ["`inputs` does not require grad", "requires_grad_()"],
    ),
    "inputs unrelated": (
        lambda: gpfast.gradient_penalty_from(score(grown(X)), grown(X)),
        RuntimeError,
        ["does not depend on `inputs`"],
    ),
    "gradients": (lambda: gpfast.gradient_norm_penalty(X.long()), TypeError, ["`gradients` must be floating point"]),
    "module": (lambda: gpfast.GradientPenalty(reduction="avg"), ValueError, ["`reduction` must be one of"]),
}


class Detach(nn.Module):
    def forward(self, x):
        return x.detach()


def grown(x):
    return x.clone().requires_grad_()


def inference_made():
    with torch.inference_mode():
        return torch.ones(4, 3)


def in_inference_mode(function):
    with torch.inference_mode():
        return function()


@pytest.mark.parametrize("case", CASES)
def test_error(case):
    function, kind, words = CASES[case]
    state = torch.get_rng_state()
    with pytest.raises(kind) as caught:
        function()
    message = str(caught.value)
    for word in words:
        assert word in message, f"{word!r} not in {message!r}"
    assert message.endswith((".", ")", ").")) and not re.search(r"\s{2,}", message)
    assert not X.requires_grad and not Y.requires_grad and X.grad is None and torch.equal(X, torch.ones(4, 3))
    if "critic" not in message and "score" not in message and "outputs" not in message:
        assert torch.equal(torch.get_rng_state(), state), "an argument was refused only after a draw"


def test_the_range_of_alpha_is_not_read_from_a_device():
    assert gpfast.gradient_penalty(
        score, X.to("meta"), Y.to("meta"), alpha=torch.full((4,), 7.0, device="meta")
    ).is_meta


class Normed(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 3), norm, nn.Linear(3, 1))

    def forward(self, x):
        return self.layers(x)

    def score(self, x):
        return self(x)


def warnings_of(critic, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gpfast.gradient_penalty(critic, torch.randn(4, 3), torch.randn(4, 3), **options)
    return [str(w.message) for w in caught]


def test_batch_norm_in_training_is_warned_of_once():
    model = Normed(nn.BatchNorm1d(3))
    (message,) = warnings_of(model)
    for word in ("Normed holds BatchNorm1d in training mode", "each sample", "layer, instance or group normalisation"):
        assert word in message
    assert not warnings_of(model) and not warnings_of(lambda x: model(x))


@pytest.mark.parametrize(
    "wrap",
    [lambda m: m.score, lambda m: lambda x: m(x), lambda m: functools.partial(m.score)],
    ids=["method", "closure", "partial"],
)
def test_batch_norm_is_found_behind_a_callable(wrap):
    assert len(warnings_of(wrap(Normed(nn.BatchNorm1d(3))))) == 1


NORMED = Normed(nn.BatchNorm1d(3))


class Trainer:
    def __init__(self):
        self.critic, self.generator = Normed(nn.LayerNorm(3)), Normed(nn.BatchNorm1d(3))

    def score(self, x):
        return self.critic(x)


def test_batch_norm_is_found_behind_names():
    assert len(warnings_of(lambda x: NORMED(x))) == 1
    trainer = Trainer()
    assert not warnings_of(lambda x: trainer.critic(x)) and not warnings_of(trainer.score)  # the generator may have it
    trainer.critic = Normed(nn.BatchNorm1d(3))
    assert len(warnings_of(trainer.score)) == 1


good = NORMED


class Scorer:
    def __init__(self):
        self.good = Normed(nn.LayerNorm(3))

    def score(self, x):
        return self.good(x)


def test_an_attribute_is_no_global_of_its_name():
    assert not warnings_of(Scorer().score)


def test_batch_norm_is_found_among_the_arguments_of_a_partial():
    assert len(warnings_of(functools.partial(lambda net, x: net(x), Normed(nn.BatchNorm1d(3))))) == 1


def test_the_warning_points_at_the_caller():
    for call in (gpfast.gradient_penalty, gpfast.wgan_lp, gpfast.GradientPenalty()):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call(Normed(nn.BatchNorm1d(3)), torch.randn(4, 3), torch.randn(4, 3))
        assert [w.filename for w in caught] == [__file__]


def test_no_warning_where_samples_stay_apart():
    assert not warnings_of(Normed(nn.LayerNorm(3)))
    assert not warnings_of(Normed(nn.BatchNorm1d(3)).eval())
    assert not warnings_of(Normed(nn.BatchNorm1d(3)), norm_dims="batch")
    model = Normed(nn.BatchNorm1d(3)).eval()
    assert not warnings_of(model) and len(warnings_of(model.train())) == 1
    assert len(warnings_of(Normed(nn.BatchNorm1d(3, track_running_stats=False)).eval())) == 1

"""Rules for views, expansion, slices, indexing and padding against each node alone and against autograd."""

import pytest
import torch
import torch.nn.functional as F
from tape_checks import agree, agree_low, tape_gradients

import gpfast

INDEX = torch.tensor([2, 0, 2, 1])
MASK = torch.tensor([True, False, True])
GRID = torch.tensor([[True, False, True], [False, True, True]])


def in_place(name, *args):
    return lambda h: getattr(h.clone(), name)(*args)


VIEWS = {
    "view": (lambda h: h.view(2, 12, 5), (2, 3, 4, 5), "view"),
    "view_as": (lambda h: h.view_as(h), (3, 4), "view"),
    "flatten": (lambda h: h.flatten(1), (2, 3, 4, 5), "view"),
    "flatten a batch of 1": (lambda h: h.flatten(1), (1, 3, 4), "view"),
    "flatten channels_last": (
        lambda h: h.contiguous(memory_format=torch.channels_last).flatten(1),
        (2, 3, 4, 5),
        "view",
    ),
    "reshape that copies": (lambda h: h.transpose(1, 2).reshape(2, -1), (2, 3, 4), "view"),
    "unflatten": (lambda h: h.unflatten(-1, (2, 3)), (4, 6), "view"),
    "squeeze": (lambda h: h.squeeze(), (3, 1, 4, 1), "view"),
    "squeeze a dimension": (lambda h: h.squeeze(-3), (3, 1, 4, 1), "view"),
    "squeeze a dimension that is not 1": (lambda h: h.squeeze(0), (3, 1, 4), "view"),
    "squeeze dimensions": (lambda h: h.squeeze((1, -1, 2)), (3, 1, 4, 1), "view"),
    "squeeze a permuted value": (lambda h: h.permute(2, 1, 0).squeeze(1), (3, 1, 4), "view"),
    "squeeze_": (in_place("squeeze_"), (3, 1, 4), "view"),
    "squeeze_ a dimension": (in_place("squeeze_", 1), (3, 1, 4), "view"),
    "squeeze_ dimensions": (in_place("squeeze_", (1, 2)), (3, 1, 4), "view"),
    "unsqueeze": (lambda h: h.unsqueeze(-2), (3, 4), "view"),
    "unsqueeze_": (in_place("unsqueeze_", 1), (3, 4), "view"),
    "None": (lambda h: h[:, None, :, None], (3, 4), "view"),
    "t": (lambda h: h.t(), (3, 4), "transpose"),
    "t of a vector": (lambda h: h.t(), (4,), "transpose"),
    "t_": (in_place("t_"), (3, 4), "transpose"),
    "transpose": (lambda h: h.transpose(0, -1), (3, 4, 5), "transpose"),
    "transpose_": (in_place("transpose_", -2, 0), (3, 4, 5), "transpose"),
    "mT": (lambda h: h.mT, (2, 3, 4), "transpose"),
    "permute": (lambda h: h.permute(0, -1, 1, 2), (2, 3, 4, 5), "permute"),
    "movedim": (lambda h: h.movedim(1, -1), (2, 3, 4, 5), "permute"),
    "T": (lambda h: h.T, (3, 4), "permute"),
    "view of a view": (lambda h: h.permute(2, 0, 1)[1:].view(-1, 6), (2, 3, 4), "permute"),
}
MOVES = {
    "expand": (lambda h: h.expand(-1, 4, 5, -1), (3, 1, 1, 2), "expand"),
    "expand to more dimensions": (lambda h: h.expand(4, 2, -1, -1), (3, 2), "expand"),
    "expand to the same": (lambda h: h.expand(3, 2), (3, 2), "expand"),
    "expand to nothing": (lambda h: h + h[:, :1].expand(3, 0).sum(1, True), (3, 2), "expand"),
    "broadcast_to": (lambda h: torch.broadcast_to(h, (5, 3, 2)), (3, 1), "expand"),
    "repeat": (lambda h: h.repeat(2, 1, 3), (3, 2, 4), "repeat"),
    "repeat to more dimensions": (lambda h: h.repeat(2, 3, 1, 2), (3, 2), "repeat"),
    "repeat once": (lambda h: h.repeat(1, 1, 1), (3, 2), "repeat"),
    "repeat a permuted value": (lambda h: h.permute(2, 0, 1).repeat(2, 1, 2), (3, 2, 4), "repeat"),
    "repeat_interleave": (lambda h: h.repeat_interleave(2, 1), (3, 4), "expand"),
    "flip": (lambda h: h.flip(-1, 0), (3, 2, 4), "flip"),
    "roll": (lambda h: h.roll((1, -2), (0, -1)), (3, 2, 4), "roll"),
    "roll of all": (lambda h: h.roll(3), (3, 4), "roll"),
    "rot90": (lambda h: torch.rot90(h, 1, (1, -1)), (3, 2, 4), "rot90"),
    "slice": (lambda h: h[:, 1:3], (2, 4, 3), "slice"),
    "slice from the end": (lambda h: h[..., -3:-1], (2, 4, 5), "slice"),
    "slice beyond the ends": (lambda h: h[:, -9:99], (2, 4), "slice"),
    "slice of nothing": (lambda h: h + h[:, 3:3].sum(1, True) + h[:, 9:].sum(1, True), (2, 4), "slice"),
    "slice with steps": (lambda h: h[:, 1::2, ::3], (2, 4, 5), "slice"),
    "slice of all": (lambda h: h[:], (2, 4), "slice"),
    "slice of a channels_last value": (
        lambda h: h.contiguous(memory_format=torch.channels_last)[:, 1:],
        (2, 3, 4, 2),
        "slice",
    ),
    "narrow": (lambda h: h.narrow(-2, 1, 2), (2, 4, 3), "slice"),
    "select": (lambda h: h[:, 1], (2, 4, 3), "select"),
    "select from the end": (lambda h: h[..., -1], (2, 4, 3), "select"),
    "select the only one": (lambda h: h[:, 0], (2, 1, 3), "select"),
    "as_strided": (lambda h: h.as_strided((2, 2), (10, 2), 1), (2, 4, 5), "slice"),
    "as_strided across dimensions": (lambda h: h.as_strided((2, 3), (20, 6), 3), (2, 4, 5), "slice"),
    "as_strided in another order": (lambda h: h.as_strided((5, 4, 2), (1, 5, 20)), (2, 4, 5), "slice"),
    "as_strided of one element": (lambda h: h.as_strided((), (), 7), (2, 4), "slice"),
    "as_strided of a slice": (lambda h: h[:, 1:].as_strided((2, 2), (10, 2), 6), (2, 4, 5), "slice"),
    "diagonal": (lambda h: h.diagonal(1, -1, -2), (2, 4, 5), "diagonal"),
    "diag": (lambda h: torch.diag(h, -1), (4, 4), "diagonal"),
    "diag_embed": (lambda h: torch.diag_embed(h, -1, 0, 2), (2, 4), "diag_embed"),
    "trace": (lambda h: h.trace(), (4, 3), "trace"),
    "as_strided with overlaps": (lambda h: h.contiguous().as_strided((2, 4, 3), (5, 1, 1), 2), (3, 5), "as_strided"),
    "as_strided with places between": (lambda h: h.contiguous()[1:].as_strided((2, 3), (2, 4)), (4, 5), "slice"),
    "cumsum": (lambda h: h.cumsum(1), (2, 4, 3), "cumsum"),
    "cumsum from the end": (lambda h: h.cumsum(-1), (2, 4), "cumsum"),
    "cumsum of a scalar": (lambda h: h.sum().cumsum(0), (2, 4), "cumsum"),
    "cumsum_": (in_place("cumsum_", 0), (3, 2), "cumsum"),
    "unfold": (lambda h: h.unfold(1, 3, 2), (2, 7, 3), "unfold"),
    "unfold without overlap": (lambda h: h.unfold(-1, 2, 3), (2, 3, 8), "unfold"),
    "pad": (lambda h: F.pad(h, (1, 2, 0, 3)), (2, 3, 4), "pad"),
    "pad with a value": (lambda h: F.pad(h, (2, 0), value=3.0), (2, 4), "pad"),
    "pad that crops": (lambda h: F.pad(h, (-1, 2, 1, -2)), (2, 4, 5), "pad"),
    "pad that only crops": (lambda h: F.pad(h, (-1, -2)), (2, 4, 5), "pad"),
    "pad channels_last": (
        lambda h: F.pad(h.contiguous(memory_format=torch.channels_last), (1, 1, 2, 0)),
        (2, 3, 4, 2),
        "pad",
    ),
    "tril": (lambda h: h.tril(-1), (2, 4, 3), "triangle"),
    "triu": (lambda h: h.triu(1), (2, 4, 3), "triangle"),
    "tril_": (in_place("tril_"), (4, 3), "triangle"),
    "triu of a transposed value": (lambda h: h.t().triu(), (4, 3), "triangle"),
}
INDEXES = {
    "index": (lambda h: h[:, INDEX], (2, 3, 4), "index"),
    "index by two": (lambda h: h[INDEX, :, INDEX], (3, 2, 4), "index"),
    "index by two, broadcast": (lambda h: h[:, INDEX[:, None], INDEX[:2]], (2, 3, 4), "index"),
    "index by 32 bits": (lambda h: h[INDEX.int()], (3, 2), "index"),
    "index from the end": (lambda h: h[:, INDEX - 3], (2, 3), "index"),
    "index by a list": (lambda h: h[:, [0, 2]], (2, 3), "index"),
    "index by nothing": (lambda h: h + h[:, INDEX[:0]].sum(1, True), (2, 3), "index"),
    "mask": (lambda h: h[:, MASK], (2, 3, 4), "index"),
    "mask of two dimensions": (lambda h: h[:, GRID], (4, 2, 3, 2), "index"),
    "mask of all": (lambda h: h[GRID], (2, 3), "index"),
    "mask of none": (lambda h: h + h[:, MASK & False].sum(1, True), (2, 3), "index"),
    "mask and index": (lambda h: h[MASK, :, INDEX[:2]], (3, 2, 4), "index"),
    "a mask of what depends on x": (lambda h: h[h > 0], (3, 4), "index"),
    "True": (lambda h: h[True], (3, 2), "index"),
    "unsafe_index": (lambda h: torch.ops.aten._unsafe_index(h, [None, INDEX]), (2, 3), "index"),
    "index_select": (lambda h: h.index_select(-1, INDEX), (2, 3), "index_select"),
    "gather": (lambda h: h.gather(1, INDEX.expand(2, 4)), (3, 3), "gather"),
    "sort by a gather": (lambda h: h.take_along_dim(h.argsort(-1), -1), (3, 4), "gather"),
    "take": (lambda h: h.take(torch.tensor([[5, 0], [5, 5]])), (2, 3), "take"),
    "sort": (lambda h: h.sort(-1)[0], (3, 4), "gather"),
    "sort downwards": (lambda h: h.sort(dim=0, descending=True, stable=True)[0], (4, 3), "gather"),
    "sort with ties": (lambda h: torch.cat([h, h], 1).sort(1)[0], (3, 4), "gather"),
    "sort of a scalar": (lambda h: h.sum().sort()[0], (3, 4), "gather"),
    "topk": (lambda h: h.topk(2, 1)[0], (2, 4, 3), "gather"),
    "topk from below": (lambda h: h.topk(3, -1, largest=False, sorted=False)[0], (2, 4), "gather"),
    "cummax": (lambda h: h.cummax(1)[0], (2, 4, 3), "gather"),
    "cummin": (lambda h: h.cummin(-1)[0], (2, 4), "gather"),
}
CASES = VIEWS | MOVES | INDEXES


def random(*sizes, seed=0, parameter=False):
    values = torch.randn(sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return values.requires_grad_(parameter)


@pytest.mark.parametrize("where", ["first", "last", "last, below nothing that bends", "middle"])
@pytest.mark.parametrize("name", CASES)
def test_an_operation_agrees(name, where):
    operation, sizes, rule = CASES[name]
    x, w = random(*sizes), random(*sizes, seed=1, parameter=True)
    v = random(*operation(x.clone()).shape, seed=2, parameter=True) if "mask of what" not in name else None
    v = torch.tensor(0.7, dtype=torch.float64, requires_grad=True) if v is None else v
    functions = {
        "first": lambda x: (operation(x) * v).tanh(),
        "last": lambda x: operation((x * w).tanh()),
        "last, below nothing that bends": lambda x: operation(x * w),
        "middle": lambda x: (operation((x * w).tanh()) * v).tanh(),
    }
    agree(functions[where], x, [w, v], rule=rule)


@pytest.mark.parametrize(
    "name",
    ["flatten", "expand", "slice", "select", "pad", "unfold", "index", "index_select", "tril", "topk", "cumsum"],
)
def test_the_sweeps_run_again(name):
    operation, sizes, _ = CASES[name]
    x, w = random(*sizes), random(*sizes, seed=1, parameter=True)
    loss = gpfast.input_gradient_loss(
        lambda x: (operation((x * w).tanh()) ** 2).sum(-1), x, lambda y, g: (g**3).sum() + (y**2).sum(), engine="tape"
    )
    (once,) = torch.autograd.grad(loss, w, retain_graph=True)
    (again,) = torch.autograd.grad(loss, w, retain_graph=True)
    assert torch.equal(once, again)


def test_slices_of_one_value_add_up():
    x, w = random(2, 6, 3), random(6, 3, seed=1, parameter=True)

    def critic(x):
        h = (x * w).tanh()
        return (h[:, :3] * h[:, 3:] + h[:, 1:4] * h[:, ::2] + h[:, 2, None] * h[:, -1, None]).sum((1, 2))

    agree(critic, x, [w], rule="slice")


def test_a_parameter_that_is_expanded_or_viewed_is_no_business_of_a_rule():
    x, w, bias = random(2, 3, 4), random(12, seed=1, parameter=True), random(3, 1, seed=2, parameter=True)
    steps = agree(lambda x: ((x * w.view(3, 4)).tanh() + bias.expand(2, 3, 4)).tanh().sum((1, 2)), x, [w, bias])
    assert all(rule != "expand" for _, rule, *_ in steps)


def test_views_into_an_image_and_out_of_it():
    x = random(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    convolution, linear = torch.nn.Conv2d(3, 5, 3, padding=1).double(), torch.nn.Linear(80, 1).double()
    convolution.to(memory_format=torch.channels_last)
    critic = lambda x: linear(convolution(x).tanh().flatten(1)).squeeze(1)  # noqa: E731
    agree(critic, x, [*convolution.parameters(), *linear.parameters()], rule="view")


def test_tokens_and_heads():
    x = random(2, 3, 8)
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 24).double()

    def critic(x):
        q, k, v = layer(x).view(2, 3, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(2, 3, 8)[:, 0]

    agree(critic, x, layer.parameters(), rule="permute")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name",
    [
        *("expand", "repeat", "index", "index_select", "unfold", "slice", "pad", "gather", "sort", "cumsum"),
        "as_strided with overlaps",
    ],
)
def test_low_precision(name, dtype):
    operation, sizes, _ = CASES[name]
    w, v = random(*sizes, seed=1), random(*operation(random(*sizes)).shape, seed=2)

    def make(kind):
        parameters = [p.detach().to(dtype).to(kind).requires_grad_() for p in (w, v)]
        return (lambda x: (operation((x * parameters[0]).tanh()) * parameters[1]).tanh()), parameters

    agree_low(make, random(*sizes), dtype)


def test_what_is_left_alone():
    x, w = random(3, 4), random(3, 4, seed=1, parameter=True)
    masked = lambda x: (x * w).tanh().masked_select(torch.ones(3, 4) > 0)  # noqa: E731
    agree(masked, x, [w], alone="MaskedSelectBackward0")
    # of places outside
    agree(lambda x: (x * w).tanh()[1:].as_strided((2, 2), (4, 1), 0), x, [w], alone="AsStridedBackward0")
    # of a value in another order, with overlaps
    agree(lambda x: (x * w).tanh().t().as_strided((2, 2), (1, 1)), x, [w], alone="AsStridedBackward0")
    agree(lambda x: (x * w).tanh().cumsum(1, dtype=torch.float32), x, [w], alone="CumsumBackward0", tolerance=1e-6)


def test_sparse_values_are_left_alone():
    x, w = random(3, 4), random(3, 4, seed=1, parameter=True)
    agree(lambda x: (x * w).tanh().to_sparse().t().to_dense().tanh(), x, [w], alone="TBackward0")


def test_bytes_as_a_mask_are_left_alone():
    x, w = random(2, 3), random(2, 3, seed=1, parameter=True)
    with pytest.warns(UserWarning, match="uint8"):
        agree(lambda x: (x * w).tanh()[:, MASK.byte()], x, [w], alone="IndexBackward0")


@pytest.mark.parametrize("name", ["index", "mask", "index_select", "gather", "take"])
def test_an_index_written_to_since_raises_as_in_autograd(name):
    index = {"mask": MASK.clone(), "take": torch.tensor([0, 2])}.get(name, torch.tensor([[0, 2], [1, 1]]))
    index = index[0].clone() if name in ("index", "index_select") else index

    def critic(x):
        h = x.tanh()
        y = {
            "index": lambda: h[:, index],
            "mask": lambda: h[:, index],
            "index_select": lambda: h.index_select(1, index),
            "gather": lambda: h.gather(1, index),
            "take": lambda: h.take(index),
        }[name]()
        index.zero_()
        return y

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        tape_gradients(critic, random(2, 3), [], lambda y, g: (g**2).sum())


def test_an_index_is_counted_among_what_is_kept():
    x = random(2, 3)
    seen = []

    def loss(y, g):
        seen.extend(line.split("\t") for line in torch.ops.gpfast.describe(g))
        return (g**2).sum()

    gpfast.input_gradient_loss(lambda x: x.tanh()[:, INDEX], x, loss, engine="tape")
    assert [int(kept) for _, rule, *_, kept in seen if rule == "index"] == [4 * 8]

"""What the lines of random critics are chosen by.

A line is a pair: which shapes it takes, and (writer, variable) -> an expression. The writer `b` draws what it needs:
b.among(choices), b.integer(least, most), b.variable(shape), and tensors that do not depend on the points, or hardly:
b.given(*shape), b.weight(*shape).
"""


def rank(*ranks):
    return lambda shape: len(shape) in ranks


def ranks_from(least):
    return lambda shape: len(shape) >= least


def planes(least=2, rank=4):
    """Shapes whose last dimensions, after batch and channels, have this many elements or more."""
    return lambda shape: len(shape) == rank and min(shape[2:]) >= least


def anything(shape):
    return True


def each(fits, *templates):
    """Templates without choices, over {v}."""
    return [(fits, lambda b, v, template=template: template.format(v=v)) for template in templates]


def dim(b, v, least=0):
    """A dimension of v, counted from the front or from the back."""
    d = b.integer(least, v.ndim - 1)
    return b.among([d, d - v.ndim])


def dims(b, v):
    return tuple(sorted({b.integer(0, v.ndim - 1) for _ in range(b.integer(1, 2))}))


def broadcast(b, v):
    """A shape that broadcasts with v's."""
    kept = b.integer(0, v.ndim)
    return tuple(b.among([size, 1, size]) for size in v.shape[v.ndim - kept :])


def other(b, v):
    """A tensor that broadcasts with v: another variable, v itself, a parameter, or something reduced."""
    kind = b.integer(0, 5)
    if kind < 2:
        return b.variable(v.shape)
    if kind == 2 and v.ndim:
        w = b.variable(v.shape)
        return f"{w}.{b.among(['mean', 'amax', 'sum'])}({dim(b, w)}, keepdim=True)"
    if kind == 3:
        return f"{b.variable()}.mean()"
    return b.weight(*broadcast(b, v)) if kind == 4 else b.given(*broadcast(b, v))

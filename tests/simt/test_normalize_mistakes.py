"""Mistakes made on purpose in a copy of the norms' CUDA kernels: the tests of the kernels would see each of them."""

import ctypes
import re
from typing import NamedTuple

import pytest
import torch
from normalize_kernel_checks import BATCH, PIXELS, PLANES, Case, Shape, assert_near
from simt import CACHE, CSRC, Library, SimtError, missing

HEADERS = ("normalize_pieces.h", "normalize_plan.h", "cuda_sums.h")
# The copy is of one dtype, so that it compiles fast.
ALL_DTYPES = r"with_type\(dtype, \[&\]\(auto zero\) \{\n    using T = decltype\(zero\);(.*?)\n  \}\);"
SWITCH = 'extern "C" {\nint gpfast_mistake = 0;\n}\n'
LONG_ROWS, SHORT_ROWS = Shape(PIXELS, 2, 1, 4100, 1), Shape(PIXELS, 3, 1, 33, 1)
LONG_PLANES = Shape(PLANES, 1, 2, 1, 9000)


class Mistake(NamedTuple):
    """What is written in place of what, where MISTAKEN is 1 while it is made, else 0; a shape that it concerns."""

    right: str
    wrong: str
    shape: Shape


MISTAKES = {
    "a sum is read before it is written": Mistake(
        "of_warps[thread / kWarp * kSums + k] = sums[k];\n  __syncthreads();",
        "of_warps[thread / kWarp * kSums + k] = sums[k];\n  if (!MISTAKEN) __syncthreads();",
        Shape(PIXELS, 3, 1, 1030, 1),
    ),
    "sums of columns are read before they are written": Mistake(
        "of_threads[k * kThreads + thread] = sums[k];\n  __syncthreads();",
        "of_threads[k * kThreads + thread] = sums[k];\n  if (!MISTAKEN) __syncthreads();",
        Shape(PIXELS, 2, 2, 8, 9),
    ),
    "memory is used again before it was read": Mistake(
        "  __syncthreads();\n#pragma unroll\n  for (int k = 0; k < kSums; ++k) of_threads",
        "  if (!MISTAKEN) __syncthreads();\n#pragma unroll\n  for (int k = 0; k < kSums; ++k) of_threads",
        Shape(PIXELS, 1, 1, 128, 9),
    ),
    "the last vector holds one too many": Mistake(
        "k < left ? from[k] : T", "k < left + MISTAKEN ? from[k] : T", SHORT_ROWS
    ),
    "the last vector writes one too few": Mistake(
        "if (k < left) to[k] = e", "if (k + MISTAKEN < left) to[k] = e", SHORT_ROWS
    ),
    "a row begins where the one before it does": Mistake(
        "begin = group * n,", "begin = (group - (MISTAKEN && group > 0)) * n,", Shape(PIXELS, 3, 1, 32, 1)
    ),
    "every chunk of a run is its first": Mistake(
        "run * runs.length + e, end - e",
        "run * runs.length + e - MISTAKEN * begin, end - e",
        Shape(BATCH, 2, 2, 1, 4100),
    ),
    "a run goes on beyond its end": Mistake(
        "++behind == b.length", "++behind == b.length + MISTAKEN", Shape(PLANES, 2, 3, 4, 5)
    ),
    "a sample is taken for a channel": Mistake(
        "run % b.groups :", "(MISTAKEN ? run / b.groups : run % b.groups) :", Shape(BATCH, 3, 3, 1, 7)
    ),
    "a part is left out": Mistake("part < count;", "part < count - MISTAKEN;", Shape(PIXELS, 70, 1, 33, 1)),
    "lines are of what was read last": Mistake(
        "if (from != last) read", "if (from != last && !MISTAKEN) read", LONG_PLANES
    ),
    "the last piece of a row is not in its sums": Mistake(
        "if (!kTwice || from == last) break;", "if (!kTwice || from == last - MISTAKEN * at_once) break;", LONG_PLANES
    ),
    "coefficients are another row's": Mistake(
        "<typename Form::Of*>(made + group *", "<typename Form::Of*>(made + (group ^ MISTAKEN) *", LONG_ROWS
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def library():
    """Of the source and its headers in one file, where compiled copies are kept."""
    if missing():
        pytest.skip(missing())
    text = (CSRC / "ops" / "normalize.cu").read_text()
    for header in HEADERS:
        include = f'#include "ops/{header}"'
        text = text.replace(include, (CSRC / "ops" / header).read_text(), 1).replace(include, "")
    text, found = re.subn(ALL_DTYPES, r"[&] {\n    using T = float;\1\n  }();", text, flags=re.DOTALL)
    assert found == 1, "the source has changed: tell this test how to compile it for one dtype"
    for number, (name, mistake) in enumerate(MISTAKES.items(), 1):
        assert mistake.right in text, f"the source has changed: say anew how {name}"
        text = text.replace(mistake.right, mistake.wrong.replace("MISTAKEN", f"(gpfast_mistake == {number})"))
    CACHE.mkdir(parents=True, exist_ok=True)
    source = CACHE / "normalize_mistakes.cu"
    source.write_text(SWITCH + text)
    return Library(source)


def is_right(library, shape, seed):
    case = Case(shape, torch.float32)
    expected = case.expected()
    try:
        assert_near(case.adjoint(library, seed=seed), expected.adjoint(), torch.float32)
        assert_near(case.tangent(library, seed=seed), expected.tangent(), torch.float32)
    except (AssertionError, SimtError):
        return False
    return True


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_seen(library, name):
    """At one of a few orders of threads at least; and without it all is right."""
    shape, made = MISTAKES[name].shape, ctypes.c_int.in_dll(library._loaded, "gpfast_mistake")
    seeds = (1, 2, 3, 4)
    assert all(is_right(library, shape, seed) for seed in seeds)
    made.value = list(MISTAKES).index(name) + 1
    try:
        assert not all(is_right(library, shape, seed) for seed in seeds)
    finally:
        made.value = 0

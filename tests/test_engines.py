"""Every engine on every critic of the zoo: the value and every parameter's gradient against the reference."""

import pytest
import torch
from zoo_runs import as_close_as_eager, exact

from gpfast.zoo import ZOO

ATS = ["interpolates", "real", "fake", "dragan"]
FORMS = {"two-sided": {}, "one-sided": {"one_sided": True, "center": 0.5}}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("at", ATS)
@pytest.mark.parametrize("name", ZOO)
def test_exact_in_float64(name, at, reduction, form):
    exact(name, "cpu", at=at, reduction=reduction, **FORMS[form])


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_as_close_as_eager_in_lower_precision(name, dtype):
    as_close_as_eager(name, "cpu", dtype, small=True, batch=ZOO[name].small_batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_as_close_as_eager_at_real_size(name):
    as_close_as_eager(name, "cpu", torch.float32, small=False, batch=min(ZOO[name].batch, 4))

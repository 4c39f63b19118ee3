"""What a critic is made of, as far as it decides how a penalty is taken: looked up once a module."""

from __future__ import annotations

import dis
import functools
import types
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class Facts(NamedTuple):
    """Of a module and all it holds: batch norms, LSTMs; whether there are recurrent, compiled or sharded parts."""

    kind: type
    batch_norms: list[weakref.ref]
    recurrent: bool
    lstms: list[weakref.ref]
    compiled: bool
    sharded: bool


# FSDP1 and FSDP2, known by name: importing them takes a second.
_SHARDED = {"FullyShardedDataParallel", "FSDPModule"}
_known: weakref.WeakKeyDictionary[nn.Module, Facts] = weakref.WeakKeyDictionary()


def facts_of(module: nn.Module) -> Facts:
    """Looked up at the first call for `module`, and again where it has become of another class, as sharding does."""
    facts = _known.get(module)
    if facts is None or facts.kind is not type(module):
        parts = list(module.modules())
        facts = _known[module] = Facts(
            type(module),
            [weakref.ref(part) for part in parts if isinstance(part, _BatchNorm)],
            any(isinstance(part, nn.RNNBase | nn.RNNCellBase) for part in parts),
            [weakref.ref(part) for part in parts if isinstance(part, nn.LSTM)],
            any(type(part).__name__ == "OptimizedModule" or part._compiled_call_impl is not None for part in parts),
            any(_SHARDED & {kind.__name__ for kind in type(part).__mro__} for part in parts),
        )
    return facts


def is_compiled_function(critic: Callable) -> bool:
    """Whether torch.compile made `critic`, which is no module."""
    return hasattr(critic, "_torchdynamo_orig_callable") and not getattr(critic, "_torchdynamo_disable", False)


def modules_of(critic: Callable) -> list[nn.Module]:
    """A module itself; those that a method, partial or function plainly uses: its owner, closure, names it reads."""
    if isinstance(critic, nn.Module):
        return [critic]
    if isinstance(critic, functools.partial):
        held = [*critic.args, *critic.keywords.values()]
        return [m for m in held if isinstance(m, nn.Module)] + modules_of(critic.func)
    function = getattr(critic, "__func__", critic)
    code = getattr(function, "__code__", None)
    if code is None:
        return []
    scope = function.__globals__
    held: list[Any] = [scope[name] for name in _globals_read_by(code) if name in scope]
    held.append(getattr(critic, "__self__", None))
    held += [cell.cell_contents for cell in function.__closure__ or () if holds(cell)]
    owners = [vars(owner) for owner in held if hasattr(owner, "__dict__") and not isinstance(owner, nn.Module | type)]
    held += [fields[name] for fields in owners for name in code.co_names if name in fields]
    return [module for module in held if isinstance(module, nn.Module)]


def modules_in(critic: Callable) -> list[nn.Module]:
    """Those and more: also what functions that it holds use. Each once."""
    found, seen, open_ = {}, set(), [critic]
    while open_:
        user = open_.pop()
        if id(user) in seen:
            continue
        seen.add(id(user))
        found |= {id(module): module for module in modules_of(user)}
        cells = getattr(getattr(user, "__func__", user), "__closure__", None) or ()
        held = (cell.cell_contents for cell in cells if holds(cell))
        open_ += [x for x in held if isinstance(x, types.FunctionType | types.MethodType)]
    return list(found.values())


def holds(cell: types.CellType) -> bool:
    """Whether a function's cell has been filled."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


@functools.lru_cache(maxsize=64)
def _globals_read_by(code: types.CodeType) -> tuple[str, ...]:
    return tuple(i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL")

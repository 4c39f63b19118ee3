"""How a critic is run: by kernels that autograd can differentiate twice, and not compiled.

Fused attention has no second derivative, nor have cuDNN's recurrent layers, nor what torch.compile makes of a critic.
That of oneDNN's LSTM is made of thousands of small operators, where the plain layer is nodes that the tape knows.
Switches of PyTorch's are turned for the duration of a call, in which the critic may also be run again (checkpoints).
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from gpfast.batch_statistics import level_of_the_caller, warn_of_batch_statistics
from gpfast.modules import facts_of, is_compiled_function, modules_of

_C = torch._C
_said: weakref.WeakSet = weakref.WeakSet()


class _Switches:
    """Holds switches of PyTorch's, which are global, as long as any thread is inside; then they are as they were."""

    __slots__ = ("inside", "lock", "turned", "wanted")

    def __init__(self, *wanted: tuple[Callable[[], bool], Callable[[bool], None], bool]):
        self.wanted, self.turned, self.inside, self.lock = wanted, [], 0, threading.Lock()

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                for switch in self.wanted:
                    is_on, turn, value = switch
                    if is_on() is not value:
                        turn(value)
                        self.turned.append(switch)

    def __exit__(self, *error) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                while self.turned:
                    _, turn, value = self.turned.pop()
                    turn(not value)


_MATH = (_C._get_math_sdp_enabled, _C._set_sdp_use_math, True)
_FLASH = (_C._get_flash_sdp_enabled, _C._set_sdp_use_flash, False)
_EFFICIENT = (_C._get_mem_efficient_sdp_enabled, _C._set_sdp_use_mem_efficient, False)
_CUDNN_ATTENTION = (_C._get_cudnn_sdp_enabled, _C._set_sdp_use_cudnn, False)
_on_cpu = _Switches(_MATH, _FLASH)
_elsewhere = _Switches(_MATH, _FLASH, _EFFICIENT, _CUDNN_ATTENTION)
_recurrent = _Switches((_C._get_cudnn_enabled, _C._set_cudnn_enabled, False))
_without_onednn = _Switches((_C._get_mkldnn_enabled, _C._set_mkldnn_enabled, False))


class _PlainLSTMs:
    """Runs these layers, and nothing else, without oneDNN; not in a checkpoint, which may run again after the call."""

    def __init__(self, lstms: list[weakref.ref]):
        self.lstms, self.hooks, self.turned = lstms, [], []

    def __enter__(self) -> None:
        for lstm in filter(None, (ref() for ref in self.lstms)):
            self.hooks.append(lstm.register_forward_pre_hook(self._begin))
            self.hooks.append(lstm.register_forward_hook(self._end, always_call=True))

    def __exit__(self, *error) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()

    def _begin(self, *_) -> None:
        self.turned.append(_C._autograd._top_saved_tensors_default_hooks(True) is None)
        if self.turned[-1]:
            _without_onednn.__enter__()

    def _end(self, *_) -> None:
        if self.turned and self.turned.pop():
            _without_onednn.__exit__()


_stances: list = []


def _force_eager(on: bool) -> None:
    if on:
        _stances.append(torch.compiler.set_stance("force_eager"))  # which sets it at once
    else:
        _stances.pop().__exit__(None, None, None)


_uncompiled = _Switches((lambda: False, _force_eager, True))


def twice_differentiable(
    critic: Callable, point: Tensor, *, by_sample: bool = False, by_tape: bool = False
) -> AbstractContextManager:
    """A context in which what `critic` makes of `point` can be differentiated twice.

    by_tape: the sweeps do it, which know the nodes of a plain LSTM.
    Warns once of a compiled critic, and, where `by_sample`, of one that normalises by the batch.
    """
    modules = modules_of(critic)
    if by_sample:
        warn_of_batch_statistics(modules)
    attention = _on_cpu if point.is_cpu else _elsewhere
    recurrent = compiled = False
    lstms = []
    for module in modules:
        facts = facts_of(module)
        if facts.sharded and torch.is_grad_enabled():
            raise RuntimeError(
                f"the critic ({type(module).__name__}) is sharded by FSDP, which reduces gradients at the end of the"
                " first backward pass: those of a gradient penalty would be lost without a word, in PyTorch's double"
                " backward too. Wrap the critic in DistributedDataParallel instead; a sharded generator is no obstacle."
            )
        recurrent |= facts.recurrent
        lstms += facts.lstms
        compiled |= facts.compiled or module._compiled_call_impl is not None
    recurrent &= point.is_cuda
    if not isinstance(critic, nn.Module):
        compiled |= is_compiled_function(critic)
    plain = [_PlainLSTMs(lstms)] if lstms and by_tape and point.is_cpu else []
    if not (recurrent or plain or compiled):
        return attention
    if compiled:
        _say_uncompiled(critic)
    return _Several([attention, *plain] + [_recurrent] * recurrent + [_uncompiled] * compiled)


class _Several:
    def __init__(self, contexts: list[AbstractContextManager]):
        self.contexts = contexts

    def __enter__(self) -> None:
        for context in self.contexts:
            context.__enter__()

    def __exit__(self, *error) -> None:
        for context in self.contexts:
            context.__exit__()


def _say_uncompiled(critic: Callable) -> None:
    if critic in _said:
        return
    _said.add(critic)
    warnings.warn(
        "the critic, or a part of it, comes from torch.compile, whose result cannot be differentiated twice: for the"
        " gradient penalty it is run uncompiled. Elsewhere it stays compiled.",
        stacklevel=level_of_the_caller(),
    )


def one_graph_break(function: Callable) -> Callable:
    """`function`, not to be traced by torch.compile: a caller's graph breaks there once, and nothing inside is seen.

    As torch.compiler.disable, without importing the compiler, which takes seconds, and without its cost at each call.
    """
    try:
        from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
    except ImportError:  # private names, which may go
        return torch._disable_dynamo(function)
    set_code_exec_strategy(function.__code__, _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP))
    function._torchdynamo_disable = True
    function._torchdynamo_disable_msg = "gpfast takes gradients inside, which no graph of the compiler can hold"
    return function

"""Triton's interpreter, made ready. `enable()` must run before anything imports Triton, and torch may import it."""

import importlib.util
import os
import sys


def enable() -> bool:
    """Whether Triton kernels now run in the interpreter, on CPU tensors; False where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return False
    assert "triton" not in sys.modules, "interpreter.enable() must run before Triton is imported"
    os.environ["TRITON_INTERPRET"] = "1"
    _round_bfloat16()
    _refuse_bfloat16_arithmetic()
    _let_nan_and_inf_pass()
    return True


def _round_bfloat16():
    """Casts fp32 to bf16 to the nearest even, as every GPU does: the interpreter (3.7.1, 3.8.0) truncates."""
    import numpy
    import torch
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def convert_float(value, source, target, rounding):
        if source == tl.float32 and target == tl.bfloat16:
            bits = torch.from_numpy(numpy.ascontiguousarray(value)).to(torch.bfloat16).view(torch.int16)
            return bits.numpy().view(numpy.uint16).reshape(numpy.shape(value))
        return convert(value, source, target, rounding)

    interpreter._convert_float = convert_float


def _refuse_bfloat16_arithmetic():
    """Raises where a kernel computes in bf16: the interpreter would add the bit patterns."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    binary = InterpreterBuilder.binary_op

    def binary_op(self, left, right, operation):
        if left.dtype.scalar == tl.bfloat16:
            raise TypeError("bf16 arithmetic is wrong in the interpreter: upcast with .to(tl.float32) after the load")
        return binary(self, left, right, operation)

    InterpreterBuilder.binary_op = binary_op


def _let_nan_and_inf_pass():
    """Silences numpy, in which the interpreter computes, about inf * 0 and 0 / 0: a GPU warns of nothing."""
    import numpy

    numpy.seterr(all="ignore")

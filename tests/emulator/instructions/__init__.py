"""What each instruction does, by the first part of its opcode: operation(threads, instruction, lanes)."""

from . import arithmetic, bits, comparison, conversion, data, warp

OPERATIONS = {
    **arithmetic.OPERATIONS,
    **bits.OPERATIONS,
    **comparison.OPERATIONS,
    **conversion.OPERATIONS,
    **data.OPERATIONS,
    **warp.OPERATIONS,
}

"""What each instruction does, by the first part of its opcode: operation(threads, instruction, lanes)."""

from ..faults import Fault
from ..parser import Instruction
from . import arithmetic, bits, carry, comparison, conversion, data, warp

OPERATIONS = {
    **arithmetic.OPERATIONS,
    **bits.OPERATIONS,
    **carry.OPERATIONS,
    **comparison.OPERATIONS,
    **conversion.OPERATIONS,
    **data.OPERATIONS,
    **warp.OPERATIONS,
}

# Parts of an opcode that would change its result and are not modelled.
NOT_MODELLED = {
    **dict.fromkeys(arithmetic.OPERATIONS, {"sat", "relu", "rz", "rm", "rp", "xorsign"}),
    "fma": {"sat", "relu", "rz", "rp"},
    **dict.fromkeys(("bar", "barrier"), {"red", "arrive", "cluster"}),
    "cvt": {"pack", "rz", "rm", "rp", "rna", "rs"},
    "prmt": {"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"},
}


def check_modelled(op: Instruction):
    unknown = NOT_MODELLED.get(op.parts[0], set()).intersection(op.parts)
    if unknown:
        raise Fault(f"{op.parts[0]} with .{min(unknown)} is not modelled")

"""Plain text for what people read: even columns, numbers, errors."""

from __future__ import annotations

from collections.abc import Sequence


def columns(lines: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """`lines` of cells, the first of them the head, in columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = (
        [cell.rjust(width) if r else cell.ljust(width) for cell, width, r in zip(line, widths, right, strict=True)]
        for line in lines
    )
    return "\n".join("  ".join(line).rstrip() for line in text)


def digits(x: float) -> str:
    """`x` in three digits or so, without exponents down to a thousandth."""
    return f"{x:,.0f}" if x >= 99.95 else f"{x:.3g}" if x >= 1e-3 or x == 0 else f"{x:.1e}"


def first_line(error: Exception) -> str:
    """An error in a line."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"

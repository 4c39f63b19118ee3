"""The budget tables of benchmarks/budgets: what every kernel needs of a GPU, for every target. Run it to renew them.

    python tests/compiled/budgets.py

A table is written for each target and compiler that is at hand: triton-*.csv needs Triton, cuda-*.csv needs nvcc.
"""

import argparse
import csv
import io
import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import cuda
from occupancy import occupancy
from resources import Resources

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "budgets"
REGENERATE = "python tests/compiled/budgets.py"
TRITON_TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
TABLES = tuple(f"triton-{t}" for t in TRITON_TARGETS) + tuple(f"cuda-{t}" for t in cuda.TARGETS)


class Budget(NamedTuple):
    """A row. Of a thread: registers, spills, stack_bytes (of local memory); of a block: shared_bytes; load_bytes and
    store_bytes: the widest access of global memory; occupancy: percent of a multiprocessor's warps that fit at once."""

    kernel: str
    threads: int
    registers: int
    spills: int
    stack_bytes: int
    shared_bytes: int
    load_bytes: int
    store_bytes: int
    occupancy: int

    def worse_than(self, allowed: "Budget") -> list[str]:
        """In what it needs more than `allowed`, where another compiler may choose other registers."""
        more = [f for f in ("spills", "stack_bytes", "shared_bytes") if getattr(self, f) > getattr(allowed, f)]
        less = [f for f in ("load_bytes", "store_bytes", "occupancy") if getattr(self, f) < getattr(allowed, f)]
        return [f"{field} {getattr(self, field)}, budget {getattr(allowed, field)}" for field in more + less]


class Table(NamedTuple):
    compiler: str
    rows: dict[str, Budget]


@cache
def fresh(name: str) -> Table:
    """The table as it is compiled now."""
    kind, target = name.split("-")
    rows = list(_triton(target) if kind == "triton" else _cuda(target))
    assert len({row.kernel for row in rows}) == len(rows), "two kernels of one name"
    return Table(_triton_version() if kind == "triton" else _nvcc_version(), {row.kernel: row for row in rows})


def read(name: str) -> Table:
    """The table that is checked in."""
    first, *lines = (FOLDER / f"{name}.csv").read_text().splitlines()
    rows = [Budget(row[0], *map(int, row[1:])) for row in list(csv.reader(lines))[1:]]
    return Table(first.removeprefix("# "), {row.kernel: row for row in rows})


def write(name: str, table: Table):
    text = io.StringIO()
    text.write(f"# {table.compiler}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Budget._fields)
    writer.writerows(table.rows.values())
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.csv").write_text(text.getvalue())


def differences(found: Table, checked_in: Table) -> list[str]:
    """Exact where the compiler is the table's own; with another one only what is worse."""
    missing = [f"{kernel} is not in the table" for kernel in found.rows.keys() - checked_in.rows.keys()]
    gone = [
        f"{kernel} is in the table, and no longer compiled" for kernel in checked_in.rows.keys() - found.rows.keys()
    ]
    changed = []
    for kernel in found.rows.keys() & checked_in.rows.keys():
        now, budget = found.rows[kernel], checked_in.rows[kernel]
        if found.compiler == checked_in.compiler:
            fields = [f for f in Budget._fields if getattr(now, f) != getattr(budget, f)]
            worse = [f"{field} {getattr(now, field)}, budget {getattr(budget, field)}" for field in fields]
        else:
            worse = now.worse_than(budget)
        changed += [f"{kernel}: {', '.join(worse)}"] if worse else []
    return sorted(missing) + sorted(gone) + sorted(changed)


def _budget(target: str, kernel: str, threads: int, needs: Resources) -> Budget:
    percent = round(100 * occupancy(target, threads, needs.registers, needs.shared_bytes))
    widths = needs.load_bytes, needs.store_bytes
    return Budget(
        kernel, threads, needs.registers, needs.spills, needs.local_bytes, needs.shared_bytes, *widths, percent
    )  # fmt: skip


def _triton(target: str) -> Iterator[Budget]:
    import variants

    for variant in variants.in_budget(target):
        yield _budget(target, variant.label, variant.threads, variant.needs)


def _cuda(target: str) -> Iterator[Budget]:
    for source in cuda.SOURCES:
        for kernel in cuda.kernels(source, target):
            yield _budget(target, kernel.name, kernel.threads, kernel.needs)


def _triton_version() -> str:
    import triton

    return f"triton {triton.__version__}"


def _nvcc_version() -> str:
    said = subprocess.run([cuda.NVCC, "--version"], capture_output=True, text=True, check=True).stdout
    return f"nvcc {re.search(r'V([0-9.]+)', said)[1]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)  # Triton must compile
    import importlib.util

    from tqdm import tqdm

    at_hand = {"triton": importlib.util.find_spec("triton") is not None, "cuda": cuda.NVCC is not None}
    skipped = [name for name in TABLES if not at_hand[name.split("-")[0]]]
    for name in tqdm([name for name in TABLES if name not in skipped], unit="table"):
        write(name, fresh(name))
    if skipped:
        print(f"left as they were, without their compiler: {', '.join(skipped)}")


if __name__ == "__main__":
    main()

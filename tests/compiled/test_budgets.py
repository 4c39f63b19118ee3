"""The tables of benchmarks/budgets hold for what is compiled now."""

import importlib.util

import budgets
import cuda
import pytest
from budgets import Budget, Table
from occupancy import occupancy, resident_blocks


@pytest.mark.parametrize("name", budgets.TABLES)
def test_kernels_keep_their_budget(name):
    if name.startswith("triton") and importlib.util.find_spec("triton") is None:
        pytest.skip("needs Triton")
    if name.startswith("cuda") and cuda.NVCC is None:
        pytest.skip("needs nvcc")
    found = budgets.differences(budgets.fresh(name), budgets.read(name))
    assert not found, f"{name}.csv no longer holds; if that is meant: {budgets.REGENERATE}\n" + "\n".join(found)


@pytest.mark.parametrize("name", budgets.TABLES)
def test_no_budget_allows_spills(name):
    table = budgets.read(name)
    assert table.rows and not [row for row in table.rows.values() if row.spills]


def test_every_file_with_kernels_has_a_budget():
    assert cuda.sources_with_kernels() == set(cuda.SOURCES), "name it in SOURCES of tests/compiled/cuda.py"


ROW = Budget("kernel", 128, 40, 0, 8, 64, 16, 16, 75)


def table(compiler="a 1", **changes) -> Table:
    return Table(compiler, {"kernel": ROW._replace(**changes)})


@pytest.mark.parametrize(
    "change",
    [
        {"registers": 41},
        {"spills": 1},
        {"stack_bytes": 16},
        {"shared_bytes": 65},
        {"load_bytes": 8},
        {"store_bytes": 8},
        {"occupancy": 50},
    ],
    ids=str,
)
def test_a_change_is_found(change):
    ((field, value),) = change.items()
    assert budgets.differences(table(**change), table()) == [f"kernel: {field} {value}, budget {getattr(ROW, field)}"]
    of_another_compiler = budgets.differences(table("a 2", **change), table())
    assert bool(of_another_compiler) == (field != "registers")


def test_better_is_a_change_too_unless_the_compiler_is_another():
    assert budgets.differences(table(occupancy=100), table())
    assert not budgets.differences(table("a 2", occupancy=100), table())


def test_kernels_that_come_and_go_are_found():
    nothing = Table("a 1", {})
    assert budgets.differences(table(), nothing) == ["kernel is not in the table"]
    assert budgets.differences(nothing, table()) == ["kernel is in the table, and no longer compiled"]


def test_occupancy_of_known_kernels():
    """As NVIDIA's calculator has them: bound by warps, by registers, by shared memory, by blocks."""
    assert resident_blocks("sm_80", 128, 32, 0) == 16 and occupancy("sm_80", 128, 32, 0) == 1
    assert resident_blocks("sm_90", 256, 40, 0) == 6 and occupancy("sm_90", 256, 40, 0) == 0.75
    assert resident_blocks("sm_90", 128, 255, 0) == 2
    assert resident_blocks("sm_80", 128, 32, 40_000) == 4 and resident_blocks("sm_90", 128, 32, 40_000) == 5
    assert resident_blocks("sm_100", 32, 24, 1000) == 32
    assert occupancy("gfx942", 256, 64, 0) == 1 and occupancy("gfx942", 256, 128, 0) == 0.5

"""The lines under the benchmark's table."""

from gpfast.cli.summary import summary
from gpfast.cli.table import Row

BIG = {"activation_bytes": 2_000_000}


def critic(name, traits, *, eager=2.0, ours=1.0, compiled=None, peak=50, launches=5, on_gpu=4, note="", **about):
    def row(engine, time, peak, launches):
        found = Row(name, 4, engine, [time], time, time, time, eager / time, launches=launches, traits=traits, **about)
        found.raw_peak_bytes, found.gradient_bytes, found.over_bare = peak, 10, time / 0.5
        found.launches_as_on_gpu = on_gpu if engine == "auto" else launches
        return found

    rows = [row("reference", eager, 100, 20), row("auto", ours, peak, launches)]
    bare = Row(name, 4, "bare", [0.5], 0.5, 0.5, 0.5, eager / 0.5, traits=traits, **about)
    if compiled is not None:
        rows.append(row("compile", compiled, 100, None))
    if note:
        rows.append(Row(name, 4, "compile", note=note, traits=traits, **about))
    return [*rows, bare]


def test_classes_means_and_minima():
    rows = critic("a", ["piecewise-linear", "convolutional"], eager=1.0, ours=1.0, peak=40, **BIG)
    rows += critic("b", ["piecewise-linear"], eager=4.0, ours=1.0, peak=60, **BIG)
    rows += critic("c", ["curved", "convolutional", "norms"], eager=3.0, ours=2.0, peak=80, launches=2, on_gpu=1, **BIG)
    rows += critic("d", ["curved"], eager=3.0, ours=2.0, peak=90, activation_bytes=999_999)
    lines = [line.strip() for line in summary(rows).splitlines()]
    assert lines == [
        "auto",
        "eager / auto, piecewise-linear: geometric mean 2.00, least 1.00 (a); 2 critics",
        "auto / bare passes, piecewise-linear: geometric mean 2.00, most 2.00 (a); 2 critics",
        "eager / auto, curved: geometric mean 1.50, least 1.50 (c); 2 critics",
        "auto / bare passes, curved: geometric mean 4.00, most 4.00 (c); 2 critics",
        "peak of eager's, piecewise-linear convolutional: geometric mean 0.40, most 0.40 (a); 1 critic",
        "peak of eager's, other piecewise-linear: geometric mean 0.60, most 0.60 (b); 1 critic",
        "peak of eager's, curved: geometric mean 0.80, most 0.80 (c); 1 critic",
        "peak of eager's, activations under 1 MB, not judged: d 0.90",
        "launches of eager's, no norms: geometric mean 0.25, most 0.25 (a); 3 critics",
        "launches of eager's, with norms: geometric mean 0.10, most 0.10 (c); 1 critic",
        "launches of eager's, as on a GPU, no norms: geometric mean 0.20, most 0.20 (a); 3 critics",
        "launches of eager's, as on a GPU, with norms: geometric mean 0.05, most 0.05 (c); 1 critic",
    ]
    for row in rows:
        row.launches_as_on_gpu = None
    assert [line.strip() for line in summary(rows).splitlines()] == lines[:-2], "what ran on a GPU, and older files"


def test_compile_is_counted_where_it_served():
    rows = critic("a", ["curved"], ours=1.0, compiled=1.5, **BIG) + critic("b", ["curved"], compiled=0.5, **BIG)
    rows += critic("c", ["curved"], note="does not compile: no", **BIG)
    assert summary(rows).endswith("\n  faster than compile on 1 of 2; counted as neither: c")
    assert "compile" not in summary(critic("a", ["curved"], **BIG))


def test_chunks_are_set_against_the_whole_batch_without_the_gradients():
    rows = critic("a", ["piecewise-linear"], peak=50, **BIG)
    parts = Row("a", 4, "chunks=4", [1.0], 1.0, 1.0, 1.0, 2.0, launches=9, traits=["piecewise-linear"], **BIG)
    parts.raw_peak_bytes, parts.gradient_bytes = 20, 10
    text = summary([*rows, parts])
    assert "own MB (peak without the gradients) of auto's: geometric mean 0.25, most 0.25 (a); 1 critic" in text


def test_nothing_known_is_nothing_said():
    assert summary([]) == ""
    assert summary([Row("a", 4, "reference", [1.0], 1.0, 1.0, 1.0, 1.0), Row("a", 4, "auto", note="no")]) == ""
    text = summary([Row("a", 4, "reference", [1.0], ratio=1.0), Row("a", 4, "auto", [1.0], ratio=2.0)])
    assert text == ""

"""`python -m gpfast bench`: table, JSON, comparison, gate. No test asserts a time."""

import argparse
import json
import subprocess
import sys
import time

import pytest
import torch
from gpfast.kernels import launch

import gpfast
from gpfast import _extension, zoo
from gpfast.__main__ import main
from gpfast.cli import bench, competitors, machine, measure, table, timing
from gpfast.cli.gate import Gate, draws, outcome
from gpfast.compare import Outcome, exact_failures, rounded_failures
from gpfast.operators import CountedStep, as_on_a_gpu, count_step

TINY = ["--repeats", "2", "--seconds", "0.1", "--batch", "4", "--threads", "1"]


needs_tape = pytest.mark.skipif(not _extension.available, reason="needs the C++ extension")


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """The allocator counts as fixed, so that the command does not start this process anew; threads are put back."""
    for name, value in machine.MALLOC.items():
        monkeypatch.setenv(name, value)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def toy():
    entry, critic = zoo.ZOO["toy-mlp"], zoo.build("toy-mlp")
    return entry, critic, entry.inputs(4, False, generator=torch.Generator().manual_seed(0))


def test_table_json_and_comparison(tmp_path, capsys):
    file = tmp_path / "first.json"
    assert main(["bench", "--critics", "toy-mlp", *TINY, "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| toy-mlp")]
    assert [row.split("|")[3].strip() for row in rows] == ["reference", "autograd", "auto", "bare"]
    assert "eager / auto, " in printed and "auto / bare passes, " in printed
    assert "1 threads" in printed and torch.__version__ in printed and "MALLOC_MMAP_THRESHOLD_" in printed
    data = json.loads(file.read_text())
    assert set(data) == {"format", "machine", "versions", "settings", "rows"}
    assert data["settings"]["threads"] == 1 and data["settings"]["batch"] == 4
    for row in data["rows"]:
        assert len(row["times_ms"]) == 2 and row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["launches"] > 0 and row["flop"] > 0 and row["over_bare"] > 0 and row["activation_bytes"] > 0
        if row["engine"] != "bare":
            assert row["peak_bytes"] > 0 and row["raw_peak_bytes"] > row["gradient_bytes"] > 0 < row["bytes_moved"]
    assert data["rows"][-1]["over_bare"] == 1 and data["rows"][-1]["raw_peak_bytes"] is None
    assert data["rows"][0]["engine"] == "reference" and data["rows"][0]["ratio"] == 1

    arguments = ["bench", "--critics", "toy-mlp", *TINY, "--engines", "auto", "--dtype", "float64"]
    assert main([*arguments, "--against", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "change" in printed and "+0.0 %" in printed
    assert "was taken with dtype float32, this with float64" in printed


def test_a_wrong_engine_is_caught_and_not_timed(monkeypatch, capsys, tmp_path):
    right = gpfast.gradient_penalty

    def wrong(critic, real, fake, *, engine, **options):
        value = right(critic, real, fake, engine=engine, **options)
        return value * (1 + 1e-9) if engine == "auto" else value

    monkeypatch.setattr(competitors.gpfast, "gradient_penalty", wrong)
    file = tmp_path / "red.json"
    assert main(["bench", "--critics", "toy-mlp", "tabular-mlp", *TINY, "--json", str(file)]) == 1
    printed = capsys.readouterr().out
    assert "FAILED, no times: toy-mlp: engine auto: small form, float64: the value" in printed
    assert "|" not in printed and "autograd" not in printed
    assert json.loads(file.read_text())["rows"] == []


def test_an_engine_that_is_wrong_in_single_precision_only_is_caught(monkeypatch, toy):
    right = gpfast.gradient_penalty

    def wrong(critic, real, fake, **options):
        value = right(critic, real, fake, **options)
        return value * (1 + 1e-4) if real.dtype == torch.float32 else value

    gate = Gate(*toy)
    assert gate.failures("auto") == []
    monkeypatch.setattr(competitors.gpfast, "gradient_penalty", wrong)
    assert all(failure.startswith("real form, float32: the") for failure in gate.failures("auto"))
    assert len(gate.failures("auto")) >= 4


def test_the_gate_changes_nothing(toy):
    entry, critic, case = toy
    before = {name: value.clone() for name, value in critic.state_dict().items()}
    state = torch.get_rng_state()
    Gate(*toy).failures("autograd")
    Gate(*toy).failures("chunks=2")
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in critic.state_dict().items())
    assert all(parameter.grad is None for parameter in critic.parameters())


def test_the_gate_judges_without_tf32_and_puts_it_back(monkeypatch, toy):
    seen, right = [], gpfast.gradient_penalty

    def watched(*args, **options):
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return right(*args, **options)

    monkeypatch.setattr(competitors.gpfast, "gradient_penalty", watched)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    assert Gate(*toy).failures("auto") == [] and seen == [(False, False)] * 2
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize("name", ["tabular-mlp", "spectral-norm", "projection", "two-inputs", "tuple-output"])
def test_the_gate_is_green_where_critics_draw_keep_buffers_or_take_more(name):
    entry = zoo.ZOO[name]
    critic, generator = zoo.build(name, small=True), torch.Generator().manual_seed(0)
    gate = Gate(entry, critic, entry.inputs(2, True, generator=generator))
    assert gate.failures("auto") == []


def test_the_gate_takes_a_critic_that_draws_in_parts():
    entry = zoo.ZOO["tabular-mlp"]
    critic = zoo.build(entry.name, small=True)
    case = entry.inputs(5, True, generator=torch.Generator().manual_seed(0))
    assert draws(critic, case) and not draws(critic.eval(), case)
    critic.train()
    assert Gate(entry, critic, case, parts=3).failures("chunks=3") == []
    assert Gate(entry, critic, case).failures("chunks=3") != []


def test_chunks_are_measured_beside_the_whole_batch(capsys):
    names = ["toy-mlp", "tabular-mlp", "minibatch-stddev"]
    assert main(["bench", "--critics", *names[:2], *TINY, "--engines", "bare", "--chunks", "2"]) == 0
    printed = capsys.readouterr().out
    for name in names[:2]:
        rows = [line for line in printed.splitlines() if line.startswith(f"| {name}")]
        assert [row.split("|")[3].strip() for row in rows] == ["reference", "bare", "auto", "chunks=2"]
    assert "chunks=2 / bare passes" in printed and "cannot be cut" not in printed


def test_a_batch_that_cannot_be_cut_says_so_in_its_row(capsys):
    entry, critic = zoo.ZOO["spectral-norm"], zoo.build("spectral-norm", small=True)
    rows = {e: table.Row("spectral-norm", 2, e) for e in ("auto", "chunks=2")}
    _, failures = measure._gated(entry, critic, entry.inputs(2, True), rows)
    assert failures == [] and not rows["auto"].note
    assert rows["chunks=2"].note.startswith("cannot be cut: RuntimeError: `chunks`: the critic's forward changed")


def test_missing_gradients_and_nan_fail():
    one = torch.ones((), dtype=torch.float64)
    exact = Outcome(one, {"w": one, "b": None}, norms=one)
    assert exact_failures(Outcome(one, {"w": one, "b": 0 * one}), exact) == []
    assert exact_failures(Outcome(one, {"w": None, "b": None}), exact) == ["w has no gradient"]
    assert "b has a gradient" in exact_failures(Outcome(one, {"w": one, "b": one}), exact)[0]
    nan = one * torch.nan
    assert len(exact_failures(Outcome(nan, {"w": nan, "b": None}), exact)) == 2
    assert len(rounded_failures(Outcome(nan, {"w": nan, "b": None}), exact, exact, torch.float32)) == 2
    far = Outcome(one, {"w": 3 * one, "b": None}, norms=one)
    assert "nothing can be compared" in rounded_failures(exact, far, exact, torch.float32)[0]


def test_the_compiled_competitor_is_the_same_penalty(monkeypatch, toy):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    entry, critic, case = toy
    assert Gate(*toy).real_failures(competitors.compiled_penalty(critic, case), critic) == []
    entry = zoo.ZOO["two-inputs"]
    critic = zoo.build(entry.name, small=True, dtype=torch.float64)
    case = entry.inputs(4, True, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha = torch.rand(4, dtype=torch.float64)
    ours = outcome(competitors.compiled_penalty(critic, case), critic, alpha)
    assert exact_failures(ours, outcome(competitors.penalty_function("reference", critic, case), critic, alpha)) == []


def test_a_competitor_that_cannot_serve_says_so(monkeypatch, capsys):
    def refuse(function, **options):
        raise RuntimeError("\nno compiler here\nand more")

    monkeypatch.setattr(torch, "compile", refuse)
    assert main(["bench", "--critics", "toy-mlp", *TINY, "--engines", "compile"]) == 0
    printed = capsys.readouterr().out
    assert "toy-mlp, compile: does not compile: RuntimeError: no compiler here" in printed
    assert "nothing" not in printed and printed.count("| toy-mlp") == 2


def test_a_compiler_that_takes_too_long_says_so(monkeypatch, capsys):
    def slow(function, **options):
        try:
            time.sleep(60)
        except Exception:
            raise AssertionError("an Exception would have been taken for the compiler's own") from None

    monkeypatch.setattr(torch, "compile", slow)
    monkeypatch.setattr(measure, "COMPILE_SECONDS", 0.05)
    monkeypatch.setattr(measure, "end_compilers", lambda: None)
    assert main(["bench", "--critics", "toy-mlp", *TINY, "--engines", "auto", "compile"]) == 0
    printed = capsys.readouterr().out
    assert "toy-mlp, compile: took longer than 0.05 s to compile" in printed
    assert "faster than compile on 0 of 0; counted as neither: toy-mlp" in printed


def test_what_cannot_be_run_is_refused_in_words(tmp_path, capsys):
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    assert main(["bench", "--against", str(broken)]) == 2
    assert "is not a file that this version's --json wrote" in capsys.readouterr().err
    assert main(["bench", "--json", str(tmp_path / "missing" / "f.json")]) == 2
    assert "--json: " in capsys.readouterr().err
    for arguments in (["--critics", "nobody"], ["--repeats", "0"], ["--device", "abacus"]):
        with pytest.raises(SystemExit):
            main(["bench", *arguments])
    if not torch.cuda.is_available():
        assert main(["bench", "--device", "cuda"]) == 2
        said = capsys.readouterr().err
        assert "--device cuda cannot be used: " in said and "GPU" in said.upper() or "CPU only" in said
        assert "Leave --device out to measure on the CPU" in said


def test_help_explains_everything(capsys):
    parser = bench.add_parser(argparse.ArgumentParser().add_subparsers())
    text = parser.format_help()
    words = (
        "MALLOC_TRIM_THRESHOLD_",
        "ratio",
        "peak MB",
        "own MB",
        "launches",
        "as on GPU",
        "fake",
        "GFLOP",
        "gate",
        "--against",
        "compile",
    )
    for word in (
        *words,
        "bare: each convolution",
        "x bare",
        "it has no gate",
        "120 s",
        "--chunks",
        *competitors.COMPILED,
    ):
        assert word in text
    assert all(option.help for option in parser._actions)


def test_malloc_is_fixed_by_starting_anew_once(monkeypatch):
    calls = []
    monkeypatch.setattr(machine.os, "execve", lambda *call: calls.append(call))
    monkeypatch.setattr(machine, "_has_glibc", lambda: True)
    machine.fix_malloc()
    assert calls == []
    monkeypatch.delenv("MALLOC_TOP_PAD_")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "123")
    machine.fix_malloc()
    ((program, arguments, environment),) = calls
    assert program == sys.executable and arguments[1:] == sys.orig_argv[1:]
    assert environment["MALLOC_TOP_PAD_"] == machine.MALLOC["MALLOC_TOP_PAD_"]
    assert environment["MALLOC_TRIM_THRESHOLD_"] == "123"
    monkeypatch.setattr(machine, "_has_glibc", lambda: False)
    machine.fix_malloc()
    assert len(calls) == 1 and "no glibc" in machine.malloc_line()


def test_rounds_run_every_step_as_often():
    counts = {"a": 0, "b": 0}

    def step(name):
        counts[name] += 1

    rounds = []
    times = timing.interleaved(
        {name: lambda name=name: step(name) for name in counts},
        rounds=5,
        seconds=60,
        device="cpu",
        on_round=lambda: rounds.append(1),
    )
    assert counts["a"] == counts["b"] and len(rounds) == len(times["a"]) == len(times["b"]) == 5
    few = timing.interleaved({"a": lambda: None}, rounds=50, seconds=0, device="cpu")
    assert len(few["a"]) == timing.MIN_ROUNDS


def test_percentiles_and_ratio():
    assert timing.percentiles([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == (2.0, 3.5, 5.0)
    assert timing.percentiles([7.0]) == (7.0, 7.0, 7.0)
    assert timing.ratio([2.0, 4.0, 9.0], [1.0, 4.0, 3.0]) == 2.0


def test_a_row_without_figures_keeps_the_table_even():
    rows = [
        table.Row("c", 4, "auto", [1.0], 1.0, 1.0, 1.0, 1.2345, 1, 2, 3, 4),
        table.Row("c", 4, "compile", note="no"),
    ]
    earlier = [table.Row("c", 4, "auto", ratio=1.0)]
    text = table.render(rows, earlier)
    lines = text.splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    assert "+23.4 %" in lines[2] and lines[-1] == "c, compile: no"


def test_peak_and_launches_are_shares_of_eager():
    rows = [
        table.Row("c", 4, "reference", launches=10, raw_peak_bytes=1000, gradient_bytes=200),
        table.Row("c", 4, "auto", launches=5, raw_peak_bytes=400, gradient_bytes=300),
        table.Row("d", 4, "auto", launches=5, raw_peak_bytes=400, gradient_bytes=300),
    ]
    assert rows[1].own_bytes == 100
    head, _, eager, ours, alone = ([c.strip() for c in line.split("|")] for line in table.render(rows).splitlines())
    shares = [i for i, name in enumerate(head) if name == "/ eager"]
    assert [eager[i] for i in shares] == ["1.00", "1.00"] and [ours[i] for i in shares] == ["0.40", "0.50"]
    assert [alone[i] for i in shares] == ["-", "-"]


def as_on_gpu(name, engine, case, critic):
    """The row of a step, not timed."""
    row = table.Row(name, len(case.real), engine)
    measure._step(engine, critic, case, row)
    assert row.note == ""
    return row


@needs_tape
def test_launches_as_on_a_gpu_are_counted_for_each_engine(tmp_path, capsys):
    file = tmp_path / "f.json"
    assert main(["bench", "--critics", "tabular-mlp", *TINY, "--chunks", "2", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    entry, critic = zoo.ZOO["tabular-mlp"], zoo.build("tabular-mlp")
    case = entry.inputs(4, False)
    whole, parts = ({"engine": "auto", "chunks": n} for n in (1, 2))
    options = {
        "reference": {"engine": "reference"},
        "autograd": {"engine": "autograd"},
        "auto": whole,
        "chunks=2": parts,
    }
    expected = {engine: count_step(critic, case.real, case.fake, **how).launches for engine, how in options.items()}
    assert expected["chunks=2"] > expected["auto"] < expected["reference"]
    rows = json.loads(file.read_text())["rows"]
    assert {r["engine"]: r["launches_as_on_gpu"] for r in rows} == {**expected, "bare": None}
    head, _, *lines = ([c.strip() for c in line.split("|")] for line in printed.splitlines() if line.startswith("| "))
    place = head.index("as on GPU")
    assert head[place + 1] == "/ eager"
    for line in lines:
        count = expected.get(line[3])
        share = f"{count / expected['reference']:.2f}" if count else "-"
        assert line[place : place + 2] == [str(count or "-"), share]
    assert "counted on fake tensors (gpfast.operators), no GPU was used" in " ".join(printed.split())


@needs_tape
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs a PyTorch with oneDNN")
@pytest.mark.parametrize("engine", ["auto", "chunks=2"])
@pytest.mark.parametrize("name", ["dcgan32", "layernorm-dcgan"])
def test_launches_as_on_a_gpu_do_not_depend_on_onednn(name, engine):
    assert torch._C._get_mkldnn_enabled()
    entry, critic = zoo.ZOO[name], zoo.build(name, small=True)
    case = entry.inputs(4, True)
    with_it = as_on_gpu(name, engine, case, critic)
    with as_on_a_gpu():
        without = as_on_gpu(name, engine, case, critic)
    assert with_it.bytes_moved > without.bytes_moved, "the tape turns values for oneDNN"
    scaled = 1  # by what came into backward, which the CPU reads: it is 1
    assert with_it.launches_as_on_gpu == without.launches_as_on_gpu == without.launches + scaled
    assert torch._C._get_mkldnn_enabled()


class Long(torch.nn.Module):
    """A norm over so many columns, and their sum by weight."""

    def __init__(self, columns):
        super().__init__()
        self.norm = torch.nn.LayerNorm(columns)
        self.score = torch.nn.Linear(columns, 1)

    def forward(self, x):
        return self.score(torch.tanh(self.norm(x)))


@needs_tape
def test_a_fused_operator_of_several_kernels_counts_as_said():
    """The ends as the kernels they launch, a norm's as one."""
    counted = {}
    for columns in (8, launch.ROW_COLUMNS + 1):
        case = zoo.Case(torch.randn(2, columns), torch.randn(2, columns))
        counted[columns] = as_on_gpu("long", "auto", case, Long(columns)).launches_as_on_gpu
    kernels = [launch.gradient_norm_launches(2, columns, "mean", True) for columns in counted]
    few, many = counted.values()
    assert many - few == kernels[1] - kernels[0] == 1
    operators = count_step(Long(8), torch.randn(2, 8), torch.randn(2, 8)).operators
    fused = {o.name.removeprefix("gpfast."): o.launches for o in operators if o.name.startswith("gpfast.")}
    assert fused.pop("gradient_norm") == kernels[0] == 2
    assert {"interpolate", "normalize_adjoint", "normalize_tangent"} <= set(fused) and set(fused.values()) == {1}
    assert sum(o.launches for o in operators) == few


def test_what_cannot_be_counted_as_on_a_gpu_is_said_and_the_rest_stands(monkeypatch, capsys):
    def broken(*args, **options):
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(measure, "count_step", broken)
    assert main(["bench", "--critics", "toy-mlp", *TINY, "--engines", "auto"]) == 0
    printed = capsys.readouterr().out
    assert "toy-mlp, auto: not counted as on a GPU: RuntimeError: no such operator" in printed
    assert "| as on GPU" not in printed and "fake tensors" not in printed and printed.count("| toy-mlp") == 2
    monkeypatch.setattr(measure, "count_step", lambda *args, **options: CountedStep((), "DataDependent: it reads"))
    assert main(["bench", "--critics", "toy-mlp", *TINY, "--engines", "auto"]) == 0
    assert "toy-mlp, auto: counted as on a GPU on real tensors, for on fake ones it raised" in capsys.readouterr().out


def test_what_ran_on_a_gpu_is_not_counted_twice(monkeypatch, toy):
    entry, critic, case = toy
    monkeypatch.setattr(measure.bare, "case_device", lambda case: torch.device("cuda"))
    monkeypatch.setattr(measure, "_measure_memory", lambda *args: None)
    monkeypatch.setattr(measure, "count_step", lambda *args, **options: pytest.fail("counted"))
    row = table.Row("toy-mlp", 4, "auto")
    measure._step("auto", critic, case, row)
    assert row.launches > 0 and row.launches_as_on_gpu is None
    assert "as on GPU" not in table.render([row]) and "launches" in table.render([row])


def test_a_file_of_an_earlier_version_is_read(tmp_path):
    row = {"critic": "c", "batch": 4, "engine": "auto", "times_ms": [1.0], "ratio": 2.0, "peak_bytes": 3, "note": ""}
    (tmp_path / "f.json").write_text(json.dumps({"format": 1, "rows": [row], "settings": {}}))
    rows, _ = table.read_json(tmp_path / "f.json")
    assert rows[0].ratio == 2.0 and rows[0].traits == [] and rows[0].own_bytes is None
    assert rows[0].launches_as_on_gpu is None and "as on GPU" not in table.render(rows)


def test_tqdm_missing_is_a_sentence(tmp_path):
    (tmp_path / "tqdm.py").write_text("raise ModuleNotFoundError(\"No module named 'tqdm'\", name='tqdm')")
    command = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from gpfast.__main__ import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", command, "bench"], capture_output=True, text=True)
    assert done.returncode == 2 and "pip install tqdm" in done.stderr and "Traceback" not in done.stderr


def test_slack_lets_other_rounding_pass_and_nothing_worse(toy):
    entry, critic, case = toy
    gate = Gate(*toy)

    def scaled(factor):
        penalty = competitors.penalty_function("reference", critic, gate.case)
        return lambda alpha: factor * penalty(alpha)

    assert gate.real_failures(scaled(1.001), critic) != []
    assert gate.real_failures(scaled(1.001), critic, competitors.COMPILE_SLACK) == []
    assert gate.real_failures(scaled(1.1), critic, competitors.COMPILE_SLACK) != []


def test_a_file_of_other_settings_is_refused_before_anything_runs(tmp_path, capsys):
    file = tmp_path / "f.json"
    for text in ('{"format": 1, "rows": [], "settings": []}', '{"format": 1, "rows": []}', "[]"):
        file.write_text(text)
        assert main(["bench", "--against", str(file)]) == 2
        assert "is not a file that this version's --json wrote" in capsys.readouterr().err
    assert main(["bench", "--json", str(tmp_path)]) == 2
    assert "--json: " in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_finished(tmp_path, capsys, monkeypatch):
    from gpfast.cli import bench

    measure = bench.measure_critic

    def interrupted(name, *rest):
        if name != "toy-mlp":
            raise KeyboardInterrupt
        return measure(name, *rest)

    monkeypatch.setattr(bench, "measure_critic", interrupted)
    file = tmp_path / "f.json"
    assert main(["bench", "--critics", "toy-mlp", "tabular-mlp", *TINY, "--json", str(file)]) == 130
    data = json.loads(file.read_text())
    assert {row["critic"] for row in data["rows"]} == {"toy-mlp"} and data["settings"]["stopped"]
    file.unlink()
    assert main(["bench", "--critics", "tabular-mlp", *TINY, "--json", str(file)]) == 130
    assert not file.exists() and "|" not in capsys.readouterr().out.split("toy-mlp")[-1].split("\n\n")[-1]

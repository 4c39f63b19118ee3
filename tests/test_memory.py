"""The memory study: its model against real tensors and CPU allocations, the search, and `python -m gpfast memory`."""

import contextlib
import csv
import subprocess
import sys
from dataclasses import fields

import pytest
import torch

from gpfast import zoo
from gpfast.__main__ import main
from gpfast.cli import memory as command
from gpfast.cli.competitors import CHUNKS, penalty_function, step_function
from gpfast.cost import measure, peak_bytes_raw
from gpfast.memory import GRANULARITY, MOST, Peak, Places, Study, largest, why_uncut
from gpfast.operators import as_on_a_gpu

KINDS = [("reference", 1), ("auto", 1), ("auto", 2)]
SMALL = ["--critics", "toy-mlp", "--batches", "4", "16"]


def real_step(name, engine, batch, chunks=1, small=True):
    entry, critic = zoo.ZOO[name], zoo.build(name, small)
    case = entry.inputs(batch, small)
    step = step_function(penalty_function(f"{CHUNKS}{chunks}" if chunks > 1 else engine, critic, case), critic)
    step()  # chunks try the critic on two samples once
    critic.zero_grad(set_to_none=True)
    return step, critic, case


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.parametrize("onednn", [True, False], ids=["onednn", "layouts of a GPU"])
@pytest.mark.parametrize(("engine", "chunks"), KINDS)
@pytest.mark.parametrize("name", ["toy-mlp", "layernorm-dcgan", "resnet32", "patch", "two-inputs"])
def test_the_model_is_what_real_tensors_count(name, engine, chunks, onednn):
    step, critic, case = real_step(name, engine, 6, chunks)
    before = torch.backends.mkldnn.enabled
    with contextlib.nullcontext() if onednn else as_on_a_gpu():
        real = measure(step, existing=(critic, case.real, case.fake, case.args), granularity=GRANULARITY).peak_bytes
    peak = Study(name, small=True, onednn=onednn).peak(engine, 6, chunks)
    assert peak.total - peak.inputs - peak.parameters == real
    assert torch.backends.mkldnn.enabled == before


# Where ATen's own workspace is small: of convolutions it may be as much as all the rest.
@pytest.mark.parametrize(
    ("name", "engine", "batch", "small"),
    [
        *[("motion-prior", engine, 64, False) for engine in ("reference", "auto")],
        *[("tabular-mlp", engine, 64, False) for engine in ("reference", "auto")],
        *[("self-attention", engine, 32, True) for engine in ("reference", "auto")],
        *[("layernorm-dcgan", "auto", 32, True), ("groupnorm-dcgan", "auto", 32, True)],
        *[("layernorm-dcgan", "reference", 4, False), ("dcgan32", "reference", 4, False)],
    ],
)
def test_the_model_is_within_3_percent_of_what_the_cpu_allocates(name, engine, batch, small):
    step, *_ = real_step(name, engine, batch, small=small)
    raw = peak_bytes_raw(step)
    peak = Study(name, small=small, onednn=True).peak(engine, batch)
    assert peak.gradients + peak.activations + peak.adjoints == pytest.approx(raw, rel=0.03)


def test_a_model_has_the_layouts_of_a_gpu():
    """The tape turns what convolutions take for oneDNN, in the sweeps: a GPU's run reads what the forward saved."""
    gpu, cpu = Study("layernorm-dcgan"), Study("layernorm-dcgan", onednn=True)
    of_gpu, of_cpu = gpu.peak("auto", 64), cpu.peak("auto", 64)
    assert of_gpu.activations > of_cpu.activations and of_gpu.adjoints < of_cpu.adjoints
    assert gpu.peak("reference", 64) == cpu.peak("reference", 64)


def test_the_parts_by_hand():
    critic, x = torch.nn.Linear(128, 128, bias=False), torch.ones(128, 128)
    unit = x.nbytes
    places = Places(critic)
    places.add_existing([x, critic])

    def step():
        scores = critic(x)  # an activation
        other = scores * 2  # made after it
        del other
        scores.sum().backward()  # a sum, its gradient of 1, and the weight's gradient

    with places:
        step()
    assert places.split() == (unit, unit, 2 * 512) and places.peak == 2 * unit + 2 * 512


def test_the_parts_are_the_whole():
    study = Study("toy-mlp")
    sizes = [p.nbytes for p in zoo.build("toy-mlp").parameters()]
    for engine in ("reference", "auto"):
        peak = study.peak(engine, 256)
        assert peak.inputs == 2 * 256 * 2 * 4
        assert peak.parameters == sum(-(-size // 512) * 512 for size in sizes)
        assert 0 <= peak.gradients <= peak.parameters and peak.workspace is None
        parts = [getattr(peak, field.name) for field in fields(Peak) if field.name != "workspace"]
        assert all(part > 0 and part % 512 == 0 for part in parts) and sum(parts) == peak.total


def test_all_gradients_are_gradients_where_they_are_the_peak():
    peak = Study("motion-prior").peak("auto", 1)
    assert peak.gradients > 0.9 * peak.parameters > peak.activations + peak.adjoints


def test_a_batch_in_parts_takes_less():
    study = Study("resnet32")
    whole, parts = study.peak("auto", 64), study.peak("auto", 64, 4)
    assert parts.total < 0.5 * whole.total and parts.inputs == whole.inputs and parts.parameters == whole.parameters


def test_half_precision_takes_half():
    full, half = Study("resnet32").peak("auto", 64), Study("resnet32", dtype=torch.bfloat16).peak("auto", 64)
    assert half.inputs == full.inputs / 2 and 0.4 < half.total / full.total < 0.6
    assert torch.get_default_dtype() == torch.float32


def test_a_thousand_large_images_take_no_memory():
    state = torch.random.get_rng_state()
    study = Study("patch")
    raw = peak_bytes_raw(lambda: study.peak("auto", 1024))
    assert study.peak("auto", 1024).total > 30e9 and raw < 1e6
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("engine", ["reference", "auto"])
def test_the_largest_batch_fits_and_one_more_does_not(engine):
    study = Study("resnet32", small=True)
    budget = 3_000_000
    batch = study.largest_batch(engine, budget)
    assert study.peak(engine, batch).total <= budget < study.peak(engine, batch + 1).total
    assert study.largest_batch(engine, 1000) == 0


@pytest.mark.parametrize(
    "total",
    [
        lambda n: 100 + 7 * n,
        lambda n: n * n,
        lambda n: max(1000 + n, 50 * n),
        lambda n: 1000 * -(-n // 4),
        lambda n: 512 * (n.bit_length() + 1),
        lambda n: float("inf") if n > 900 else n,
    ],
    ids=["line", "square", "two lines", "steps", "logarithm", "out of memory"],
)
@pytest.mark.parametrize("budget", [0, 107, 999, 1000, 20_000, 10**9])
def test_the_search(total, budget):
    asked = set()

    def counted(n):
        asked.add(n)
        return total(n)

    most = 1 << 14
    found = largest(counted, budget, most)
    assert found == max((n for n in range(1, most + 1) if total(n) <= budget), default=0)
    assert len(asked) <= 45 and max(asked) <= most


def test_why_a_critic_cannot_be_cut():
    assert why_uncut("resnet32") == ""
    assert "depends on the other samples" in why_uncut("minibatch-stddev")
    assert "_u" in why_uncut("spectral-norm")


def test_bad_studies():
    with pytest.raises(ValueError, match="no critic 'nothing' in the zoo; it has toy-mlp"):
        Study("nothing")
    with pytest.raises(ValueError, match="`device` must be a CUDA device, or None for a model; got cpu"):
        Study("toy-mlp", device="cpu")


def test_the_command(tmp_path, capsys):
    out = tmp_path / "new" / "study"
    assert main(["memory", *SMALL, "--chunks", "1", "2", "--gb", "0.001", "0.01", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for title in ("Peak memory of one penalty and its gradients, modelled", "Largest batch that fits, modelled"):
        assert title in printed
    assert "modelled peak MB" in printed and "modelled in 0.01 GB" in printed and "auto, chunks=2" in printed
    peaks = rows_of(out / "modelled-peaks.csv")
    assert [(r["engine"], r["chunks"], r["batch"]) for r in peaks] == [
        (engine, chunks, batch)
        for engine, chunks in (("reference", "1"), ("auto", "1"), ("auto", "2"))
        for batch in ("4", "16")
    ]
    peak = Study("toy-mlp").peak("auto", 16)
    assert int(peaks[3]["modelled_peak_bytes"]) == peak.total
    assert int(peaks[3]["modelled_adjoints_bytes"]) == peak.adjoints
    assert {r["modelled_workspace_bytes"] for r in peaks} == {"unknown"}
    fits = rows_of(out / "modelled-largest-batch.csv")
    assert len(fits) == 6 and fits[0]["memory_gb"] == "0.001"
    found = Study("toy-mlp").largest_batch("auto", 10_000_000)
    assert int(fits[3]["modelled_largest_batch"]) == found > 0
    for picture in ("modelled-peaks.png", "modelled-largest-batch.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
        assert (out / picture).stat().st_size < 200_000


def test_without_memories_nothing_is_searched(capsys):
    assert main(["memory", *SMALL, "--gb", "--engines", "reference"]) == 0
    printed = capsys.readouterr().out
    assert "Largest batch" not in printed and "auto" not in printed


def test_a_batch_that_cannot_be_cut_is_noted(capsys, tmp_path):
    arguments = ["memory", "--critics", "minibatch-stddev", "--batches", "8", "--gb", "--engines", "auto"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert "minibatch-stddev, auto, chunks=4: cannot be cut" in capsys.readouterr().out
    rows = rows_of(tmp_path / "modelled-peaks.csv")
    assert rows[1]["modelled_peak_bytes"] == "" and "cannot be cut" in rows[1]["note"]
    assert not (tmp_path / "modelled-largest-batch.png").exists()


def test_what_cannot_be_run_is_told_and_the_rest_shown(capsys, monkeypatch):
    peak = command.Study.peak

    def failing(self, engine, batch, chunks=1):
        if engine == "auto":
            raise RuntimeError("no such operator")
        return peak(self, engine, batch, chunks)

    monkeypatch.setattr(command.Study, "peak", failing)
    assert main(["memory", *SMALL, "--gb"]) == 1
    printed = capsys.readouterr()
    assert "toy-mlp, auto: RuntimeError: no such operator" in printed.err and "eager" in printed.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--critics", "nothing"], "invalid choice: 'nothing'"),
        (["--batches", "0"], "argument --batches: must be above 0; got 0"),
        (["--gb", "inf"], "argument --gb: must be above 0; got inf"),
        (["--engines", "magic"], "invalid choice: 'magic'"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["memory", *arguments])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_devices_that_cannot_be_measured(capsys):
    assert main(["memory", *SMALL, "--device", "cpu"]) == 2
    assert "--device must be a CUDA device; got cpu. Leave it out for a model" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["memory", *SMALL, "--device", "cuda"]) == 2
        assert "--device cuda cannot be used: " in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["memory", *SMALL, "--out", str(tmp_path / "file")]) == 2
    assert "gpfast memory: --out: " in capsys.readouterr().err


def test_help_explains():
    text = subprocess.run(
        [sys.executable, "-m", "gpfast", "memory", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for word in ("modelled", "workspace", "10^9", f"{MOST:,}", "exit status"):
        assert word in text


@pytest.mark.gpu
@pytest.mark.parametrize(("engine", "chunks"), KINDS)
@pytest.mark.parametrize("name", ["motion-prior", "layernorm-dcgan"])
def test_a_gpu_holds_what_the_model_says_and_workspace(name, engine, chunks):
    measured = Study(name, device="cuda").peak(engine, 64, chunks)
    modelled = Study(name).peak(engine, 64, chunks)
    assert measured.workspace >= 0
    assert measured.total - measured.workspace == pytest.approx(modelled.total, rel=0.03)

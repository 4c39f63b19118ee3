"""The clocks of `python -m gpfast bench`, and its table of kernels, without a GPU: a device that is made up."""

import contextlib
import json
import types

import pytest
from test_activation import KINDS

from gpfast import _extension, cuda_kernels
from gpfast.__main__ import main
from gpfast.cli import bench, clock, kernels, machine, timing

needs_extension = pytest.mark.skipif(not _extension.available, reason="needs the C++ extension")


class FakeCuda:
    """torch.cuda as far as a clock needs it: a device whose time passes only while something runs there."""

    def __init__(self, l2=1000):
        self.now, self.log, self.waited = 0.0, [], 0
        fake = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = fake.now
                fake.log.append("event")
                fake.waited = 0

            def elapsed_time(self, end):
                assert fake.waited, "read before the device was waited for"
                return end.at - self.at

        self.Event = Event
        self.get_device_properties = lambda device: types.SimpleNamespace(L2_cache_size=l2)

    @contextlib.contextmanager
    def device(self, device):
        self.log.append(f"on {device}")
        yield

    def synchronize(self):
        self.waited += 1

    def takes(self, milliseconds):
        def step():
            self.now += milliseconds
            self.log.append("step")

        return step


def emptied(cuda, events):
    """`events`, whose scratch takes 7 ms to write: time that must not count."""
    size = events.scratch.numel()

    def zero():
        cuda.now += 7
        cuda.log.append("emptied")

    events.scratch = types.SimpleNamespace(zero_=zero)
    return size


def test_events_count_the_step_alone_and_nothing_is_left_in_the_l2():
    cuda = FakeCuda(l2=1000)
    events = clock.EventClock("cpu", cuda)
    assert emptied(cuda, events) == clock.TIMES_L2 * 1000 >= 2000
    assert events(cuda.takes(3.0), 4) == pytest.approx(3e-3)
    assert cuda.log == ["on cpu", *["emptied", "event", "step", "event"] * 4]


def test_rounds_by_events():
    cuda = FakeCuda()
    events = clock.EventClock("cpu", cuda)
    emptied(cuda, events)
    steps = {"slow": cuda.takes(40.0), "fast": cuda.takes(10.0)}
    times = timing.interleaved(steps, rounds=5, seconds=60, device="cpu", clock=events)
    assert times == {"slow": [pytest.approx(40.0)] * 5, "fast": [pytest.approx(10.0)] * 5}
    assert timing.ratio(times["slow"], times["fast"]) == pytest.approx(4)


def test_the_clock_is_that_of_the_device(monkeypatch):
    assert clock.clock_of("cpu") is clock.wall
    monkeypatch.setattr(clock, "EventClock", lambda device: ("events", device))
    assert clock.clock_of("cuda:1") == ("events", "cuda:1")
    calls = []
    assert clock.wall(lambda: calls.append(1), 5) >= 0 and len(calls) == 5


@needs_extension
def test_speeds_are_bytes_over_time_beside_the_copy():
    """Each run takes a millisecond, but the copy, which comes first, two."""
    done, ticks = [], iter([2e-3] * kernels.REPEATS)

    def fake(run, number):
        run()
        return next(ticks, 1e-3)

    found = kernels.measured("cpu", megabytes=0.1, clock=fake, on_kernel=lambda: done.append(1))
    assert len(found) == 1 + kernels.count() and len(done) == kernels.count()
    nbytes = 4 * kernels.CHECKED * round(0.1e6 / 4 / kernels.CHECKED)
    by_name = {one.name: one for one in found}
    assert by_name["copy"].gigabytes_a_second == pytest.approx(2 * nbytes / 2e-3 / 1e9)
    few = 0.05  # rows, statistics and weights: small beside the tensors, at a real size nothing
    moved = {"interpolate": 3, "gradient_norm": 2, "gate": 3 + 1 / 32, "gated": 2 + 1 / 32, "slope, gelu": 3}
    moved |= {"slope and curve, silu": 5, "normalize_adjoint": 3, "normalize_tangent": 5}
    for name, tensors in moved.items():
        one = by_name[name]
        assert tensors * nbytes <= one.megabytes * 1e6 <= (tensors + few) * nbytes, name
        assert one.gigabytes_a_second == pytest.approx(one.megabytes * 1e6 / 1e-3 / 1e9)
        assert one.of_copy == pytest.approx(one.gigabytes_a_second / by_name["copy"].gigabytes_a_second)
        assert one.kernel and not one.note
    text = kernels.rendered(found, "cpu")
    assert "GB/s" in text and "(plain formula)" not in text and "wall clock" in text
    assert "CUDA events" in kernels.rendered(found, "cuda")


@needs_extension
def test_a_kernel_that_is_wrong_is_not_timed(monkeypatch):
    right = kernels.Kernel.plain
    monkeypatch.setattr(kernels.Kernel, "plain", lambda k: [x + (k.name == "gated") for x in right(k)])
    found = {one.name: one for one in kernels.measured("cpu", 0.1, clock=lambda run, number: 1e-3)}
    assert found["gated"].milliseconds is None and found["gated"].note.startswith("WRONG: result 0 is off by")
    assert not found["gate"].note and "WRONG" in kernels.rendered(list(found.values()), "cpu")


@needs_extension
def test_every_cuda_kernel_is_in_the_table():
    names = {kernel.operator.name().split("::")[1] for kernel in kernels.kernels(kernels.CHECKED, "cpu")}
    in_place = {name for name in cuda_kernels.SWEEPS if name.endswith("_")}
    rest = (cuda_kernels.ENDS | cuda_kernels.SWEEPS) - in_place - {"gradient_norm_seed"}
    assert rest <= names, "a kernel has no line"
    for name, (kind, *_) in kernels.ACTIVATIONS.items():
        assert list(KINDS).index(name) == kind, name


@needs_extension
def test_without_a_kernel_the_table_says_so():
    one = next(iter(kernels.kernels(kernels.CHECKED, "cpu")))
    assert kernels._is_compiled(one, "cpu") and not kernels._is_compiled(one, "mps")
    assert "x (plain formula)" in kernels.rendered([kernels.Speed("x", 1.0, 1.0, 1.0, 1.0, kernel=False)], "cuda")


@needs_extension
def test_bench_prints_the_table_where_it_is_asked_for(monkeypatch, tmp_path, capsys):
    for name, value in machine.MALLOC.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "f.json"
    tiny = ["--critics", "mlp-64", "--repeats", "2", "--seconds", "0.1", "--batch", "4", "--kernel-mb", "0.1"]
    assert main(["bench", *tiny, "--engines", "auto", "--kernels", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "| mlp-64" in printed and "normalize_tangent" in printed and "GB/s" in printed
    assert len(json.loads(file.read_text())["kernels"]) == 1 + kernels.count()
    monkeypatch.setattr(bench.kernels, "measured", lambda *_, **__: [kernels.Speed("x", 1.0, note="WRONG: x")])
    assert main(["bench", *tiny, "--engines", "auto", "--kernels"]) == 1
    assert "WRONG: x" in capsys.readouterr().out
    assert main(["bench", *tiny, "--engines", "auto"]) == 0
    assert "WRONG" not in capsys.readouterr().out


@pytest.mark.gpu
def test_bench_on_a_gpu(monkeypatch, tmp_path, capsys):
    for name, value in machine.MALLOC.items():
        monkeypatch.setenv(name, value)
    tiny = ["--critics", "dcgan32", "--repeats", "3", "--seconds", "1", "--batch", "8", "--kernel-mb", "64"]
    assert main(["bench", *tiny, "--device", "cuda", "--engines", "auto"]) == 0
    printed = capsys.readouterr().out
    assert "| dcgan32" in printed and "GB/s" in printed and "CUDA events" in printed

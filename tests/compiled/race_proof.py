"""Whether a kernel has no race and no divergent barrier in any schedule of one launch, by the package sentryward.

It proves what the emulator can only observe in one schedule, for launches of a few CTAs and without atomics.
"""

import json
import tempfile
from pathlib import Path


def prove(
    ptx: str, entry: str, grid: tuple[int, ...], block: int, integers: dict[int, tuple[str, int]], shared_bytes=0
):
    """(result, why) in the words of sentryward; integers: by their parameter's number, as {3: ("u32", 1001)}."""
    from sentryward import verify

    launch = {
        "schema": "spverify.kernel-input/v1",
        "entry": entry,
        "launch": {"grid_dim": [*grid, 1, 1][:3], "block_dim": [block, 1, 1], "dynamic_shared_bytes": shared_bytes},
        "arguments": [
            {"type": kind, "value": value, "parameter": f"{entry}_param_{number}"}
            for number, (kind, value) in integers.items()
        ],
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "launch.json"
        file.write_text(json.dumps(launch))
        said = verify(ptx, input=str(file), timeout_seconds=120)
    return said["result"], (said["checks"], said["diagnostics"])

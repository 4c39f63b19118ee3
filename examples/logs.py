"""What a training leaves behind: files that are whole or not there, TensorBoard's log, an end by Ctrl-C."""

import csv
import os
import signal
import sys
import threading
from contextlib import contextmanager


def write_history(path, history):
    with renamed(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *history])
        writer.writerows(zip(range(1, len(history["seconds"]) + 1) if history else (), *history.values(), strict=True))


@contextmanager
def renamed(path):
    """A temporary name that becomes `path` once what is written there is whole."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())  # on the disk before it has the name: a power cut leaves one or the other
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Stop:
    """Ctrl-C, or a SIGTERM, asks for an end; a second Ctrl-C does not wait for it."""

    def __init__(self):
        self.asked = False

    def __enter__(self):
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Log:
    """TensorBoard's log where that is installed, and a word about it where it is not."""

    said = False

    def __init__(self, folder, step):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._writer = None
            if not Log.said:
                print("no TensorBoard logs: pip install tensorboard", file=sys.stderr)
            Log.said = True
        else:
            self._writer = SummaryWriter(folder, purge_step=step)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self._writer:
            self._writer.close()

    def columns(self, history, start):
        """Logs the steps from `start`; where they end."""
        end = len(history["seconds"]) if history else start
        for name, values in history.items() if self._writer else ():
            for step in range(start, end):
                self._writer.add_scalar(name, values[step], step + 1)
        return end

    def scores(self, found, step):
        for name, value in found.items() if self._writer else ():
            self._writer.add_scalar(f"score/{name}", value, step)

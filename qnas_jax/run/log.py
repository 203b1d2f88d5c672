"""What a run tells while it works: lines with an ETA, `metrics.jsonl`, TensorBoard."""

import json
import logging
import pathlib
import threading
import time
from typing import Any

logger = logging.getLogger(__name__)

LINE_SECONDS = 5.0  # at most one progress line in that time


class Progress:
    """Shows how far a long piece of work is.

    Attributes:
      title: What the work is called.
    """

    def __init__(self, title: str, total: int | float, done: int | float = 0):
        """`done` of `total` are done already.

        The ETA is made from what follows the first report, which compilation delays.
        """
        self.title = title
        self._first, self._total = done, total
        self._begin, self._shown = 0.0, time.monotonic()
        self._added, self._lock = 0.0, threading.Lock()

    def add(self, amount: int | float, text: str = "") -> None:
        """So much more is done; for work that several threads share."""
        with self._lock:
            self._added += amount
            self.show(min(self._added, self._total), text)

    def show(self, done: int | float, text: str = "") -> None:
        """Writes a line, at most every few seconds."""
        now = time.monotonic()
        rate = (done - self._first) / (now - self._begin) if self._begin else 0.0
        if not self._begin:
            self._begin, self._first = now, done
        if now - self._shown < LINE_SECONDS and done < self._total:
            return
        self._shown = now
        share = 100 * done / (self._total or 1)
        eta = duration((self._total - done) / rate) if rate else "?"
        logger.info(
            "%s %.6g/%.6g (%.0f%%) %.3g/s ETA %s %s",
            *(self.title, done, self._total, share, rate, eta, text),
        )


class Metrics:
    """Records the metrics of one stage, in `metrics.jsonl` and as TensorBoard events."""

    def __init__(self, workdir: pathlib.Path, stage: str, writes: bool = True):
        """Appends to the run's files; `stage` stands before each metric's name.

        Of several processes one writes; the others leave all as it is.
        """
        self._stage, self._workdir, self._writes = stage, workdir, writes
        path = workdir / "metrics.jsonl"
        torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")  # by a kill
        self._file = path.open("a", buffering=1)
        self._file.write("\n" * (torn and writes))
        self._events: Any = None

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()
        if self._events:
            self._events.close()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Records the metrics after `step` steps."""
        if not self._writes:
            return
        if self._events is None:
            from tensorboardX import SummaryWriter  # takes seconds to import

            suffix = "." + self._stage.replace("/", ".")  # files are named by the second
            self._events = SummaryWriter(str(self._workdir), flush_secs=30, filename_suffix=suffix)
        self._file.write(json.dumps({"stage": self._stage, "step": step, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(f"{self._stage}/{name}", value, step)

    def flush(self) -> None:
        """Puts what was recorded on the disk: a checkpoint behind it must not be younger."""
        if self._events:
            self._events.flush()


def read_metrics(workdir: pathlib.Path, stage: str) -> dict[int, dict[str, float]]:
    """A stage's metrics by step; of a step that was repeated after a kill, the latest.

    Args:
      workdir: The run's folder; nothing is found where `metrics.jsonl` is missing.
      stage: The name it records under.
    """
    found = {}
    path = workdir / "metrics.jsonl"
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            values = json.loads(line)
        except ValueError:  # torn by a kill
            continue
        if values.pop("stage") == stage:
            found[values.pop("step")] = values
    return dict(sorted(found.items()))


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 45s, 3m20s, 2h05m."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"

"""The records of a run at work: progress lines with an ETA, `metrics.jsonl`, TensorBoard."""

import json
import logging
import pathlib
import threading
import time
from typing import Any

from qnas_jax.run import artefacts, disk, events

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
LINE_SECONDS = 5.0  # at most one progress line in that time

_one_at_a_time = threading.Lock()  # stages that run side by side share `metrics.jsonl`


class Progress:
    """Shows how far a long piece of work is.

    Attributes:
      title: What the work is called.
    """

    def __init__(self, title: str, total: int | float, done: int | float = 0):
        """`done` of `total` are done already.

        The ETA is computed from the progress after the first report, which compilation delays;
        the first line has none.
        """
        self.title = title
        self._first, self._total = done, total
        self._begin, self._shown = 0.0, time.monotonic()
        self._added, self._lock = 0.0, threading.Lock()

    def add(self, amount: int | float, text: str = "") -> None:
        """Adds finished work; for work that several threads share."""
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
        eta = duration((self._total - done) / rate) if rate else ""
        speed = f"{rate:.3g}/s ETA {eta} " if rate else ""
        logger.info("%s %.6g/%.6g (%.0f%%) %s%s", self.title, done, self._total, share, speed, text)


class Metrics:
    """Records the metrics of one stage, in `metrics.jsonl` and as TensorBoard events."""

    def __init__(self, workdir: pathlib.Path, stage: str, writes: bool = True):
        """Appends to the run's files; `stage` is the prefix of each metric's name.

        Of several processes only one writes.
        """
        self._stage, self._workdir, self._writes = stage, workdir, writes
        self._events: Any = None

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._events:
            self._events.close()

    def resume(self, step: int) -> None:
        """Removes the stage's records after `step` steps, because these steps are repeated.

        Call it before anything is written.
        """
        path = self._workdir / METRICS
        if not self._writes or not path.exists():
            return
        with _one_at_a_time:
            content = disk.read(path)
            kept = [
                line
                for line in content.splitlines(keepends=True)
                if (values := _parsed(line))
                and not (values["stage"] == self._stage and values["step"] > step)
            ]
            if b"".join(kept) != content:
                events.forget(self._workdir, self._stage, step)
                artefacts.write(path, b"".join(kept))  # last: else a kill would leave the events

    def write(self, step: int, values: dict[str, float]) -> None:
        """Records the metrics after `step` steps."""
        if not self._writes:
            return
        line = json.dumps({"stage": self._stage, "step": step, **values}) + "\n"
        with _one_at_a_time:
            if self._events is None:
                self._events = events.Events(self._workdir, self._stage)
            path = self._workdir / METRICS
            with disk.naming(path), path.open("ab") as lines:
                lines.write(line.encode())
        self._events.write(step, values)

    def sync(self) -> None:
        """Writes the records to the disk; call it before a checkpoint is saved."""
        if self._events:
            path = self._workdir / METRICS
            with disk.naming(path), path.open("ab") as lines:
                disk.sync(lines)
            self._events.sync()


def _parsed(line: bytes) -> dict[str, Any] | None:
    """What a line of `metrics.jsonl` holds; None if a kill has cut it off."""
    try:
        values = json.loads(line)
        return values if line.endswith(b"\n") and {"stage", "step"} <= values.keys() else None
    except (ValueError, AttributeError):
        return None


def read_metrics(workdir: pathlib.Path, stage: str) -> dict[int, dict[str, float]]:
    """A stage's metrics by step; of a step that was repeated after a kill, the latest.

    Args:
      workdir: The run's folder; nothing is found where `metrics.jsonl` is missing.
      stage: The name it records under.
    """
    found, path = {}, workdir / METRICS
    for line in disk.read(path).splitlines(keepends=True) if path.exists() else ():
        values = _parsed(line)
        if values and values.pop("stage") == stage:
            found[values.pop("step")] = values
    return dict(sorted(found.items()))


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 45s, 3m20s, 2h05m."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"

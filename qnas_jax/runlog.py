"""What a run tells while it works: lines with an ETA, `metrics.jsonl`, TensorBoard."""

import json
import logging
import pathlib
import time
from typing import Any

logger = logging.getLogger(__name__)


LINE_SECONDS = 5.0  # at most one progress line in that time


class RunLog:
    """Writes the metrics of one stage and shows how far it is.

    Attributes:
      stage: Its name, which stands before each metric.
    """

    def __init__(self, workdir: pathlib.Path, stage: str):
        """Appends to the run's `metrics.jsonl` and to its event file."""
        from tensorboardX import SummaryWriter  # takes seconds to import

        self.stage = stage
        self._file = (workdir / "metrics.jsonl").open("a", buffering=1)
        self._events = SummaryWriter(str(workdir), flush_secs=30)
        self.start(0, 0)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()
        self._events.close()

    def start(self, done: int, total: int) -> None:
        """Begins to count from `done` of `total`; the ETA is made from here on."""
        self._begin, self._first, self._total = time.monotonic(), done, total
        self._shown = self._begin

    def metrics(self, done: int, values: dict[str, float]) -> None:
        """Records the metrics after `done` steps, and shows them from time to time."""
        line = {"stage": self.stage, "step": done, **values}
        self._file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self._events.add_scalar(f"{self.stage}/{name}", value, done)
        texts = [f"{name} {value:.4g}" for name, value in values.items()]
        self.progress(done, ", ".join(texts[:3]))

    def progress(self, done: int, text: str = "") -> None:
        """Shows how far the stage is, at most every few seconds."""
        now = time.monotonic()
        if now - self._shown < LINE_SECONDS and done < self._total:
            return
        self._shown = now
        rate = (done - self._first) / max(now - self._begin, 1e-9)
        eta = (self._total - done) / rate if rate else float("inf")
        logger.info(
            "%s %d/%d (%.0f%%) %.3g/s ETA %s %s",
            self.stage, done, self._total, 100 * done / max(self._total, 1), rate,
            duration(eta), text,
        )  # fmt: skip


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 45s, 3m20s, 2h05m."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"

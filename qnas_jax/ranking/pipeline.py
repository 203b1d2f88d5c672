"""The order of an audit.

    teacher > supernet > LUT > front > drawn subnets > trained subnets > scores > results

All that a search has made in the folder is used; what is missing is made.
"""

import pathlib
from typing import Any

from qnas_jax.bwnas import pipeline
from qnas_jax.bwnas.config import Config
from qnas_jax.ranking import drawn, results, scores, trained
from qnas_jax.report import ranking as page
from qnas_jax.run import artefacts

as_text = results.as_text

__all__ = ["as_text", "run"]


def run(given: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs an audit; returns the content of `audit/results.json`.

    Only one process at a time may do that in a folder.

    Raises:
      InputError: A setting, an image or a file of the run cannot be used.
      Diverged: A loss or a state is no longer finite.
      Stopped: SIGTERM came; the same call resumes the audit.
    """
    scores.check(given)
    found = pipeline.search(given, workdir)
    own, fixed = given.audit, found.begun.deployed.fixed()["size_bytes"]
    subnets = drawn.draw(
        found.rows, found.points, sum(fixed.values()), own.subnets, own.band, given.seed
    )
    seeds = range(given.seed, given.seed + own.seeds)
    reached, rows = trained.train(workdir, found, subnets, seeds)
    truth = reached["quantized"].mean(1)
    every, noise = scores.everything(workdir, found, [one.subnet for one in subnets], truth, rows)
    content = results.gather(subnets, reached, rows, every, noise, own.band, seeds)
    metric = found.begun.problem.task.metric
    content = {
        "metric": metric.name,
        "title": metric.title,
        "made_from": {"supernet": found.distilled.hash, "lut": found.populated.hash},
        "audit": artefacts.plain(own),
        "retrain": artefacts.plain(given.retrain),
        "teachers": trained.teachers(workdir, found),
        **content,
    }
    artefacts.write_json(workdir / "config.json", found.begun.config)
    artefacts.write_json(workdir / "audit" / "results.json", content)
    page.write(workdir, content)
    return content

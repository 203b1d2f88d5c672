"""Compares the fronts of QA-BWNAS, SPOS and FairNAS: area below them, and seconds to find them.

    qnas fronts --config configs/objects_audit.py

Uses what a run or an audit has made in its folder, and makes what is missing. SPOS and FairNAS
score `audit.candidates` subnets each by NSGA-II; `audit.front` networks of each front are trained.
Writes `audit/fronts.json` in the run's folder; after a stop, the same command continues.
"""

from qnas_jax.bwnas import pipeline
from qnas_jax.bwnas.config import Config
from qnas_jax.ranking import fronts, scores
from qnas_jax.run import artefacts, cli, disk, platform

cli.define_run_flags()


def main() -> None:
    """Compares the fronts; prints and writes the results."""
    config, workdir = cli.run_flags(Config)
    scores.check(config)
    platform.use_compilation_cache()
    with disk.only_one(workdir):
        results = fronts.compare(workdir, pipeline.search(config, workdir))
        artefacts.write_json(workdir / "audit" / "fronts.json", results)
    print(fronts.as_text(results))

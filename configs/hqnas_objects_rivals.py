"""HQNAS against a search of ops before bits, and against QA-BWNAS: objects, equal training.

    for S in 0 1 2; do python launch/main.py --config configs/objects_bits.py --config.seed=$S \\
        --workdir runs/objects_bits$S; done
    python launch/main.py --config configs/hqnas_objects_rivals.py
    python launch/main.py --config configs/hqnas_objects_rivals.py --workdir runs/rivals_size \\
        --config.hqnas.cost=size_bytes --config.hqnas.budgets="(0.3, 0.45)"

Three seeds. Two hours on two cores, and ten minutes more for each run of QA-BWNAS.
"""

import pathlib
import runpy

from qnas_jax.hqnas import config

SHORT = pathlib.Path(__file__).parent / "hqnas_objects.py"


def get_config() -> config.Config:
    """That of `hqnas_objects.py` with rivals."""
    found = runpy.run_path(str(SHORT))["get_config"]()
    found.hqnas.budgets = (0.25, 0.35, 0.55)
    found.hqnas.seeds = 3
    found.hqnas.rivals = ("sequential", "bwnas")
    found.hqnas.fronts = tuple(f"runs/objects_bits{seed}/search/front.csv" for seed in range(3))
    found.hqnas.exports = False
    return found

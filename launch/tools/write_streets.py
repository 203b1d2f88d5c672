"""Writes Streets to disk in Cityscapes' layout, to be read with --config.data.source=cityscapes.

    python launch/tools/write_streets.py --out data/streets --train 2975 --val 500

Pictures that are there already are left as they are, so the same command goes on after a stop.
"""

from qnas_jax.run import platform

if __name__ == "__main__":
    platform.prepare_process()  # before all other imports

import concurrent.futures
import functools
import multiprocessing
import os

from absl import flags

from qnas_jax.data import cityscapes
from qnas_jax.data.streets import render
from qnas_jax.run import cli, paths
from qnas_jax.run.log import Progress
from qnas_jax.run.stage import Stage

_OUT = flags.DEFINE_string("out", None, "Folder for leftImg8bit/ and gtFine/.", required=True)
_TRAIN = flags.DEFINE_integer("train", 2975, "Training pictures.", lower_bound=1)
_VAL = flags.DEFINE_integer("val", 500, "Validation pictures.", lower_bound=1)
_HEIGHT = flags.DEFINE_integer("height", 1024, "Pixels.", lower_bound=16)
_WIDTH = flags.DEFINE_integer("width", 2048, "Pixels.", lower_bound=16)
_SEED = flags.DEFINE_integer("seed", 0, "Of the data set.", lower_bound=0)


def write_one(out: str, seed: int, size: tuple[int, int], item: tuple[str, int]) -> None:
    """Renders and writes one picture, unless it is there."""
    split, index = item
    name = f"streets_{seed:06d}_{index:06d}"
    if not cityscapes.exists(out, split, name):
        cityscapes.write(out, split, name, *render(seed, split, index, *size))


def main() -> None:
    """Writes both splits, on all cores."""
    out = paths.folder("--out", _OUT.value)
    items = [("train", i) for i in range(_TRAIN.value)] + [("val", i) for i in range(_VAL.value)]
    made_from = {"seed": _SEED.value, "height": _HEIGHT.value, "width": _WIDTH.value}
    Stage(out, made_from).begin()  # refuses other images
    write = functools.partial(write_one, str(out), _SEED.value, (_HEIGHT.value, _WIDTH.value))
    progress = Progress(f"writing {out}", len(items))
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        for done, _ in enumerate(pool.map(write, items), 1):
            progress.show(done)


if __name__ == "__main__":
    cli.start(main)

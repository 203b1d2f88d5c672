"""Writes Streets to disk in Cityscapes' layout, for --config.data.source=cityscapes.

    qnas write_streets --out data/streets --train 2975 --val 500

Images that exist are left as they are, so after a stop the same command continues.
"""

import concurrent.futures
import functools
import multiprocessing
import os

from absl import flags

from qnas_jax.data import cityscapes
from qnas_jax.data.streets import render
from qnas_jax.run import paths
from qnas_jax.run.log import Progress
from qnas_jax.run.stage import Stage

_OUT = flags.DEFINE_string("out", None, "The folder for leftImg8bit/ and gtFine/.", required=True)
_TRAIN = flags.DEFINE_integer("train", 2975, "Number of training images.", lower_bound=1)
_VAL = flags.DEFINE_integer("val", 500, "Number of validation images.", lower_bound=1)
_HEIGHT = flags.DEFINE_integer("height", 1024, "Height of the images, pixels.", lower_bound=16)
_WIDTH = flags.DEFINE_integer("width", 2048, "Width of the images, pixels.", lower_bound=16)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the data set.", lower_bound=0)


def write_one(out: str, seed: int, size: tuple[int, int], item: tuple[str, int]) -> None:
    """Renders and writes one image with its labels, unless they exist."""
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

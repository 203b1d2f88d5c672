"""The smoke config on images that lie in files, and what is refused."""

import dataclasses

import pytest

from qnas_jax.data import cityscapes
from qnas_jax.data.streets import render
from qnas_jax.errors import InputError

COUNTS = {"train": 16, "val": 3}


def write(root, split, seed=0):
    """Writes the images of a split, with the same names for every seed."""
    for i in range(COUNTS[split]):
        cityscapes.write(str(root), split, f"bonn_{i:06d}_000000", *render(seed, split, i, 32, 64))


def in_files(config, root):
    """The config with its images written to a folder."""
    for split in COUNTS:
        write(root, split)
    images = {"source": "cityscapes", "root": str(root), "train_images": 0, "val_images": 0}
    config.data = dataclasses.replace(config.data, **images)
    return config


def refusal(make):
    """The message with which something is refused, which is a single line."""
    with pytest.raises(InputError) as error:
        make()
    assert "\n" not in str(error.value)
    return str(error.value)

"""Rendered streets, with the classes of Cityscapes, and single things; needs no download."""

import pathlib

from qnas_jax.data.streets.dataset import Objects, Streets
from qnas_jax.data.streets.scene import render

TEACHER = pathlib.Path(__file__).with_name("teacher.safetensors")  # described in teacher.md

__all__ = ["TEACHER", "Objects", "Streets", "render"]

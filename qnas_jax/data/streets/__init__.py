"""Procedurally rendered street scenes with the classes of Cityscapes; needs no download."""

from qnas_jax.data.streets.dataset import Streets
from qnas_jax.data.streets.scene import render

__all__ = ["Streets", "render"]

"""Rendered streets, with the classes of Cityscapes, and single things; needs no download."""

from qnas_jax.data.streets.dataset import Objects, Streets
from qnas_jax.data.streets.scene import render

__all__ = ["Objects", "Streets", "render"]

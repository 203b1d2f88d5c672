"""Data sets that TensorFlow Datasets (TFDS) prepared, read and prepared without TensorFlow."""

from qnas_jax.data.tfds.dataset import Tfds

__all__ = ["Tfds"]

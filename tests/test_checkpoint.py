"""Small trees in one file; checkpoints of training states are tested with those who train."""

import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax import checkpoint
from qnas_jax.errors import InputError

TREE = {"a": {"b": jnp.arange(3), "c": jnp.float32(0.1)}, "d": [jnp.zeros((2, 1), jnp.int8)]}


def test_a_small_tree_comes_back_as_it_was(tmp_path):
    file = tmp_path / "tree.npz"
    checkpoint.write_arrays(file, TREE)
    found = checkpoint.read_arrays(file, TREE)
    assert found["a"]["c"] == np.float32(0.1)
    np.testing.assert_array_equal(found["a"]["b"], [0, 1, 2])
    assert found["d"][0].dtype == np.int8
    assert [path.name for path in tmp_path.iterdir()] == ["tree.npz"]


def test_a_tree_of_another_shape_is_refused(tmp_path):
    file = tmp_path / "tree.npz"
    checkpoint.write_arrays(file, TREE)
    other = {**TREE, "d": [jnp.zeros((2, 2), jnp.int8)]}
    with pytest.raises(InputError, match=r"holds \(2, 1\) at d/0, the network has \(2, 2\)"):
        checkpoint.read_arrays(file, other)


def test_a_damaged_file_is_told_of(tmp_path):
    file = tmp_path / "tree.npz"
    checkpoint.write_arrays(file, TREE)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"tree\.npz: cannot be read .*; delete it"):
        checkpoint.read_arrays(file, TREE)

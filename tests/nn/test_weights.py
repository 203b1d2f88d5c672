"""Files of a network's own weights."""

import jax
import numpy as np
import pytest

from qnas_jax.errors import InputError
from qnas_jax.nn import init, weights
from small_network import SHAPE, make_case

INT8 = ((8, 8),) * 2


@pytest.fixture(scope="module")
def case():
    return make_case(INT8)


@pytest.fixture
def file(case, tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(weights.to_bytes(case.variables))
    return path


def test_a_file_gives_the_weights_in_half_precision(case, file):
    found = weights.load(file, case.model, case.variables)
    assert jax.tree.structure(found) == jax.tree.structure(case.variables)
    for read, given in zip(jax.tree.leaves(found), jax.tree.leaves(case.variables), strict=True):
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, np.asarray(given, np.float16))
    sizes = sum(leaf.size for leaf in jax.tree.leaves(case.variables))
    assert 2 * sizes < file.stat().st_size < 2 * sizes + 20_000


def test_a_file_of_other_classes_is_refused_in_one_line(case, file):
    other = case.model.clone(classes=6)
    like = init.initialize(other, jax.random.key(0), (1, *SHAPE))
    with pytest.raises(InputError) as error:
        weights.load(file, other, like)
    message = str(error.value)
    assert message.startswith(f"{file}: has 5 classes, the data 6; ") and "\n" not in message


def test_missing_and_unknown_tensors_are_refused(case, tmp_path):
    less = {**case.variables, "batch_stats": {}}
    path = tmp_path / "net.safetensors"
    path.write_bytes(weights.to_bytes(less))
    with pytest.raises(InputError, match="is nothing, the network has"):
        weights.load(path, case.model, case.variables)

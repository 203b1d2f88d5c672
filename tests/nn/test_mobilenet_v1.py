"""MobileNetV1 against the figures of its paper and of its authors' models."""

import jax
import jax.numpy as jnp
import pytest

from qnas_jax.nn import MobileNetV1, trace


@pytest.mark.parametrize(
    ("width", "parameters", "macs"), [(1.0, 4_231_976, 569e6), (0.5, 1_331_592, 149e6)]
)
def test_parameters_and_macs_are_the_published_ones(width, parameters, macs):
    model = MobileNetV1(width, 1000)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters
    found = sum(unit.macs for unit in trace(model, (224, 224, 3)).units)
    assert found == pytest.approx(macs, rel=0.005)


def test_small_images_keep_their_size_in_the_stem():
    layers = ((64, 1), (128, 2), (256, 2))
    units = trace(MobileNetV1(0.25, 10, layers, stem_stride=1), (32, 32, 3)).units
    shapes = {unit.name: unit.out_shape for unit in units}
    assert shapes["stem"] == (32, 32, 8)
    assert shapes["point2"] == (8, 8, 64) and shapes["classifier"] == (1, 1, 10)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax import metrics
from qnas_jax.nn.units import pixels
from qnas_jax.train import distillation
from qnas_jax.train.distillation import Outputs
from small_network import SHAPE, make_case

RNG = np.random.default_rng(1)


def test_the_cross_entropy_is_that_of_the_formula():
    logits, target = RNG.normal(size=(2, 5, 4))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (target, logits))
    expected = -(p * np.log(q)).sum(-1).mean()
    found = distillation.cross_entropy(
        jnp.asarray(logits, jnp.float32), jnp.asarray(target, jnp.float32)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("terms", [{}, {"logits": 2.0}, {"logits": 0.5, "features": 3.0}])
def test_the_loss_is_the_weighted_sum_of_its_terms(terms):
    def random_outputs():
        arrays = RNG.normal(size=(3, 2, 4, 4, 5)).astype(np.float32)
        return Outputs(jnp.asarray(arrays[0]), tuple(map(jnp.asarray, arrays[1:])))

    ours, teacher = random_outputs(), random_outputs()
    noise = [
        np.mean((np.asarray(x) - np.asarray(y)) ** 2, (0, 1, 2)) / np.var(np.asarray(y), (0, 1, 2))
        for x, y in zip(ours.features, teacher.features, strict=True)
    ]
    expected = terms.get("features", 0.0) * np.mean(noise)
    expected += terms.get("logits", 0.0) * distillation.cross_entropy(ours.logits, teacher.logits)
    np.testing.assert_allclose(distillation.loss(ours, teacher, terms), expected, rtol=1e-4)


def test_outputs_are_the_logits_and_the_features_of_all_blocks():
    case = make_case(((8, 8),) * 2)
    images = pixels(jnp.asarray(case.images))
    outputs, changed = jax.jit(lambda v, x: distillation.applied(case.model, v, x))(
        case.variables, images
    )
    assert changed == {} and case.images.shape[1:] == SHAPE
    expected = jax.jit(lambda v, x: case.model.apply(v, x, method="features"))(
        case.variables, images
    )
    assert len(outputs.features) == len(expected) - 1
    for found, wanted in zip(outputs.features, expected[1:], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        outputs.logits, jax.jit(case.model.apply)(case.variables, images), rtol=1e-4, atol=1e-4
    )
    assert float(distillation.loss(outputs, outputs, {"features": 1.0})) == 0
    assert metrics.NSR_EPSILON < 1e-3

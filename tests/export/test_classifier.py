"""The classification network: JAX, the integer reference, and every runtime."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax.export import fold, interpret, parity, runtimes, simulate
from qnas_jax.nn import init, mobilenet
from qnas_jax.nn.classifier import Classifier
from qnas_jax.train import supervised
from small_network import BLOCKS, FIRST, PATHS, SHAPE, lived

CLASSES = 7


@pytest.fixture(scope="module")
def case():
    model = Classifier(mobilenet.MobileNetV2(8, FIRST, BLOCKS, PATHS), 24, CLASSES)
    fresh = init.initialize(model, jax.random.key(0), (1, *SHAPE))
    variables = lived({name: fresh[name] for name in ("params", "batch_stats")})
    images = np.random.default_rng(0).integers(0, 256, (8, *SHAPE)).astype(np.uint8)
    pixels = supervised.pixels(jnp.asarray(images))

    @jax.jit
    def run(variables):
        return model.apply(variables, pixels, mutable=["quant"])

    quant = run({**variables, "quant": fresh["quant"]})[1]["quant"]
    networks = [fold.fold(model, variables, q, SHAPE, resize=False) for q in (quant, None)]
    logits = jax.jit(lambda variables: model.apply(variables, pixels))
    floats = np.asarray(logits(variables))[:, 0, 0]
    rounded = fold.with_bias_codes(variables, networks[0])
    fake = np.asarray(logits({**rounded, "quant": quant}))[:, 0, 0]
    return *networks, images, floats, fake


def test_the_reference_gives_the_logits_of_the_network(case):
    network, float_network, images, floats, fake = case
    exact = interpret.run(float_network, images)
    np.testing.assert_allclose(exact["classifier"][:, 0, 0], floats, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(exact["classes"].ravel(), floats.argmax(-1))
    step = network.tensors()["classifier"].grid.scale
    found = interpret.run(network, images)["logits"][:, 0, 0]
    assert np.abs(found - fake).max() < 2.5 * step, "a code or two, from ties in float32"


@pytest.mark.parametrize("number", [0, 1], ids=["onnx", "litert"])
def test_files_give_the_classes_and_codes_of_the_reference(case, number, tmp_path):
    if number == len(runtimes.installed()):
        pytest.skip("pip install -e '.[litert]'")
    runtime = runtimes.installed()[number]
    network, float_network, images, floats, _ = case
    for graph, expected in (
        (network, interpret.run(network, images)["classes"]),
        (float_network, floats.argmax(-1)),
    ):
        path = tmp_path / f"model{runtime.suffix}"
        runtime.write(graph, path)
        found = runtime.class_maps(path)(images)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found.ravel(), expected.ravel())
    codes = runtime.tensors(network, images)["classifier"]
    assert parity.difference(codes, interpret.run(network, images)["classifier"])["differ"] == 0


def test_the_simulation_gives_the_codes_of_the_reference(case):
    network, _, images, *_ = case
    found, expected = simulate.tensors(network)(images), interpret.run(network, images)
    for name in ("last", "mean", "classifier", "classes"):
        np.testing.assert_array_equal(found[name], expected[name])

"""A stem with a value by channel around the image: in JAX, in the simulation, and in every file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax.export import describe, fold, interpret, parity, runtimes, simulate, tie_free
from qnas_jax.export.graph import Graph
from qnas_jax.nn import init, mobilenet
from qnas_jax.nn.classifier import Classifier
from qnas_jax.train import supervised
from small_network import BLOCKS, FIRST, PATHS, lived

MEAN = (123.675, 116.28, 103.53)
PADDING = tuple(value / 128 - 1 for value in MEAN)
STEM = "encoder/stem"


@pytest.fixture(scope="module", params=[(32, 48, 3), (33, 47, 3)], ids=["even", "odd"])
def case(request):
    """The network, its variables, its graphs in integers and float, and images."""
    shape = request.param
    model = Classifier(mobilenet.MobileNetV2(8, FIRST, BLOCKS, PATHS, PADDING), 24, 7)
    fresh = init.initialize(model, jax.random.key(0), (1, *shape))
    variables = lived({name: fresh[name] for name in ("params", "batch_stats")})
    images = np.random.default_rng(0).integers(0, 256, (4, *shape)).astype(np.uint8)
    pixels = supervised.pixels(jnp.asarray(images))
    run = jax.jit(lambda variables: model.apply(variables, pixels, mutable=["quant"]))
    quant = run({**variables, "quant": fresh["quant"]})[1]["quant"]
    network = fold.fold(model, variables, quant, shape, resize=False)
    quant = tie_free.with_agreed_sums(network, quant)
    networks = [fold.fold(model, variables, q, shape, resize=False) for q in (quant, None)]
    return model, {**variables, "quant": quant}, *networks, images


def test_the_padding_is_a_byte_of_the_nearest_value(case):
    _, _, network, floats, _ = case
    (stem, *others), read = network.convs, network.x.grid
    assert stem.padding_codes(read).tolist() == [124, 116, 104]
    assert all(conv.padding == () for conv in others)
    assert describe.describe(floats, {})["layers"][0]["padding"] == list(PADDING)


def test_the_stem_computes_what_a_framed_image_gives(case):
    """The frame is laid around by hand; nothing lies around it then."""
    _, _, network, floats, images = case
    for graph, around in ((network, (124, 116, 104)), (floats, MEAN)):
        conv = graph.convs[0]
        one = np.float64(around)
        framed = np.pad(images - one, ((0, 0), (1, 1), (1, 1), (0, 0))) + one
        w = conv.weights * (1 if conv.w_scale is None else conv.w_scale.astype(np.float64))
        height, width = (-(-side // 2) for side in images.shape[1:3])
        total = np.zeros((len(images), height, width, w.shape[-1]))
        for i, j in np.ndindex(3, 3):
            seen = framed[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2]
            total += (seen / 128 - 1) @ w[i, j]
        found = interpret.run(graph, images)[STEM].astype(np.float64)
        expected, step = np.clip(total + conv.bias, 0, 6), 1e-5
        if conv.out.grid:
            found, step = conv.out.grid.reals(found), 0.52 * conv.out.grid.scale
            expected = np.minimum(expected, conv.out.grid.reals(np.array([255])))
        np.testing.assert_allclose(found, expected, atol=step)


def test_the_simulation_gives_the_codes_of_the_reference(case):
    _, _, network, _, images = case
    found, expected = simulate.tensors(network)(images), interpret.run(network, images)
    for name in (STEM, "classifier", "classes"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_fake_quantization_rounds_as_the_reference_but_for_ties(case):
    model, variables, network, _, images = case
    exact = {**fold.with_bias_codes(variables, network), "quant": variables["quant"]}
    simulated = parity.simulate(model, network, exact, images)
    rows = parity.layers(network, simulated, {"integer": interpret.run(network, images)})
    assert rows[0]["name"] == STEM
    for row in rows:
        own = row["own_rounding"]
        assert own["differ"] == 0 or (own["largest"] == 1 and own["farthest_from_tie"] < 1e-3)


def test_the_float_network_is_its_graph(case):
    model, variables, _, floats, images = case
    numbers = {name: variables[name] for name in ("params", "batch_stats")}
    logits = jax.jit(model.apply)(numbers, supervised.pixels(jnp.asarray(images)))
    found = interpret.run(floats, images)["classifier"]
    np.testing.assert_allclose(found, logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("runtime", runtimes.installed(), ids=lambda runtime: runtime.suffix)
def test_files_give_the_codes_of_the_reference(case, runtime, tmp_path):
    _, _, network, floats, images = case
    expected = interpret.run(network, images)
    codes = runtime.tensors(network, images)
    for conv in network.convs:
        name = conv.out.name
        assert parity.difference(codes[name], expected[name])["differ"] == 0, name
    for graph in (network, floats):
        path = tmp_path / f"model{runtime.suffix}"
        runtime.write(graph, path)
        classes = interpret.run(graph, images)["classes"]
        np.testing.assert_array_equal(runtime.class_maps(path)(images).ravel(), classes.ravel())
    end = next(i for i, node in enumerate(floats.nodes) if node.out.name == STEM)
    runtime.write(Graph(floats.x, floats.nodes[: end + 1]), path)
    stem = interpret.run(floats, images)[STEM]
    np.testing.assert_allclose(runtime.class_maps(path)(images), stem, atol=1e-5)

"""A network that the project does not have: traced, calibrated, folded, exported, run."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax.export import fold, graph, interpret, parity, runtimes, simulate, tie_free
from qnas_jax.nn import init, policy
from qnas_jax.nn.conv import LINEAR, RELU, ConvBnAct
from qnas_jax.nn.fake_quant import FakeQuant
from qnas_jax.nn.trace import trace
from qnas_jax.nn.units import Add, Concat, Input, Mean
from qnas_jax.profiling import synthetic
from qnas_jax.train import supervised
from small_network import lived

SHAPE, CLASSES = (21, 30, 3), 7
POLICY = {"stem": (8, 6), "body/filter": (5, 7), "body/sum": (8, 6)}


class Body(nn.Module):
    """A residual layer."""

    @nn.compact
    def __call__(self, x, train):
        y = ConvBnAct(16, name="widen")(x, train)
        y = ConvBnAct(16, kernel=5, depthwise=True, name="filter")(y, train)
        y = ConvBnAct(8, bounds=LINEAR, name="narrow")(y, train)
        return Add(name="sum")(x, y)


class Network(nn.Module):
    """A residual layer, two branches that are joined, a class for the image."""

    @nn.compact
    def __call__(self, images, train=False):
        x = Input(name="image")(images)
        x = ConvBnAct(8, kernel=3, stride=2, name="stem")(x, train)
        x = Body(name="body")(x, train)
        near = ConvBnAct(6, kernel=3, bounds=RELU, grid=False, name="near")(x, train)
        far = ConvBnAct(10, kernel=3, dilation=2, bounds=RELU, grid=False, name="far")(x, train)
        x = Concat(name="joined")([near, far])
        x = nn.Dropout(0.1, deterministic=not train)(x)
        x = Mean(name="pooled")(x)
        return ConvBnAct(CLASSES, bounds=LINEAR, norm=False, name="logits")(x, train)


@pytest.fixture(scope="module")
def case():
    """The network, its graphs, its variables with the graph's numbers, and images."""
    model = Network()
    fresh = init.initialize(model, jax.random.key(0), (1, *SHAPE))
    variables = lived({name: fresh[name] for name in ("params", "batch_stats")})
    images = np.random.default_rng(0).integers(0, 256, (4, *SHAPE)).astype(np.uint8)
    quant = policy.with_policy(fresh["quant"], POLICY)

    @jax.jit
    def calibrated(quant):
        pixels = supervised.pixels(jnp.asarray(images))
        return model.apply({**variables, "quant": quant}, pixels, mutable=["quant"])[1]["quant"]

    quant = calibrated(quant)
    quant = tie_free.with_agreed_sums(
        fold.fold(model, variables, quant, SHAPE, resize=False), quant
    )
    network, floats = (fold.fold(model, variables, q, SHAPE, resize=False) for q in (quant, None))
    rounded = {**fold.with_bias_codes(variables, network), "quant": quant}
    return model, network, floats, variables, rounded, images


def test_its_units_stand_in_order_with_what_they_read():
    traced = trace(Network(), SHAPE)
    assert {unit.name: unit.inputs for unit in traced.units} == {
        "image": ("image",),
        "stem": ("image",),
        "body/widen": ("stem",),
        "body/filter": ("body/widen",),
        "body/narrow": ("body/filter",),
        "body/sum": ("stem", "body/narrow"),
        "near": ("body/sum",),
        "far": ("body/sum",),
        "joined": ("near", "far"),
        "pooled": ("joined",),
        "logits": ("pooled",),
    }
    assert traced.output == "logits"
    assert not any(unit.site for unit in traced.units)
    pixels = 11 * 15
    weights = [27 * 8, 8 * 16, 25 * 16, 16 * 8, 0, 9 * 8 * 6, 9 * 8 * 10, 0, 0]
    assert [unit.macs for unit in traced.units] == [
        *(0, *(pixels * count for count in weights)),
        16 * CLASSES,
    ]


def test_the_policy_by_names_is_what_the_graph_has(case):
    network = case[1]
    convs = {conv.out.name: conv for conv in network.convs}
    assert {name: conv.w_bits for name, conv in convs.items() if conv.w_bits != 8} == {
        "body/filter": 5
    }
    grids = {name: tensor.grid for name, tensor in network.tensors().items() if tensor.grid}
    assert {name: grid.bits for name, grid in grids.items() if grid.bits != 8} == {
        "stem": 6,
        "body/filter": 7,
        "body/sum": 6,
    }
    assert grids["near"] == grids["far"] == grids["joined"]


def test_the_graph_computes_what_the_module_computes(case):
    model, network, floats, variables, rounded, images = case
    pixels = supervised.pixels(jnp.asarray(images))
    expected = np.asarray(jax.jit(model.apply)(variables, pixels))
    np.testing.assert_allclose(interpret.run(floats, images)["logits"], expected, atol=1e-4)
    simulated = parity.simulate(model, network, rounded, images)
    rows = parity.layers(network, simulated, {"integer": interpret.run(network, images)})
    assert [row["name"] for row in rows] == [
        node.out.name for node in network.nodes if not isinstance(node, graph.Concat)
    ][:-2]
    for row in rows:
        assert row["own_rounding"]["differ"] <= 2, row
    for name, codes in simulate.tensors(network)(images).items():
        np.testing.assert_array_equal(codes, interpret.run(network, images)[name], name)


@pytest.mark.parametrize("number", [0, 1], ids=["onnx", "litert"])
def test_its_files_give_the_simulated_codes(case, number, tmp_path):
    if number == len(runtimes.installed()):
        pytest.skip("pip install -e '.[litert]'")
    runtime = runtimes.installed()[number]
    _, network, _, _, _, images = case
    expected = {name: np.asarray(x) for name, x in simulate.tensors(network)(images).items()}
    found = runtime.tensors(network, images)
    names = [node.out.name for node in network.nodes if node.out.grid]
    assert len(names) == len(network.nodes) - 2, "all but the logits as reals, and the class"
    for name in names:
        np.testing.assert_array_equal(found[name], expected[name], name)
        assert found[name].max() > found[name].min(), name
    path = tmp_path / f"model{runtime.suffix}"
    runtime.write(network, path)
    classes = runtime.class_maps(path)(images)
    np.testing.assert_array_equal(classes[..., None], expected["classes"])


def test_its_synthetic_graph_differs_by_its_numbers_alone(case):
    made = synthetic.network(trace(Network(), SHAPE), [], resize=False)
    for node, other in zip(made.nodes, case[1].nodes, strict=True):
        assert type(node) is type(other)
        assert (node.out[:2], node.inputs) == (other.out[:2], other.inputs)


class Steps(nn.Module):
    """A module of such steps, given from outside."""

    steps: tuple

    def __call__(self, x):
        for step in self.steps:
            x = step(x)
        return x


class Reused(nn.Module):
    """A branch of a concatenation that something else reads, too."""

    own: bool = False

    @nn.compact
    def __call__(self, x):
        branch = ConvBnAct(4, grid=self.own, name="branch")(x)
        joined = Concat(name="joined")([branch, ConvBnAct(4, grid=False, name="other")(x)])
        return joined if self.own else Add(name="sum")(branch, ConvBnAct(4, name="y")(joined))


CONV = ConvBnAct(3)
REFUSED = {
    "a function": (
        Steps((ConvBnAct(4), nn.relu, ConvBnAct(4))),
        "steps_2: reads 8x9x4 values that no unit gives; units are Input, ConvBnAct, Add, ",
    ),
    "shared weights": (Steps((CONV, CONV)), "steps_0: runs twice; make a unit for each call"),
    "a grid": (Steps((ConvBnAct(4), FakeQuant())), "steps_1: FakeQuant is no unit"),
    "a function at the end": (Steps((ConvBnAct(4), nn.relu)), "steps_0: is the last unit, but"),
    "no grid": (Steps((ConvBnAct(4, grid=False),)), "steps_0: has no grid; grid=False is for"),
    "a branch with readers": (Reused(), "sum: reads branch, which has no grid of its own"),
    "two grids": (Reused(own=True), "joined: joins branch, which has another grid"),
}


@pytest.mark.parametrize(("module", "message"), REFUSED.values(), ids=REFUSED)
def test_what_a_graph_cannot_hold_is_refused_by_name(module, message):
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 9, 3)))
    with pytest.raises(ValueError, match=f"^{message}"):
        fold.fold(module, variables, variables["quant"], (8, 9, 3), resize=False)

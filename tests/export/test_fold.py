import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax.errors import InputError
from qnas_jax.export import fold, graph, interpret, parity, simulate
from qnas_jax.nn import init
from qnas_jax.quant import affine
from qnas_jax.tasks import segmentation
from qnas_jax.train import supervised
from small_network import SHAPE


def test_codes_are_those_of_fake_quantization(int8, mixed):
    """Each layer by itself, on the codes that fake quantization gives it."""
    for case in (int8, mixed):
        exact = fold.with_bias_codes(case.variables, case.network)
        rounded = {**exact, "quant": case.quant}
        simulated = parity.simulate(case.model, case.network, rounded, case.images)
        rows = parity.layers(case.network, simulated, {"integer": simulated})
        assert [row["name"] for row in rows][:3] == [
            "encoder/stem",
            "encoder/block0/layer0/depthwise",
            "encoder/block0/layer0/project",
        ]
        assert sum(row["codes"] for row in rows) > 60_000
        for row in rows:
            own = row["own_rounding"]
            assert own["differ"] <= 2, row
            assert own.get("farthest_from_tie", 0) < 1e-4, row


def test_rounded_biases_move_a_layer_by_less_than_a_code(int8):
    simulated = parity.simulate(int8.model, int8.network, int8.quantized, int8.images)
    rows = parity.layers(int8.network, simulated, {"integer": simulated})
    differ = sum(row["own_rounding"]["differ"] for row in rows)
    assert 0 < differ < 0.01 * sum(row["codes"] for row in rows)
    assert max(row["own_rounding"].get("largest", 0) for row in rows) == 1


def test_the_float_graph_is_the_float_network(int8):
    found = interpret.run(int8.floats, int8.images)
    pixels = supervised.pixels(jnp.asarray(int8.images))
    np.testing.assert_array_equal(found["pixels"], pixels)
    expected = jax.jit(int8.model.apply)(int8.variables, pixels)
    np.testing.assert_allclose(found["classifier"], expected, rtol=1e-4, atol=1e-4)
    maps = supervised.predictor(int8.model, segmentation.predict)(int8.variables, int8.images)
    assert np.mean(found[int8.floats.out.name][..., 0] == maps) > 0.999


def test_a_negative_norm_turns_the_weights_round(int8):
    stem = int8.network.nodes[0]
    params = int8.variables["params"]["encoder"]["stem"]
    codes, _ = affine.weight_codes(jnp.asarray(params["kernel"]), jnp.int32(8))
    signs = np.sign(params["norm"]["scale"])
    assert set(signs) == {-1, 0, 1}
    np.testing.assert_array_equal(stem.weights, np.asarray(codes) * signs)
    assert (stem.w_scale > 0).all()


def test_a_channel_that_its_norm_switches_off_gives_its_bias(int8):
    stem = int8.network.nodes[0]
    assert int8.variables["params"]["encoder"]["stem"]["norm"]["scale"][-1] == 0
    assert not stem.weights[..., -1].any()
    bias = stem.bias_codes[-1] * stem.w_scale[-1] / 128
    np.testing.assert_allclose(bias, stem.bias[-1], rtol=1e-6)


def test_a_channel_that_reads_nothing_keeps_its_bias(int8):
    """Its norm divides by next to nothing; a step of its sums would be many codes."""
    variables = jax.tree.map(np.array, int8.variables)
    norm = variables["batch_stats"]["encoder"]["stem"]["norm"]
    norm["var"][0], norm["mean"][0] = 0.0, 0.0
    variables["params"]["encoder"]["stem"]["norm"]["scale"][0] = 5e3
    stem = fold.fold(int8.model, variables, int8.quant, SHAPE, resize=True).nodes[0]
    out = stem.out.grid.scale
    step = stem.w_scale[0] / 128 / out
    assert step == pytest.approx(127.5 / 127)
    assert abs(stem.bias_codes[0] * step - stem.bias[0] / out) <= step / 2
    assert np.abs(stem.weights[..., 0]).max() == 127
    others = int8.network.nodes[0]
    np.testing.assert_array_equal(stem.weights[..., 1:], others.weights[..., 1:])


def test_branches_are_joined_on_one_grid(int8):
    join = next(n for n in int8.network.nodes if isinstance(n, graph.Concat))
    tensors = int8.network.tensors()
    assert {tensors[name].grid for name in join.inputs} == {join.out.grid}
    places = [name.split("/")[1] for name in join.inputs]
    assert places == ["broadcast", "point", "rate2", "rate3"]


def test_an_activation_that_the_grid_implies_is_no_clip(int8):
    for conv in int8.network.convs:
        assert conv.out.grid.code_bounds(conv.bounds) == (0, 255)
    wide = graph.QParams(8 / 255, 32, 8)
    assert wide.code_bounds((0.0, 6.0)) == (32, 32 + round(6 / wide.scale))
    assert wide.code_bounds((-np.inf, np.inf)) == (0, 255)


def test_an_input_that_is_not_bytes_is_refused(int8):
    quant = jax.tree.map(np.array, int8.quant)
    quant["encoder"]["input"]["a_bits"] = np.int32(6)
    with pytest.raises(ValueError, match="not that of bytes"):
        fold.fold(int8.model, int8.variables, quant, SHAPE, resize=True)


def test_records_are_frozen(int8):
    with pytest.raises(dataclasses.FrozenInstanceError):
        int8.network.nodes[0].stride = 2


def test_a_network_that_was_not_calibrated_is_refused(int8):
    fresh = init.initialize(int8.model, jax.random.key(0), (1, *SHAPE))
    with pytest.raises(InputError, match="no layer has a range; calibrate"):
        fold.fold(int8.model, int8.variables, fresh["quant"], SHAPE, resize=True)


def test_a_float_graph_is_not_simulated(int8):
    with pytest.raises(InputError, match="a graph in float cannot be simulated"):
        simulate.simulator(int8.floats)

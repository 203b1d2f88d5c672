"""Costs as arrays: of a search space, of a given network and of its fixed parts."""

import functools
import itertools
import operator

import numpy as np
import pytest

from qnas_jax import hardware, space
from qnas_jax.errors import InputError
from qnas_jax.hardware import cost, devices, published, size
from qnas_jax.hardware.target import Target

BLOCKS = (
    space.Block(in_channels=8, channels=16, stride=2, dilation=1, depth=2),
    space.Block(in_channels=16, channels=24, stride=1, dilation=2, depth=1),
)
PLACES = hardware.places(BLOCKS, (9, 17))
OPS = (space.Op(3, 1), space.Op(5, 3))
LAYERS = hardware.layers(PLACES, OPS)
BITS = ((8, 8), (4, 8), (3, 5))


def ms_by_hand(speed, conv, w_bits, a_bits):
    return conv.macs * w_bits * a_bits / speed


def mj_by_hand(speed, conv, w_bits, a_bits):
    return np.maximum(w_bits, a_bits) * conv.weights / speed


COSTS = hardware.of_model(1e4, {"latency_ms": ms_by_hand, "energy_mj": mj_by_hand})
DEVICE = Target("by hand", costs=COSTS)


def test_a_candidate_costs_what_its_convolutions_cost():
    found = hardware.cost_matrix(DEVICE, LAYERS, BITS)
    assert list(found) == ["size_bytes", "latency_ms", "energy_mj"]
    for values in found.values():
        assert (values.shape, values.dtype) == ((len(PLACES), len(OPS), len(BITS)), np.float64)
    for (i, place), (o, op) in itertools.product(enumerate(PLACES), enumerate(OPS)):
        hidden = place.in_channels * op.expansion
        inner = place.in_height * place.in_width
        outer = -(-place.in_height // place.stride) * -(-place.in_width // place.stride)
        macs = outer * hidden * (op.kernel**2 + place.channels)
        macs += inner * place.in_channels * hidden if op.expansion > 1 else 0
        np.testing.assert_allclose(found["latency_ms"][i, o], [macs * w * a / 1e4 for w, a in BITS])
        convs = space.mbconv_convs(op, "", (1, 1, place.in_channels), place.channels, 1, 1)
        sizes = [size.network_bytes(convs, w_bits) for w_bits, _ in BITS]
        assert found["size_bytes"][i, o].tolist() == sizes


@pytest.mark.parametrize("name", ["bismo_edge", "bismo_cloud", "bitfusion"])
def test_targets_of_models_cost_what_the_models_say(name):
    found = hardware.cost_matrix(hardware.named(name), LAYERS, BITS)
    models = {"latency_ms": cost.latency_ms}
    models |= {"energy_mj": cost.energy_mj} if name == "bitfusion" else {}
    assert found.keys() == {"size_bytes", *models}
    device = getattr(devices, name.upper())
    for quantity, model in models.items():
        for (i, layer), (b, pair) in itertools.product(enumerate(LAYERS), enumerate(BITS)):
            for o, candidate in enumerate(layer):
                costs = [float(model(device, conv, *pair)) for conv in candidate.convs]
                expected = functools.reduce(operator.add, costs)  # sum() compensates from 3.12 on
                assert found[quantity][i, o, b] == expected, "bit for bit"


def test_only_the_size_is_known_without_a_device():
    found = hardware.cost_matrix(hardware.named("none"), LAYERS, BITS)
    assert set(found) == {"size_bytes"}
    assert np.isfinite(found["size_bytes"]).all()


def test_a_model_may_give_one_number_for_all_bitwidths():
    constant = hardware.of_model(0, {"latency_ms": lambda device, conv, w_bits, a_bits: 2.0})
    found = hardware.cost_matrix(Target("constant", costs=constant), LAYERS, BITS)
    assert found["latency_ms"][0].tolist() == [[4.0] * 3, [6.0] * 3], "two and three convolutions"


def test_what_the_target_does_not_run_costs_nan():
    runs = {"kernels": (3, 5), "expansions": (1, 6), "bits": ((8, 8), (3, 5))}
    found = hardware.cost_matrix(Target("small", **runs, costs=COSTS), LAYERS, BITS)
    everything = hardware.cost_matrix(DEVICE, LAYERS, BITS)
    np.testing.assert_array_equal(found["size_bytes"], everything["size_bytes"])
    for name in COSTS:
        assert np.isnan(found[name][:, 1]).all(), "expansion 3"
        assert np.isnan(found[name][:, 0, 1]).all(), "w4a8"
        np.testing.assert_array_equal(found[name][:, 0, ::2], everything[name][:, 0, ::2])


def test_layers_may_have_different_numbers_of_candidates():
    found = hardware.cost_matrix(DEVICE, [LAYERS[0], LAYERS[1][:1]], BITS)
    for name, values in hardware.cost_matrix(DEVICE, LAYERS[:2], BITS).items():
        values[1, 1] = np.nan
        np.testing.assert_array_equal(found[name], values)


def test_a_given_network_has_one_candidate_for_each_layer():
    """As a policy search needs it: MobileNetV1's convolutions, each at bitwidths of its own."""
    convs = published.mobilenet_v1_convs()
    layers = [hardware.given(conv.name, [conv]) for conv in convs]
    found = hardware.cost_matrix(hardware.named("bitfusion"), layers, [(8, 8), (4, 6)])
    for values in found.values():
        assert values.shape == (len(convs), 1, 2)
    for column, pair in enumerate(((8, 8), (4, 6))):
        expected = sum(float(cost.energy_mj(devices.BITFUSION, conv, *pair)) for conv in convs)
        assert found["energy_mj"][:, 0, column].sum() == pytest.approx(expected)
        assert found["size_bytes"][:, 0, column].sum() == size.network_bytes(convs, pair[0])


def test_a_subnet_costs_the_sum_of_its_layers():
    subnet = space.parse_subnet("k3e1w8a8-k5e3w4a8_k5e3.w3a5")
    choices = [choice for block in subnet for choice in block]
    expected = 0.0
    for place, choice in zip(PLACES, choices, strict=True):
        shape = (place.in_height, place.in_width, place.in_channels)
        convs = space.mbconv_convs(choice.op, "", shape, place.channels, place.stride, 1)
        expected += sum(max(choice[1:]) * conv.weights for conv in convs) / 1e4
    costs = hardware.cost_matrix(DEVICE, LAYERS, BITS)
    found = hardware.subnet_costs(costs, OPS, BITS, subnet)
    assert found["energy_mj"] == pytest.approx(expected)
    assert found["size_bytes"] == size.subnet_bytes(BLOCKS, subnet)


STEM = [space.Conv("a", 3, 2, 1, 1, 3, 8, 32, 64)]
HEAD = [*STEM, space.Conv("b", 1, 1, 1, 1, 8, 8, 16, 32)]


def test_fixed_parts_are_at_8_bits_whatever_the_layers_run():
    device = Target("t", kernels=(5,), bits=((4, 4),), costs=COSTS)
    found = hardware.fixed_costs(device, {"stem": STEM, "head": HEAD})
    macs = [27 * 8 * 512, 64 * 512]
    stem_ms = macs[0] * 64 / 1e4
    assert found["latency_ms"] == pytest.approx(
        {"stem": stem_ms, "head": stem_ms + macs[1] * 64 / 1e4}
    )
    assert found["energy_mj"]["head"] == pytest.approx((216 + 64) * 8 / 1e4)
    assert found["size_bytes"] == {"stem": 216 + 64, "head": 216 + 64 + 64 + 64}
    assert {type(value) for value in found["size_bytes"].values()} == {int}
    assert hardware.fixed_costs(hardware.named("none"), {"stem": STEM}) == {
        "size_bytes": {"stem": 280}
    }


def test_a_fixed_part_without_a_cost_is_refused():
    lacking = Target("t", costs={"latency_ms": lambda candidate, w_bits, a_bits: np.nan})
    with pytest.raises(InputError) as error:
        hardware.fixed_costs(lacking, {"stem": STEM})
    assert str(error.value) == "target 't': nothing was measured for stem, 32 x 64, w8a8"

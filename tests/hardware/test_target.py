import itertools

import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.hardware import target

BLOCKS = (
    space.Block(in_channels=8, channels=16, stride=2, dilation=1, depth=2),
    space.Block(in_channels=16, channels=24, stride=1, dilation=2, depth=1),
)
PLACES = target.places(BLOCKS, (9, 17))  # odd: strides round up
OPS = (space.Op(3, 1), space.Op(5, 3))
WANTED = target.Choices((3, 5, 7), (3, 6), ((8, 8), (4, 8)))


def ms_by_hand(speed, conv, w_bits, a_bits):
    return conv.macs * w_bits * a_bits / speed


def mj_by_hand(speed, conv, w_bits, a_bits):
    return np.maximum(w_bits, a_bits) * conv.weights / speed


COSTS = target.of_model(1e4, ms_by_hand, mj_by_hand)


def test_places_are_the_layers_as_the_picture_passes_through_them():
    assert [str(place) for place in PLACES] == ["block1/layer0", "block1/layer1", "block2/layer0"]
    assert PLACES == (
        (0, 0, 9, 17, 8, 16, 2, 1),
        (0, 1, 5, 9, 16, 16, 1, 1),
        (1, 0, 5, 9, 16, 24, 1, 2),
    )
    convs = itertools.chain.from_iterable(space.block_convs(BLOCKS[0], OPS, (9, 17)))
    shapes = {(c.in_height, c.in_width) for c in convs if c.name.endswith("depthwise")}
    assert shapes == {place[2:4] for place in PLACES[:2]}


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("op", OPS, ids=str)
def test_a_layer_takes_what_its_convolutions_take(place, op):
    pairs = [(8, 8), (4, 8), (3, 5)]
    found = COSTS["latency_ms"].of_layer(place, op, *np.array(pairs).T)
    hidden = place.in_channels * op.expansion
    inner = place.in_height * place.in_width
    outer = -(-place.in_height // place.stride) * -(-place.in_width // place.stride)
    macs = outer * hidden * (op.kernel**2 + place.channels)
    macs += inner * place.in_channels * hidden if op.expansion > 1 else 0
    np.testing.assert_allclose(found, [macs * w * a / 1e4 for w, a in pairs])


def test_a_model_without_an_energy_tells_none_and_a_constant_one_serves_all_bitwidths():
    assert set(COSTS) == {"latency_ms", "energy_mj"}
    assert set(target.of_model(0, ms_by_hand)) == {"latency_ms"}
    fixed = target.of_model(0, lambda device, conv, w_bits, a_bits: 2.0)["latency_ms"]
    bits = np.array([4, 6, 8])
    assert fixed.of_layer(PLACES[0], OPS[1], bits, bits).tolist() == [6.0, 6.0, 6.0]


def test_fixed_parts_are_at_8_bits():
    device = target.Target("t", costs=COSTS)
    convs = [space.Conv("a", 3, 2, 1, 1, 3, 8, 32, 64), space.Conv("b", 1, 1, 1, 1, 8, 8, 16, 32)]
    found = target.fixed_costs(device, {"stem": convs[:1], "head": convs})
    macs = [27 * 8 * 512, 64 * 512]
    expected = (2 * macs[0] + macs[1]) * 64 / 1e4
    assert found["latency_ms"] == pytest.approx(expected)
    assert found["energy_mj"] == pytest.approx((2 * 216 + 64) * 8 / 1e4)
    assert target.fixed_costs(target.NONE, {"stem": convs}) == {}


def test_a_subnet_takes_the_sum_of_its_layers():
    subnet = space.parse_subnet("k3e1w8a8-k5e3w4a8_k5e3.w3a5")
    cost = COSTS["energy_mj"]
    layers = zip(PLACES, [choice for block in subnet for choice in block], strict=True)
    expected = 0.0
    for place, choice in layers:
        shape = (place.in_height, place.in_width, place.in_channels)
        convs = space.mbconv_convs(choice.op, "", shape, place.channels, place.stride, 1)
        expected += sum(max(choice[1:]) * conv.weights for conv in convs) / 1e4
    assert target.subnet_cost(cost, PLACES, subnet) == pytest.approx(expected)


def test_what_a_target_does_not_run_leaves_the_space_in_order():
    assert target.runnable(target.NONE, WANTED) == WANTED
    some = target.Target("small", kernels=(5, 3), expansions=(6, 4), bits=((8, 8), (8, 4)))
    assert target.runnable(some, WANTED) == ((3, 5), (6,), ((8, 8),))


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ({"kernels": (9,)}, "kernels (3, 5, 7); it runs (9,)"),
        ({"expansions": (1, 2)}, "expansions (3, 6); it runs (1, 2)"),
        ({"bits": ((4, 4),)}, "bits ((8, 8), (4, 8)); it runs ((4, 4),)"),
    ],
)
def test_a_space_of_which_nothing_is_left_is_refused(runs, message):
    with pytest.raises(InputError) as error:
        target.runnable(target.Target("odd", **runs), WANTED)
    assert str(error.value) == f"target 'odd' runs none of the space's {message}"


@pytest.mark.parametrize("granularity", target.GRANULARITIES)
@pytest.mark.parametrize("bits_per", ["block", "layer"])
def test_bitwidths_are_chosen_no_more_finely_than_the_target_runs_them(granularity, bits_per):
    device = target.Target("coarse", granularity=granularity)
    target.check_granularity(device, ((8, 8),), bits_per)  # one pair is no choice
    order = ["network", "block", "layer"]
    if order.index(bits_per) <= order.index(granularity):
        target.check_granularity(device, ((8, 8), (4, 4)), bits_per)
    else:
        with pytest.raises(InputError, match=f"one pair of bitwidths for a {granularity}, not"):
            target.check_granularity(device, ((8, 8), (4, 4)), bits_per)


def test_a_target_without_scales_for_each_channel_is_refused():
    device = target.Target("plain", per_channel=False)
    with pytest.raises(InputError, match="'plain' runs one scale for all weights of a layer"):
        target.check_granularity(device, ((8, 8),), "block")


def test_targets_are_found_by_their_names():
    assert all(target.named(name).name == name for name in target.TARGETS)
    with pytest.raises(InputError, match=r"hardware\.target='gpu': must be .*'none'"):
        target.named("gpu")

import numpy as np
import pytest

from qnas_jax import hardware
from qnas_jax.errors import InputError
from qnas_jax.hardware import deployment, target
from qnas_jax.space import Conv

WANTED = target.Choices((3, 5, 7), (3, 6), ((8, 8), (4, 8)))


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


def test_weights_of_too_many_bits_get_fewer():
    wanted = WANTED._replace(bits=((8, 8), (7, 8), (4, 8), (8, 4)))
    found = target.runnable(target.named("x86_avx2"), wanted)
    assert found.bits == ((7, 8), (4, 8), (7, 4))


def test_bitwidths_that_a_system_chooses_itself_are_refused():
    target.check_w_bits(target.NONE, "hqnas.bits", (2, 8))
    target.check_w_bits(target.named("x86_avx2"), "hqnas.bits", (2, 7))
    with pytest.raises(InputError, match="at most 7 bits there, and hqnas"):
        target.check_w_bits(target.named("x86_avx2"), "hqnas.bits", (2, 8))


def test_what_has_too_many_bits_has_no_cost():
    conv = Conv("conv", 3, 1, 1, 1, 4, 8, 6, 6)
    layers = [hardware.given("conv", (conv,))]
    found = hardware.cost_matrix(target.named("x86_avx2"), layers, [(8, 8), (7, 8)])["size_bytes"]
    assert np.isnan(found[0, 0, 0])
    assert found[0, 0, 1] == hardware.cost_matrix(target.NONE, layers, [(7, 8)])["size_bytes"]


def test_a_table_whose_stem_has_too_many_bits_is_refused():
    with pytest.raises(InputError, match=r"hardware.table='a.csv': not with .*'x86_avx2'"):
        deployment.device("x86_avx2", "a.csv", ())


def test_what_has_a_scale_for_each_channel_is_refused_where_a_layer_has_one():
    target.check_per_channel(target.NONE, "a network of HAQ")
    match = r"hardware.target='per_tensor' has one scale for all weights of a layer; a network"
    with pytest.raises(InputError, match=match):
        target.check_per_channel(target.named("per_tensor"), "a network of HAQ")


def test_targets_are_found_by_their_names():
    assert all(target.named(name).name == name for name in target.TARGETS)
    with pytest.raises(InputError, match=r"hardware\.target='gpu': must be .*'none'"):
        target.named("gpu")


def test_costs_that_a_target_does_not_know_are_refused():
    target.check_knows(target.NONE, ("size_bytes",))
    target.check_knows(target.named("bitfusion"), ("energy_mj", "latency_ms", "size_bytes"))
    with pytest.raises(InputError) as error:
        target.check_knows(target.named("bismo_edge"), ("latency_ms", "energy_mj"))
    assert str(error.value) == (
        "search.costs=('latency_ms', 'energy_mj'): target 'bismo_edge' does not know 'energy_mj'; "
        "set hardware.target or hardware.table"
    )

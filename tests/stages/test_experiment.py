"""A run laid out for a target: space, costs, budgets. Nothing is trained."""

import logging

import numpy as np
import pytest

import chip
from qnas_jax import space
from qnas_jax.bwnas.lut import table
from qnas_jax.errors import InputError
from qnas_jax.hardware import size, target
from qnas_jax.nn import trace
from qnas_jax.run import artefacts


@pytest.fixture
def smoke():
    return chip.smoke()


@pytest.fixture
def on_chip(smoke, monkeypatch):
    return chip.chosen(smoke, monkeypatch)


def some_subnet(searched, w_bits=8):
    ops = searched.ops
    return tuple(
        tuple(space.Choice(ops[(i + j) % len(ops)], w_bits, 8) for j in range(block.depth))
        for i, block in enumerate(searched.blocks)
    )


@pytest.mark.parametrize("picture", [(0, 0), (45, 83)])
def test_places_and_fixed_parts_make_up_the_whole_network(on_chip, tmp_path, picture):
    on_chip.hardware.picture = picture
    laid_out = chip.prepared(on_chip, tmp_path)
    subnet = some_subnet(laid_out.searched)
    shape = picture if picture[0] else (on_chip.data.height, on_chip.data.width)
    convs = trace.convs(laid_out.student(subnet), (*shape, 3))
    first = {}
    for conv in convs:
        first.setdefault("/".join(conv.name.split("/")[1:3]), conv)
    for place in laid_out.places():
        assert place[2:5] == (
            first[str(place)].in_height, first[str(place)].in_width, first[str(place)].in_channels
        )  # fmt: skip
    fixed = laid_out.fixed_costs()
    for name, whole in (
        ("latency_ms", sum(conv.macs for conv in convs) / 1e6),
        ("energy_mj", sum(64 * conv.weights for conv in convs) / 1e6),
    ):
        blocks = target.subnet_cost(chip.CHIP.costs[name], laid_out.places(), subnet)
        assert fixed[name] + blocks == pytest.approx(whole)
    assert sum(laid_out.fixed_bytes().values()) == size.network_bytes(
        [c for c in convs if not any(f"block{b}/" in c.name for b in range(1, 7))], 8
    )
    teacher = trace.convs(laid_out.teacher(), (*shape, 3))
    expected = sum(conv.macs for conv in teacher) / 1e6
    assert laid_out.teacher_costs()["latency_ms"] == pytest.approx(expected)


def test_what_the_target_does_not_run_never_enters_the_space(on_chip, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "qnas_jax.stages.experiment"):
        laid_out = chip.prepared(on_chip, tmp_path)
    assert laid_out.searched.ops == (space.Op(3, 2), space.Op(7, 2))
    assert laid_out.bits == ((8, 8), (4, 4))
    assert laid_out.config.space.kernels == (3, 7), "what the supernet is made from"
    assert [record.getMessage() for record in caplog.records] == [
        "target chip: of the kernels (3, 5, 7) it runs (3, 7)",
        "target chip: of the bits ((8, 8), (6, 6), (4, 4)) it runs ((8, 8), (4, 4))",
    ]
    assert on_chip.space.kernels == (3, 5, 7), "the config that was given stays as it is"


def test_without_a_target_the_config_stays_as_it_is(smoke, tmp_path):
    laid_out = chip.prepared(smoke, tmp_path)
    assert artefacts.digest(laid_out.config) == artefacts.digest(smoke)
    assert (laid_out.fixed_costs(), laid_out.teacher_costs()) == ({}, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hardware.target": "gpu"}, "hardware.target='gpu': must be 'none' or 'bismo_edge' or"),
        ({"hardware.table": "/no.csv"}, "/no.csv: no such file"),
        (
            {"space.kernels": (5,)},
            "target 'chip' runs none of the space's kernels (5,); it runs (3",
        ),
        ({"space.bits_per": "layer"}, "has one pair of bitwidths for a block, not for a layer"),
        ({"hardware.target": "none"}, "target 'none' does not tell 'latency_ms'"),
    ],
)
def test_a_target_that_cannot_be_used_is_told(on_chip, tmp_path, change, message):
    for name, value in change.items():
        section, field = name.split(".")
        setattr(getattr(on_chip, section), field, value)
    with pytest.raises(InputError) as error:
        chip.prepared(on_chip, tmp_path)
    assert message in str(error.value)


def test_budgets_that_no_subnet_meets_are_refused_ahead_of_all_work(on_chip, tmp_path):
    laid_out = chip.prepared(on_chip, tmp_path)
    laid_out.check_target()
    smallest = tuple(
        (space.Choice(space.Op(3, 2), 4, 4),) * block.depth for block in laid_out.searched.blocks
    )
    fixed = laid_out.fixed_costs()["latency_ms"]
    least = fixed + target.subnet_cost(chip.CHIP.costs["latency_ms"], laid_out.places(), smallest)
    on_chip.search.budget_ms = least * 1.001
    chip.prepared(on_chip, tmp_path).check_target()
    on_chip.search.budget_ms = least * 0.999
    with pytest.raises(InputError) as error:
        chip.prepared(on_chip, tmp_path).check_target()
    expected = f"a budget of {least * 0.999:.6g} ms: the fastest subnet takes {least:.6g}"
    assert str(error.value) == expected


def test_budgets_that_only_different_subnets_meet_are_refused_too(on_chip, tmp_path, monkeypatch):
    def slow_if_small(device, conv, w_bits, a_bits):
        return 1.0 / np.asarray(w_bits)

    slow = target.Target("chip", costs=target.of_model(None, slow_if_small))
    monkeypatch.setitem(target.TARGETS, "chip", slow)
    on_chip.search.costs = ("size_bytes", "latency_ms")
    laid_out = chip.prepared(on_chip, tmp_path)
    parts = table.parts_of(laid_out.searched, laid_out.bits, per_layer=False)
    rows = table.build(np.zeros(sum(p.rows for p in parts)), laid_out.searched, parts)
    rows = laid_out.with_costs(rows)
    least = {
        name: sum(float(rows.costs[name][rows.rows_of(b)].min()) for b in range(rows.blocks))
        for name in on_chip.search.costs
    }
    size_bytes = int(least["size_bytes"]) + sum(laid_out.fixed_bytes().values())
    on_chip.search.budget_bytes = size_bytes
    on_chip.search.budget_ms = 1.001 * (least["latency_ms"] + laid_out.fixed_costs()["latency_ms"])
    with pytest.raises(InputError, match="no subnet meets all; the nearest has"):
        chip.prepared(on_chip, tmp_path).check_target()
    on_chip.search.budget_ms *= 3
    chip.prepared(on_chip, tmp_path).check_target()


def test_pictures_as_deployed_are_those_of_the_validation_unless_their_size_is_another(
    smoke, tmp_path
):
    for picture in ((0, 0), (32, 64)):
        smoke.hardware.picture = picture
        same = chip.prepared(smoke, tmp_path)
        assert not same.resizes
        assert same.deployed_data() is same.val_data
    smoke.hardware.picture = (64, 64)
    laid_out = chip.prepared(smoke, tmp_path)
    assert laid_out.resizes
    data = laid_out.deployed_data()
    assert len(data) == len(laid_out.val_data) == 6
    assert [array.shape for array in data[0]] == [(64, 64, 3), (64, 64)]
    np.testing.assert_array_equal(data[0][1][::2], laid_out.val_data[0][1])

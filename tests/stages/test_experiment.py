"""A run laid out for a target: its space and its costs. Nothing is trained."""

import logging

import numpy as np
import pytest

import chip
from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.hardware import matrix, size
from qnas_jax.nn.trace import trace
from qnas_jax.run import artefacts
from qnas_jax.stages import experiment


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


@pytest.mark.parametrize("image_size", [(0, 0), (45, 83)])
def test_places_and_fixed_parts_make_up_the_whole_network(on_chip, tmp_path, image_size):
    on_chip.hardware.image_size = image_size
    laid_out = chip.prepared(on_chip, tmp_path)
    subnet = some_subnet(laid_out.searched)
    shape = image_size if image_size[0] else (on_chip.data.height, on_chip.data.width)
    convs = trace(laid_out.problem.student(subnet), (*shape, 3)).convs
    first = {}
    for conv in convs:
        first.setdefault("/".join(conv.name.split("/")[1:3]), conv)
    for place in laid_out.deployed.places:
        assert place[2:5] == (
            first[str(place)].in_height, first[str(place)].in_width, first[str(place)].in_channels
        )  # fmt: skip
    deployed, fixed = laid_out.deployed, laid_out.deployed.fixed()
    ops, bits = laid_out.searched.ops, laid_out.bits
    blocks = matrix.subnet_costs(deployed.matrix(ops, bits), ops, bits, subnet)
    for name, whole in (
        ("latency_ms", sum(conv.macs for conv in convs) / 1e6),
        ("energy_mj", sum(64 * conv.weights for conv in convs) / 1e6),
    ):
        assert sum(fixed[name].values()) + blocks[name] == pytest.approx(whole)
    assert fixed["size_bytes"] == laid_out.deployed.fixed()["size_bytes"]
    assert sum(laid_out.deployed.fixed()["size_bytes"].values()) == size.network_bytes(
        [c for c in convs if not any(f"block{b}/" in c.name for b in range(1, 7))], 8
    )
    teacher = trace(laid_out.problem.teacher, (*shape, 3)).convs
    expected = sum(conv.macs for conv in teacher) / 1e6
    assert experiment.teacher_costs(laid_out.deployed, laid_out.problem.teacher)[
        "latency_ms"
    ] == pytest.approx(expected)


def test_what_the_target_does_not_run_never_enters_the_space(on_chip, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "qnas_jax.stages.experiment"):
        laid_out = chip.prepared(on_chip, tmp_path)
    assert laid_out.searched.ops == (space.Op(3, 2), space.Op(7, 2))
    assert laid_out.bits == ((8, 8), (4, 4))
    assert laid_out.config.space.kernels == (3, 7), "what the supernet is made from"
    assert [record.getMessage() for record in caplog.records] == [
        "target chip: kernels (3, 7) instead of (3, 5, 7)",
        "target chip: bits ((8, 8), (4, 4)) instead of ((8, 8), (6, 6), (4, 4))",
    ]
    assert on_chip.space.kernels == (3, 5, 7), "the config that was given stays as it is"


def test_without_a_target_the_config_stays_as_it_is(smoke, tmp_path):
    laid_out = chip.prepared(smoke, tmp_path)
    assert artefacts.digest(laid_out.config) == artefacts.digest(smoke)
    assert laid_out.deployed.fixed() == {"size_bytes": laid_out.deployed.fixed()["size_bytes"]}
    assert experiment.teacher_costs(laid_out.deployed, laid_out.problem.teacher) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hardware.target": "gpu"}, "hardware.target='gpu': must be 'none' or 'x86_avx2' or"),
        ({"hardware.table": "/no.csv"}, "/no.csv: no such file"),
        (
            {"space.kernels": (5,)},
            "target 'chip' runs none of the space's kernels (5,); it runs (3",
        ),
        ({"space.bits_per": "layer"}, "has one pair of bitwidths for a block, not for a layer"),
    ],
)
def test_a_target_that_cannot_be_used_is_told(on_chip, tmp_path, change, message):
    for name, value in change.items():
        section, field = name.split(".")
        setattr(getattr(on_chip, section), field, value)
    with pytest.raises(InputError) as error:
        chip.prepared(on_chip, tmp_path)
    assert message in str(error.value)


def test_images_as_deployed_are_those_of_the_validation_unless_their_size_is_another(
    smoke, tmp_path
):
    for image_size in ((0, 0), (32, 64)):
        smoke.hardware.image_size = image_size
        _, problem, deployed, _ = chip.prepared(smoke, tmp_path)
        assert not experiment.resizes(smoke.data, deployed)
        assert experiment.deployed_images(problem, smoke.data, deployed) is problem.val
    smoke.hardware.image_size = (64, 64)
    _, problem, deployed, _ = chip.prepared(smoke, tmp_path)
    assert experiment.resizes(smoke.data, deployed)
    data = experiment.deployed_images(problem, smoke.data, deployed)
    assert len(data) == len(problem.val) == 6
    assert [array.shape for array in data[0]] == [(64, 64, 3), (64, 64)]
    np.testing.assert_array_equal(data[0][1][::2], problem.val[0][1])

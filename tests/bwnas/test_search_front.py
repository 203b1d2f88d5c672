"""A run's search: on which device, what it is made from, and what is chosen from its front."""

import json
import logging

import numpy as np
import pytest

import chip
from qnas_jax import space
from qnas_jax.bwnas import search_front
from qnas_jax.bwnas.lut import table
from qnas_jax.errors import InputError
from qnas_jax.hardware import matrix, target
from qnas_jax.nn.trace import trace
from qnas_jax.run import artefacts
from qnas_jax.run.stage import read_json
from qnas_jax.search import front


@pytest.fixture
def smoke():
    return chip.smoke()


@pytest.fixture
def on_chip(smoke, monkeypatch):
    return chip.chosen(smoke, monkeypatch)


def test_a_table_of_latencies_makes_a_search_for_its_device(smoke, tmp_path, caplog):
    ops = [space.Op(3, 2), space.Op(5, 2), space.Op(9, 9)]
    chip.write_table(tmp_path / "board.csv", chip.prepared(smoke, tmp_path), ops)
    lines = (tmp_path / "board.csv").read_text().splitlines()
    gone = [line for line in lines if not line.startswith("block3/layer0,k5e2")]
    assert len(gone) == len(lines) - 1
    (tmp_path / "board.csv").write_text("\n".join([*gone, ""]))

    smoke.space.kernels = (3, 5, 7)
    smoke.hardware.table = str(tmp_path / "board.csv")
    smoke.search.costs = ("size_bytes", "latency_ms")
    with caplog.at_level(logging.INFO, "qnas_jax.stages.experiment"):
        laid_out = chip.prepared(smoke, tmp_path / "run")
    assert [op.kernel for op in laid_out.searched.ops] == [3, 5]
    assert "1 lines are missing, so these are not run; the first is block3/layer0 k5e2 w8a8" in (
        caplog.records[-1].getMessage()
    )
    chip.check_target(laid_out)
    _, points = chip.searched(laid_out)
    for point in points:
        subnet = space.parse_subnet(point.subnet)
        convs = trace(laid_out.problem.student(subnet), (32, 64, 3)).convs
        assert point.costs["latency_ms"] == pytest.approx(sum(conv.macs for conv in convs) / 1e6)
        assert subnet[2][0].op.kernel == 3, "the other was not measured there"
    folder = tmp_path / "run" / "search"
    for cost in smoke.search.costs:
        assert front.read(folder / f"front_{cost}.csv") == front.pair(points, cost)


def test_another_target_leaves_the_table_as_it_is(smoke, tmp_path):
    laid_out = chip.prepared(smoke, tmp_path / "run")
    stage, rows = chip.populated(laid_out)
    before = (stage.folder / "lut.npz").read_bytes()
    searched, _ = chip.searched(laid_out, stage, rows)
    made_from = json.loads((searched.folder / "made_from.json").read_text())["made_from"]
    assert made_from == {"lut": stage.hash}, "as ever where only the size counts"
    smoke.search.costs = ("latency_ms",)
    hashes = set()
    for factor in (1.0, 2.0):
        path = tmp_path / f"{factor}.csv"
        chip.write_table(path, laid_out, laid_out.searched.ops, factor)
        smoke.hardware.table = str(path)
        changed = chip.prepared(smoke, tmp_path / "run")
        with pytest.raises(InputError, match="search was made from other settings"):
            chip.searched(changed, stage, rows)
        for file in searched.folder.iterdir():
            file.unlink()
        searched, points = chip.searched(changed, stage, rows)
        hashes.add(searched.hash)
        assert points[0].costs["latency_ms"] == max(point.costs["latency_ms"] for point in points)
    assert len(hashes) == 2
    assert (stage.folder / "lut.npz").read_bytes() == before


def test_a_cost_that_the_target_does_not_know_is_refused_before_all_work(on_chip, tmp_path):
    on_chip.hardware.target = "none"
    with pytest.raises(InputError, match="target 'none' does not know 'latency_ms'"):
        chip.check_target(chip.prepared(on_chip, tmp_path))


def test_subnets_to_retrain_include_the_best_that_meets_all_budgets(on_chip, tmp_path):
    laid_out = chip.prepared(on_chip, tmp_path)
    _, points = chip.searched(laid_out)
    limit_ms = 1.3 * min(point.costs["latency_ms"] for point in points)
    limit_bytes = sorted(point.costs["size_bytes"] for point in points)[len(points) // 2]
    on_chip.search.budgets = (("latency_ms", limit_ms), ("size_bytes", limit_bytes))
    picked = search_front.chosen(points, on_chip.search, 1)
    fit = [
        p.nsr
        for p in points
        if p.costs["latency_ms"] <= limit_ms and p.costs["size_bytes"] <= limit_bytes
    ]
    assert len(picked) == 2
    assert picked[-1].nsr == min(fit)
    on_chip.search.budgets = ()
    assert search_front.chosen(points, on_chip.search, 1) == picked[:1]


def test_budgets_that_no_subnet_meets_are_refused_before_all_work(on_chip, tmp_path):
    laid_out = chip.prepared(on_chip, tmp_path)
    chip.check_target(laid_out)
    smallest = tuple(
        (space.Choice(space.Op(3, 2), 4, 4),) * block.depth for block in laid_out.searched.blocks
    )
    deployed, ops, bits = laid_out.deployed, laid_out.searched.ops, laid_out.bits
    blocks = matrix.subnet_costs(deployed.matrix(ops, bits), ops, bits, smallest)
    lowest = sum(deployed.fixed()["latency_ms"].values()) + blocks["latency_ms"]
    on_chip.search.budgets = (("latency_ms", lowest * 1.001),)
    chip.check_target(chip.prepared(on_chip, tmp_path))
    on_chip.search.budgets = (("latency_ms", lowest * 0.999),)
    with pytest.raises(InputError) as error:
        chip.check_target(chip.prepared(on_chip, tmp_path))
    expected = f"a budget of {lowest * 0.999:.6g} ms: the fastest subnet takes {lowest:.6g}"
    assert str(error.value) == expected


def test_budgets_that_only_different_subnets_meet_are_refused_too(on_chip, tmp_path, monkeypatch):
    def slow_if_small(device, conv, w_bits, a_bits):
        return 1.0 / np.asarray(w_bits)

    slow = target.Target("chip", costs=target.of_model(None, {"latency_ms": slow_if_small}))
    monkeypatch.setitem(target.TARGETS, "chip", slow)
    on_chip.search.costs = ("size_bytes", "latency_ms")
    laid_out = chip.prepared(on_chip, tmp_path)
    parts = table.parts_of(laid_out.searched, laid_out.bits, per_layer=False)
    rows = table.build(np.zeros(sum(p.rows for p in parts)), laid_out.searched, parts)
    rows = search_front.with_costs(rows, laid_out.deployed)
    fixed = laid_out.deployed.fixed()
    lowest = {
        name: sum(fixed[name].values())
        + sum(float(rows.costs[name][rows.rows_of(b)].min()) for b in range(rows.blocks))
        for name in on_chip.search.costs
    }
    for factor in (1.001, 3.0):
        most_ms = factor * lowest["latency_ms"]
        on_chip.search.budgets = (("size_bytes", lowest["size_bytes"]), ("latency_ms", most_ms))
        if factor < 3:
            with pytest.raises(InputError, match="no subnet meets all; the nearest has"):
                chip.check_target(chip.prepared(on_chip, tmp_path))
        else:
            chip.check_target(chip.prepared(on_chip, tmp_path))


def test_a_device_that_runs_no_path_of_a_block_is_refused_before_all_work(
    on_chip, tmp_path, monkeypatch
):
    def not_in_block_2(candidate, w_bits, a_bits):
        return np.nan if candidate.place.startswith("block2") else 1.0

    broken = target.Target("chip", costs={"latency_ms": not_in_block_2})
    monkeypatch.setitem(target.TARGETS, "chip", broken)
    on_chip.search.costs = ("latency_ms",)
    with pytest.raises(InputError, match="target 'chip' runs no path of block 2 as a whole"):
        chip.check_target(chip.prepared(on_chip, tmp_path))


@pytest.mark.parametrize(
    ("section", "setting", "value"), [("quantize", "norms", True), ("retrain", "qat_norm_steps", 2)]
)
def test_new_factors_of_norms_are_refused_where_a_layer_has_one_scale(
    smoke, tmp_path, section, setting, value
):
    smoke.hardware.target, smoke.retrain.qat_steps = "per_tensor", 4
    chip.check_target(chip.prepared(smoke, tmp_path))
    setattr(getattr(smoke, section), setting, value)
    match = rf"{section}\.{setting}={value}: target 'per_tensor' has one scale for all weights"
    with pytest.raises(InputError, match=match):
        chip.check_target(chip.prepared(smoke, tmp_path))


def test_a_table_without_the_stem_is_refused_before_all_work(smoke, tmp_path):
    laid_out = chip.prepared(smoke, tmp_path)
    chip.write_table(tmp_path / "board.csv", laid_out, laid_out.searched.ops)
    lines = (tmp_path / "board.csv").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("stem")]
    (tmp_path / "board.csv").write_text("\n".join([*kept, ""]))
    smoke.hardware.table = str(tmp_path / "board.csv")
    with pytest.raises(InputError, match="nothing was measured for stem, 32 x 64, w8a8"):
        chip.check_target(chip.prepared(smoke, tmp_path))


def test_a_finished_search_of_a_version_with_fewer_settings_is_kept(on_chip, tmp_path):
    laid_out = chip.prepared(on_chip, tmp_path)
    populated = chip.populated(laid_out)
    first, _ = chip.searched(laid_out, *populated)
    file = first.folder / "made_from.json"
    mark = read_json(file)
    del mark["made_from"]["epsilon"]
    artefacts.write_json(file, {**mark, "hash": "older"})
    again, _ = chip.searched(laid_out, *populated)
    assert (again.done, again.hash) == (True, "older")
    on_chip.search.epsilon = 0.1
    with pytest.raises(InputError, match=r"\(epsilon: 0\.0, now 0\.1\)"):
        chip.searched(chip.prepared(on_chip, tmp_path), *populated)

"""Subnets chosen from a finished table, for any device: by the run, and by launch/tools/pick.py."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest

import chip
from qnas_jax import space
from qnas_jax.bwnas import search_front
from qnas_jax.bwnas.lut import table
from qnas_jax.errors import InputError
from qnas_jax.hardware import measured
from qnas_jax.nn import trace
from qnas_jax.run import artefacts
from qnas_jax.search import front


@pytest.fixture
def smoke():
    return chip.smoke()


@pytest.fixture
def on_chip(smoke, monkeypatch):
    return chip.chosen(smoke, monkeypatch)


def write_table(path, laid_out, ops, factor=1.0):
    def add(subject, convs):
        ms = factor * sum(conv.macs for conv in convs) / 1e6
        measured.append(
            path, measured.Row(subject, ms, *[None] * 4, 9, None, "runtime", "1", "board", 2)
        )  # fmt: skip

    for part, convs in laid_out.fixed_convs.items():
        height, width = max((c.in_height, c.in_width) for c in convs)
        add(measured.Subject(part, "", height, width, 3, 8, 1, 1, 8, 8), convs)
    for place in laid_out.places():
        for op in ops:
            shape, rest = place[2:5], place[5:]
            add(measured.subject(place, op, 8, 8), space.mbconv_convs(op, "", shape, *rest))


def populated(laid_out):
    """A finished table with random NSRs."""
    stage = artefacts.Stage(laid_out.workdir / "lut", {"seed": 0})
    parts = table.parts_of(laid_out.searched, laid_out.bits, per_layer=False)
    nsr = np.random.default_rng(0).uniform(1, 2, sum(part.rows for part in parts))
    rows = table.build(nsr.astype(np.float32), laid_out.searched, parts)
    table.save(stage.folder / "lut.npz", rows)
    described = {"fixed_size_bytes": laid_out.fixed_bytes()}
    artefacts.write_json(stage.folder / "lut.json", described)
    artefacts.write_json(laid_out.workdir / "config.json", laid_out.config)
    stage.finish()
    return stage, rows


def test_a_table_of_latencies_makes_a_search_for_its_device(smoke, tmp_path, caplog):
    ops = [space.Op(3, 2), space.Op(5, 2), space.Op(9, 9)]
    write_table(tmp_path / "board.csv", chip.prepared(smoke, tmp_path), ops)
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
    laid_out.check_target()
    _, points = search_front.search_front(laid_out, *populated(laid_out))
    for point in points:
        subnet = space.parse_subnet(point.subnet)
        convs = trace.convs(laid_out.student(subnet), (32, 64, 3))
        assert point.latency_ms == pytest.approx(sum(conv.macs for conv in convs) / 1e6)
        assert subnet[2][0].op.kernel == 3, "the other was not measured there"
    folder = tmp_path / "run" / "search"
    for cost in smoke.search.costs:
        assert front.read(folder / f"front_{cost}.csv") == front.pair(points, cost)


def test_another_target_leaves_the_table_as_it_is(smoke, tmp_path):
    laid_out = chip.prepared(smoke, tmp_path / "run")
    stage, rows = populated(laid_out)
    before = (stage.folder / "lut.npz").read_bytes()
    searched, _ = search_front.search_front(laid_out, stage, rows)
    made_from = json.loads((searched.folder / "made_from.json").read_text())["made_from"]
    assert made_from == {"lut": stage.hash}, "as ever where only the size counts"
    smoke.search.costs = ("latency_ms",)
    hashes = set()
    for factor in (1.0, 2.0):
        path = tmp_path / f"{factor}.csv"
        write_table(path, laid_out, laid_out.searched.ops, factor)
        smoke.hardware.table = str(path)
        changed = chip.prepared(smoke, tmp_path / "run")
        with pytest.raises(InputError, match="search was made from other settings"):
            search_front.search_front(changed, stage, rows)
        for file in searched.folder.iterdir():
            file.unlink()
        searched, points = search_front.search_front(changed, stage, rows)
        hashes.add(searched.hash)
        assert points[0].latency_ms == max(point.latency_ms for point in points)
    assert len(hashes) == 2
    assert (stage.folder / "lut.npz").read_bytes() == before


def test_subnets_to_retrain_include_the_best_that_meets_all_budgets(on_chip, tmp_path):
    laid_out = chip.prepared(on_chip, tmp_path)
    _, points = search_front.search_front(laid_out, *populated(laid_out))
    on_chip.retrain.subnets = 1
    least = min(point.latency_ms for point in points)
    on_chip.search.budget_ms = 1.3 * least
    on_chip.search.budget_bytes = sorted(point.size_bytes for point in points)[len(points) // 2]
    picked = search_front.chosen(on_chip, points)
    fit = [
        p.nsr
        for p in points
        if p.latency_ms <= on_chip.search.budget_ms and p.size_bytes <= on_chip.search.budget_bytes
    ]
    assert len(picked) == 2
    assert picked[-1].nsr == min(fit)


def pick(*arguments):
    command = [sys.executable, "launch/tools/pick.py", *map(str, arguments)]
    found = subprocess.run(command, cwd=chip.ROOT, capture_output=True, text=True, check=False)
    return found.returncode, found.stdout, found.stderr


def test_subnets_are_picked_from_a_finished_run_for_any_table(smoke, tmp_path):
    laid_out = chip.prepared(smoke, tmp_path / "run")
    search_front.search_front(laid_out, *populated(laid_out))
    write_table(tmp_path / "board.csv", laid_out, laid_out.searched.ops)
    smoke.hardware.table = str(tmp_path / "board.csv")
    priced = chip.prepared(smoke, tmp_path / "run")
    rows = priced.with_costs(table.load(tmp_path / "run" / "lut" / "lut.npz"))
    fixed = laid_out.fixed_bytes()
    costs = ("size_bytes", "latency_ms")
    points = front.search(rows, fixed["stem"], fixed["head"], costs, priced.fixed_costs())
    limit_ms = float(np.median([point.latency_ms for point in points]))
    limit_bytes = int(np.median([point.size_bytes for point in points]))
    budgets = [f"--budget_ms={limit_ms}", f"--budget_bytes={limit_bytes}"]
    code, output, error = pick(
        "--workdir", tmp_path / "run", "--table", tmp_path / "board.csv", *budgets
    )
    assert code == 0, error
    best = front.best_under(points, {"latency_ms": limit_ms, "size_bytes": limit_bytes})
    header, *lines = output.splitlines()
    assert header.split() == ["NSR", "size", "kB", "latency_ms", "subnet"]
    assert lines[0].split()[-1] == best.subnet
    assert float(lines[0].split()[2]) == pytest.approx(best.latency_ms, rel=1e-3)
    assert len(lines) <= 5

    code, output, _ = pick("--workdir", tmp_path / "run", "--count=1")
    assert code == 0
    assert output.splitlines()[0].split() == ["NSR", "size", "kB", "subnet"]
    assert len(output.splitlines()) == 2


def test_what_cannot_be_picked_is_told_in_one_line(smoke, tmp_path):
    laid_out = chip.prepared(smoke, tmp_path)
    search_front.search_front(laid_out, *populated(laid_out))
    for argument, message in (
        ("--budget_ms=1", "--budget_ms: set --target or --table, which tell it"),
        ("--budget_bytes=9", "a budget of 9 bytes: the smallest subnet has "),
        ("--target=gpu", "hardware.target='gpu': must be "),
        ("--table=none.csv", "none.csv: cannot be read as a table of latencies"),
    ):
        code, _, error = pick("--workdir", tmp_path, argument)
        assert code == 2
        assert error.startswith(f"error: {message}")
        assert error.count("\n") == 1


def test_picking_imports_no_jax():
    script = "import runpy, sys; runpy.run_path('launch/tools/pick.py'); print(*sys.modules)"
    command = [sys.executable, "-c", script]
    names = subprocess.check_output(command, cwd=chip.ROOT, text=True).split()
    assert "numpy" in names
    assert not {"jax", "flax", "qnas_jax.nn"} & set(names)

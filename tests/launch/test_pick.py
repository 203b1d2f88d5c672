"""`qnas pick` as a user starts it."""

import subprocess
import sys

import numpy as np
import pytest

import chip
from qnas_jax.bwnas import search_front
from qnas_jax.bwnas.lut import table
from qnas_jax.search import front


@pytest.fixture
def smoke():
    return chip.smoke()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run without a target."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    chip.searched(chip.prepared(chip.smoke(), workdir))
    return workdir


def pick(*arguments):
    command = [sys.executable, "-m", "qnas_jax", "pick", *map(str, arguments)]
    found = subprocess.run(command, cwd=chip.ROOT, capture_output=True, text=True, check=False)
    return found.returncode, found.stdout, found.stderr


def test_subnets_are_picked_from_a_finished_run_for_any_table(smoke, tmp_path):
    laid_out = chip.prepared(smoke, tmp_path / "run")
    chip.searched(laid_out)
    chip.write_table(tmp_path / "board.csv", laid_out, laid_out.searched.ops)
    smoke.hardware.table = str(tmp_path / "board.csv")
    priced = chip.prepared(smoke, tmp_path / "run")
    deployed = priced.deployed
    rows = search_front.with_costs(table.load(tmp_path / "run" / "lut" / "lut.npz"), deployed)
    points = search_front.search(rows, deployed.fixed(), ("size_bytes", "latency_ms"))
    limit_ms = float(np.median([point.costs["latency_ms"] for point in points]))
    limit_bytes = int(np.median([point.costs["size_bytes"] for point in points]))
    budgets = (("latency_ms", limit_ms), ("size_bytes", limit_bytes))
    table_flag = ("--table", tmp_path / "board.csv")
    code, output, error = pick("--workdir", tmp_path / "run", *table_flag, f"--budgets={budgets}")
    assert code == 0, error
    best = front.best_under(points, dict(budgets))
    header, *lines = output.splitlines()
    assert header.split() == ["NSR", "size", "kB", "latency", "ms", "subnet"]
    assert lines[0].split()[-1] == best.subnet
    assert float(lines[0].split()[2]) == pytest.approx(best.costs["latency_ms"], rel=1e-3)
    assert len(lines) <= 5

    code, output, _ = pick("--workdir", tmp_path / "run", "--count=1")
    assert code == 0
    assert output.splitlines()[0].split() == ["NSR", "size", "kB", "subnet"]
    assert len(output.splitlines()) == 2


def test_what_a_run_finds_within_budgets_is_what_is_picked(smoke, tmp_path):
    """The same budgets in the same form, on the target of the run."""
    smoke.hardware.target = "bitfusion"
    smoke.search.costs = ("energy_mj", "size_bytes")
    laid_out = chip.prepared(smoke, tmp_path / "run")
    _, points = chip.searched(laid_out)
    limit_mj = float(np.median([point.costs["energy_mj"] for point in points]))
    smoke.search.budgets = (("energy_mj", limit_mj), ("size_bytes", 10**6))
    smoke.check()
    best = search_front.chosen(points, smoke.search, 1)[-1]
    code, output, error = pick("--workdir", tmp_path / "run", f"--budgets={smoke.search.budgets}")
    assert code == 0, error
    assert output.splitlines()[1].split()[-1] == best.subnet


def test_what_another_target_does_not_run_is_not_picked(smoke, tmp_path):
    smoke.space.w_bits, smoke.space.a_bits = (8, 4), (8, 4)
    laid_out = chip.prepared(smoke, tmp_path / "run")
    chip.searched(laid_out)
    chip.write_table(tmp_path / "board.csv", laid_out, laid_out.searched.ops)  # w8a8 alone
    _, output, _ = pick("--workdir", tmp_path / "run")
    assert "w4a4" in output
    code, output, error = pick("--workdir", tmp_path / "run", "--table", tmp_path / "board.csv")
    assert code == 0, error
    assert "w8a8" in output
    assert "w4a4" not in output


PAIRS = "must be pairs, like (('size_bytes', 1.5),)"
NAMES = "('size_bytes', 'latency_ms', 'energy_mj')"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--budgets=(('latency_ms', 1),)", "search.costs=('latency_ms',): target 'none' does not"),
        ("--budgets=(('size_bytes', 9),)", "a budget of 9 bytes: the smallest subnet has "),
        ("--budgets=('size_bytes', 9)", f"search.budgets=('size_bytes', 9): {PAIRS}"),
        (
            "--budgets=(('latency', 1),)",
            f"search.budgets=(('latency', 1),): 'latency' must be among {NAMES}",
        ),
        ("--epsilon=2", "search.epsilon=2.0: must lie in [0.0, 1.0]"),
        ("--target=gpu", "hardware.target='gpu': must be "),
        (
            "--target=per_tensor",
            "--target='per_tensor': the table is of networks with other",
        ),
        ("--table=none.csv", "none.csv: no such file"),
    ],
)
def test_what_cannot_be_picked_is_refused_in_one_line(finished, argument, message):
    code, _, error = pick("--workdir", finished, argument)
    assert code == 2
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize("content", [None, "{}", '{"places": 3, "fixed_convs": {}}'])
def test_a_run_without_a_finished_search_is_refused_in_one_line(smoke, tmp_path, content):
    chip.searched(chip.prepared(smoke, tmp_path))
    file = tmp_path / "search" / "deployed.json"
    file.unlink()
    if content:
        file.write_text(content)
    code, _, error = pick("--workdir", tmp_path)
    assert code == 2
    assert error.startswith(f"error: {file}: ")
    assert error.count("\n") == 1


def test_picking_imports_no_jax():
    script = "import sys, qnas_jax.__main__, qnas_jax.programs.pick; print(*sys.modules)"
    command = [sys.executable, "-c", script]
    names = subprocess.check_output(command, cwd=chip.ROOT, text=True).split()
    assert "numpy" in names
    assert not {"jax", "flax", "qnas_jax.nn"} & set(names)

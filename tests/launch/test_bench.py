"""The benchmark's program, as a user starts it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def figures(folder, *arguments):
    """What a subject writes to its JSON file."""
    file = folder / "figures.json"
    command = [sys.executable, "launch/bench/main.py", *arguments, "--json", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())


def test_a_training_step_is_measured(tmp_path):
    found = figures(tmp_path, "distill", "--blocks=6", "--batch=1", "--no-torch")
    assert [block["block"] for block in found["blocks"]] == [6]
    assert found["pictures_ops"] == 6
    assert found["images_per_s_op"] == pytest.approx(6 / found["step_s"])


@pytest.mark.bench
def test_a_training_step_is_torchs_and_is_compared_with_it(tmp_path):
    found = figures(tmp_path, "distill", "--blocks=6", "--batch=2")
    assert found["ratio_torch"] == pytest.approx(found["torch_step_s"] / found["step_s"])
    assert found["max_rel_diff_loss"] < 1e-5
    assert found["median_rel_diff_gradient"] < 1e-2


@pytest.mark.bench
def test_the_table_is_filled_by_all_four(tmp_path):
    found = figures(tmp_path, "lut", "--blocks=6", "--sample=2")
    assert found["max_rel_diff"] < 1e-2
    assert {"ratio_jax_loop", "ratio_torch_loop", "ratio_torch_tree"} <= found.keys()

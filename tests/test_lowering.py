"""Every program of every stage lowers for GPUs and TPUs, in types that they have."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import lowered

ROOT = pathlib.Path(__file__).parents[1]

# The stages that call programs, by the run of `lowered.py`.
SEARCH = ("stages.train.train_teacher", "bwnas.train_supernet.train_supernet",
          "bwnas.populate_table.populate_table")  # fmt: skip
STAGES = {
    "search": (*SEARCH, "stages.qat.train"),
    "whole": (*SEARCH, "bwnas.retraining.retrain", "bwnas.retraining.retrain_teacher",
              "stages.export.export"),
    "audit": (*SEARCH, "ranking.trained.train", "ranking.scores.everything"),
    "haq": ("haq.experiment.begin", "haq.experiment.tested", "haq.rivals.once",
            "stages.policies.train_policy", "stages.export.export"),
    "hqnas": ("hqnas.experiment.begin", "hqnas.searching.warmed_up", "hqnas.searching.found",
              "hqnas.experiment.standalone", "stages.policies.train_policy"),
    "oneshot": ("oneshot.experiment.begin", "oneshot.training.train", "oneshot.searching.search",
                "stages.train.retrain", "stages.export.export"),
}  # fmt: skip


def lower(run, folder, form="grouped"):
    """What `lowered.py` found; prints how many programs each stage has."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, str(ROOT / "tests" / "lowered.py"), run, str(folder), form]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for stage, names in found["programs"].items():
        print(f"{run}: {stage}: {sum(names.values())} programs lowered")
    return found


def check(run, found, form="grouped"):
    assert not found["wrong"]
    assert set(STAGES[run]) <= set(found["programs"]), "a stage has no program"
    assert bool(found["grouped"]) == (form == "grouped")


@pytest.mark.slow
def test_the_search_and_its_table_in_both_arithmetics_lower(tmp_path):
    found = lower("search", tmp_path)
    check("search", found)
    (table,) = (found["programs"][stage] for stage in STAGES["search"] if "table" in stage)
    for kind in ("calibrate_layer", "run_layer", "nsr"):
        for compute in ("int8", "float"):
            assert f"bwnas.lut.evaluate.{kind}_{compute}" in table


@pytest.mark.slow
def test_the_search_lowers_with_depthwise_convolutions_as_shifted_products(tmp_path):
    check("search", lower("search", tmp_path, "shifted"), "shifted")


@pytest.mark.slow
@pytest.mark.parametrize("run", [run for run in STAGES if run != "search"])
def test_whole_runs_lower(run, tmp_path):
    check(run, lower(run, tmp_path))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("%0 = stablehlo.add %a, %b : tensor<2x3xf64>", ["has the type f64"]),
        ("%0 = stablehlo.add %a, %b : tensor<i64>", ["has the type i64"]),
        ("(tensor<4xcomplex<f32>>) -> tensor<4xf32>", ["has the type complex<f32"]),
        ("%0 = stablehlo.custom_call @qnas_jax_pointwise(%a) : tensor<1xui8>",
         ["calls qnas_jax_pointwise"]),
        ("%0 = stablehlo.custom_call @cu_threefry2x32_ffi(%a) : tensor<1xui32>", []),
        ("replica_groups = dense<0> : tensor<1x1xi64>}> : (tensor<f32>) -> tensor<f32>", []),
        ("%0 = stablehlo.convert %a : (tensor<2xbf16>) -> tensor<2xf32>", []),
    ],
)  # fmt: skip
def test_what_accelerators_cannot_run_is_found(line, found):
    assert lowered.faults(line) == found

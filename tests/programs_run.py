"""Programs as a user starts them, and a finished run of the smoke config."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from qnas_jax.train import loop

ROOT = pathlib.Path(__file__).parents[1]
SMOKE = "--config=configs/smoke.py"


def start(*arguments, cache, program="run", **variables):
    """Starts a program; `variables` are those of its environment."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), **variables}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # set by JAX in this process; shells have none
    return subprocess.Popen(
        [sys.executable, "launch/main.py", program, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*arguments, cache, program="run", **variables):
    process = start(*arguments, cache=cache, program=program, **variables)
    output, _ = process.communicate(timeout=900)
    return process.returncode, output


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    workdir = tmp_path_factory.mktemp("runs") / "smoke"
    code, output = run(SMOKE, f"--workdir={workdir}", cache=cache)
    assert code == 0, output
    return workdir, output


def last_metrics(workdir):
    """Each logged step's values but for times; a step that was repeated counts once."""
    lines = list(map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()))
    for line in lines:
        line.pop(loop.WAITED)
    return {(line["stage"], line["step"]): line for line in lines}

"""The supernet's steps are compiled before they are needed, once."""

import dataclasses
import json
import logging
import re
import threading

import jax
import numpy as np
import pytest

import chip
from qnas_jax.bwnas import distill, train_supernet
from qnas_jax.errors import InputError
from qnas_jax.nn import init, weights
from qnas_jax.run.stage import Stage
from qnas_jax.stages import fit

COMPILED = "XLA compilation of jit(steps)"


@pytest.fixture
def begun(tmp_path):
    """A run before the supernet, with a teacher of random weights."""
    given = chip.smoke()
    # Of a size that no other test has, as programs are kept.
    given.supernet = dataclasses.replace(given.supernet, steps=2, batch=3, parts=1)
    given.run.save_every = 2
    config, problem, _, workdir = chip.prepared(given, tmp_path)
    shape = (1, *config.train.crop, 3)
    fresh = init.initialize(problem.teacher, jax.random.key(0), shape)
    teacher = Stage(workdir / "teacher", {})
    teacher.begin()
    teacher.finish()
    return workdir, config, problem, teacher, {kind: fresh[kind] for kind in weights.KINDS}


def test_steps_are_compiled_once_and_give_the_same_weights(begun, caplog, monkeypatch):
    workdir, config, problem, teacher, variables = begun
    how = fit.training(config)
    monkeypatch.setattr(train_supernet, "_validate", lambda *_: {})

    def trained(folder, ahead=None):
        """The weights, and how often this thread compiled the steps."""
        given = folder, problem, how, config.space, config.supernet, teacher, variables, ahead
        caplog.clear()
        with caplog.at_level(logging.WARNING), jax.log_compiles():
            params = train_supernet.train_supernet(*given)[1]
        return params, sum(COMPILED in record.getMessage() for record in caplog.records)

    ahead = train_supernet.compile_ahead(workdir, problem, how, config.supernet)
    assert ahead is not None
    found, compilations = trained(workdir, ahead)
    expected, compilations_without = trained(workdir / "again")
    assert (compilations, compilations_without) == (0, 1)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert train_supernet.compile_ahead(workdir, problem, how, config.supernet) is None


def test_an_error_of_the_compilation_is_raised_where_the_steps_are_needed(begun, monkeypatch):
    workdir, config, problem, teacher, variables = begun
    how = fit.training(config)

    def broken(recipe):
        def step(*_):
            assert threading.current_thread() is not threading.main_thread(), "was not waited for"
            raise FloatingPointError("broken")

        return step

    monkeypatch.setattr(distill, "train_step", broken)
    ahead = train_supernet.compile_ahead(workdir, problem, how, config.supernet)
    with pytest.raises(FloatingPointError, match=r"^broken"):
        train_supernet.train_supernet(
            workdir, problem, how, config.space, config.supernet, teacher, variables, ahead
        )


@pytest.mark.parametrize("adapters", [True, False])
def test_nothing_is_compiled_that_would_not_be_used(begun, monkeypatch, adapters):
    workdir, config, problem, *_ = begun
    if adapters:
        monkeypatch.setattr(train_supernet.adapters, "are_needed", lambda _: True)
    else:
        team = train_supernet.parallel.Team(1, 0, (*jax.devices(), *jax.devices()), True)
        monkeypatch.setattr(train_supernet.parallel, "team", lambda: team)
    monkeypatch.setattr(train_supernet, "_recipe", lambda *_: pytest.fail("began to compile"))
    how = fit.training(config)
    assert train_supernet.compile_ahead(workdir, problem, how, config.supernet) is None


@pytest.mark.parametrize(
    "costs",
    [
        {"blocks": [1, 2], "teacher": [1, 2]},
        {"blocks": [1, 2, 3], "teacher": [1, 2]},
        {"blocks": [1, float("nan"), 3], "teacher": [1, 2, 3]},
        {"blocks": [1, 2, 3], "teacher": [1, -2, 3]},
        {"blocks": None, "teacher": "a"},
    ],
)
def test_damaged_seconds_of_the_blocks_are_refused(tmp_path, costs):
    file = tmp_path / "costs.json"
    file.write_text(json.dumps(costs))
    with pytest.raises(InputError, match=re.escape(f"{file}: cannot be read")):
        train_supernet._read_costs(file, (2, 3))

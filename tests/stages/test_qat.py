"""Quantization-aware training of a run's teacher, whole, stopped and resumed, and read again."""

import dataclasses

import jax
import numpy as np
import pytest

import chip
from qnas_jax import space
from qnas_jax.bwnas import pipeline
from qnas_jax.errors import InputError
from qnas_jax.export import fold, simulate
from qnas_jax.run.preempt import Stopped
from qnas_jax.run.recipes import Retrain
from qnas_jax.run.stage import read_json
from qnas_jax.stages import evaluation, fit, policies, qat

HOW = Retrain(qat_steps=4, qat_norm_steps=2, distill=(("logits", 1.0), ("features", 0.5)))


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run whose teacher is trained, for few steps, and the same in another folder."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, pipeline.begin(chip.smoke(), workdir)


@pytest.fixture(scope="module")
def aware(begun):
    workdir, (config, problem, _, teacher, _) = begun
    return qat.train(workdir, problem, fit.training(config), HOW, teacher)


@pytest.mark.slow
def test_what_is_read_again_is_what_was_evaluated(begun, aware):
    _, (config, problem, _, _, _) = begun
    how, shape = fit.training(config), problem.val[0][0].shape
    variables, quant = evaluation.load(problem, how, aware)
    found = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(quant)}
    assert found == {"w_bits", "w_scale", "a_bits", "range"}
    images = np.stack([problem.val[i][0] for i in range(2)])
    graph = fold.fold(aware.model, variables, quant, shape, resize=True)
    classes = np.asarray(simulate.simulator(graph)(images))
    with np.load(aware.stage.folder / "samples.npz") as kept:
        np.testing.assert_array_equal(classes, kept["quantized"][:2])
    measured = read_json(aware.stage.folder / "metrics.json")
    assert policies.accuracy(problem, how, aware) == measured["miou_quantized"]


@pytest.mark.slow
def test_a_stopped_training_ends_with_the_numbers_of_a_whole_one(
    begun, aware, monkeypatch, tmp_path
):
    _, (config, problem, _, teacher, _) = begun
    how, whole = fit.training(config), policies.fit

    def stopped(where, planned, *rest):
        whole(where, planned._replace(total=2), *rest)
        raise Stopped("stopped")

    monkeypatch.setattr(policies, "fit", stopped)
    with pytest.raises(Stopped):
        qat.train(tmp_path, problem, how, HOW, teacher)
    monkeypatch.setattr(policies, "fit", whole)
    again = qat.train(tmp_path, problem, how, HOW, teacher)
    assert again.stage.hash == aware.stage.hash
    for file in ("metrics.json", "quant.npz"):
        assert (again.stage.folder / file).read_bytes() == (aware.stage.folder / file).read_bytes()
    pair = (evaluation.load(problem, how, one) for one in (again, aware))
    for one, other in zip(*map(jax.tree.leaves, pair), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_another_recipe_is_refused_and_bitwidths_have_folders_of_their_own(begun, aware):
    workdir, (config, problem, _, teacher, _) = begun
    how = fit.training(config)
    with pytest.raises(InputError, match=r"qat_lr: 0\.01, now 0\.02"):
        qat.train(workdir, problem, how, dataclasses.replace(HOW, qat_lr=0.02), teacher)
    same = qat.finished(workdir, HOW, [teacher])
    assert same[0].stage.hash == aware.stage.hash and same[0].learned
    assert qat.finished(workdir, Retrain(), [teacher]) == [teacher]
    (aware.stage.folder / "quant.npz").rename(workdir / "kept")
    with pytest.raises(InputError, match=r"quant\.npz: is missing"):
        evaluation.load(problem, how, aware)
    (workdir / "kept").rename(aware.stage.folder / "quant.npz")
    teacher_subnet = space.format_subnet(teacher.subnet)
    few = qat.train_with_bits(workdir, problem, how, HOW, teacher, (4, 6))
    assert few.stage.folder == workdir / "qat" / "teacher-w4a6"
    held = read_json(few.stage.folder / "metrics.json")
    assert held["subnet"] == teacher_subnet.replace("w8a8", "w4a6")
    assert held["size_bytes"] < read_json(aware.stage.folder / "metrics.json")["size_bytes"]
    assert qat.train_with_bits(workdir, problem, how, HOW, teacher, (4, 6)).stage.done

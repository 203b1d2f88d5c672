"""A teacher from a file of PyTorch: `teacher.checkpoint` in a run. Without torch."""

import shutil

import jax
import numpy as np
import pytest

import chip
from in_files import refusal
from qnas_jax.nn import torch_weights
from qnas_jax.run.stage import read_json
from qnas_jax.stages import train as train_stage
from qnas_jax.train import checkpoint

MMSEG = torch_weights.LAYOUTS[-1]


@pytest.fixture
def smoke():
    """The smoke config as MMSegmentation's network computes."""
    config = chip.smoke()
    config.network.dilate, config.network.padding = "first", torch_weights.MEAN
    return config


def written(file, config, tmp_path, seed=0):
    """Random weights for the teacher of a config, in a file of safetensors."""
    import safetensors.numpy

    laid_out = chip.prepared(config, tmp_path / "other")
    fresh = jax.eval_shape(lambda: train_stage._fresh_teacher(laid_out.problem, laid_out.how))
    rng, tensors = np.random.default_rng(seed), {}
    for unit in MMSEG.units(laid_out.problem.teacher):
        for (collection, place), name in torch_weights._sources(unit).items():
            leaf = fresh[collection]
            for part in place.split("/"):
                leaf = leaf[part]
            shape = leaf.shape
            if len(shape) == 4:
                shape = tuple(shape[i] for i in (3, 2, 0, 1))
            tensors[name] = rng.uniform(0.1, 1, shape).astype(np.float32)
    file.write_bytes(safetensors.numpy.save(tensors))
    return tensors


def teacher_of(config, tmp_path):
    return chip.teacher_stage(chip.prepared(config, tmp_path / "run"))


@pytest.fixture
def file(smoke, tmp_path):
    written(tmp_path / "teacher.safetensors", smoke, tmp_path)
    return tmp_path / "teacher.safetensors"


@pytest.mark.slow
def test_a_run_takes_the_weights_and_knows_them_by_what_they_hold(smoke, tmp_path, file):
    smoke.teacher.checkpoint = str(file)
    laid_out = chip.prepared(smoke, tmp_path / "run")
    how = (laid_out.workdir, laid_out.problem, laid_out.how, smoke.network, smoke.teacher)
    trained, variables = train_stage.train_teacher(*how)
    given = train_stage._given_teacher(*how[:3], smoke.teacher)
    assert checkpoint.content(given.variables()) == checkpoint.content(variables)
    mark = read_json(trained.stage.folder / "made_from.json")["made_from"]
    assert mark["teacher"]["checkpoint"] == checkpoint.content(variables)
    assert read_json(trained.stage.folder / "metrics.json")["size_bytes"] > 0
    shutil.copy(file, tmp_path / "copy.safetensors")
    smoke.teacher.checkpoint = str(tmp_path / "copy.safetensors")
    assert teacher_of(smoke, tmp_path).done
    written(file, smoke, tmp_path, seed=1)
    smoke.teacher.checkpoint = str(file)
    assert "(teacher.checkpoint: " in refusal(lambda: teacher_of(smoke, tmp_path))
    file.unlink()
    message = refusal(lambda: teacher_of(smoke, tmp_path))
    own = trained.stage.folder / "checkpoint"
    assert f"no such file; this run has a copy of it: set it to {own}" in message
    smoke.teacher.checkpoint = str(own)
    assert teacher_of(smoke, tmp_path).done


@pytest.mark.slow
def test_a_given_teacher_may_be_trained_on(smoke, tmp_path, file):
    smoke.teacher.checkpoint, smoke.teacher.finetune, smoke.train.lr = str(file), True, 1e-9
    laid_out = chip.prepared(smoke, tmp_path / "run")
    how = (laid_out.workdir, laid_out.problem, laid_out.how, smoke.network, smoke.teacher)
    trained, variables = train_stage.train_teacher(*how)
    given = train_stage._given_teacher(*how[:3], smoke.teacher)
    # Steps of nearly no length; only the statistics move.
    for ours, theirs in zip(
        *map(jax.tree.leaves, (variables["params"], given.params)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert checkpoint.content(variables) != checkpoint.content(given.variables())
    done = trained.stage.hash
    file.rename(tmp_path / "elsewhere")
    assert teacher_of(smoke, tmp_path).hash == done, "a finished run does not need it"
    (tmp_path / "elsewhere").rename(file)
    smoke.teacher.finetune = False
    assert "(teacher.finetune: " in refusal(lambda: teacher_of(smoke, tmp_path))


def test_what_cannot_be_used_is_refused_before_anything_begins(smoke, tmp_path, file):
    smoke.teacher.checkpoint = str(tmp_path / "none.pth")
    assert refusal(lambda: teacher_of(smoke, tmp_path)) == (
        f"teacher.checkpoint: {tmp_path}/none.pth: no such file"
    )
    smoke.teacher.checkpoint = str(shutil.copy(file, tmp_path / "x.bin"))
    message = refusal(lambda: teacher_of(smoke, tmp_path))
    assert message.endswith("that ends in .safetensors or .pth or .pt")
    smoke.teacher.checkpoint, smoke.network.head_channels = str(file), 24
    message = refusal(lambda: teacher_of(smoke, tmp_path))
    assert message.startswith(f"teacher.checkpoint: {file}: decode_head")
    assert "network.head_channels" in message
    smoke.network.head_channels, smoke.network.dilate = 16, "all"
    assert "set --config.network.dilate=first" in refusal(lambda: teacher_of(smoke, tmp_path))
    assert not (tmp_path / "run" / "teacher").exists()

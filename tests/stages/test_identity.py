"""What makes images and teachers the same, wherever they lie."""

import os
import shutil

import jax
import pytest

import chip
import in_files
from in_files import refusal
from qnas_jax.nn import init
from qnas_jax.run import artefacts
from qnas_jax.run.stage import read_json
from qnas_jax.stages import experiment
from qnas_jax.stages import train as train_stage
from qnas_jax.train import checkpoint, supervised


@pytest.fixture
def smoke():
    return chip.smoke()


@pytest.fixture
def on_disk(smoke, tmp_path):
    """The smoke config with images that lie in files."""
    return in_files.in_files(smoke, tmp_path / "cs")


def teacher_of(config, tmp_path):
    return chip.teacher_stage(chip.prepared(config, tmp_path / "run"))


def begun_teacher_of(config, tmp_path):
    """A teacher that something came of."""
    stage = teacher_of(config, tmp_path)
    stage.begin()
    artefacts.write(stage.folder / "something", "x")
    return stage


def test_the_same_images_elsewhere_are_the_same_and_others_are_not(on_disk, tmp_path, monkeypatch):
    stage = begun_teacher_of(on_disk, tmp_path)
    shutil.copytree(on_disk.data.root, tmp_path / "scratch" / "cs")
    monkeypatch.chdir(tmp_path)
    root = on_disk.data.root
    for same in (root + "/", os.path.relpath(root), str(tmp_path / "scratch" / "cs")):
        on_disk.data.root = same
        assert teacher_of(on_disk, tmp_path).hash == stage.hash
    in_files.write(same, "val", seed=1)
    message = refusal(lambda: teacher_of(on_disk, tmp_path))
    now = experiment.data_mark(chip.prepared(on_disk, tmp_path).problem, on_disk.data)["content"]
    before = read_json(stage.folder / "made_from.json")["made_from"]["data"]["content"]
    assert f"(data.content: {before}, now {now}); take another --workdir, or delete" in message
    assert f"a hash of the images at data.root={same} (names, sizes, some bytes;" in message


def test_a_run_of_an_older_version_is_refused_with_the_reason(on_disk, tmp_path):
    stage = begun_teacher_of(on_disk, tmp_path)
    file = stage.folder / "made_from.json"
    mark = read_json(file)
    data = {**mark["made_from"]["data"], "root": on_disk.data.root, "seed": 0}
    del data["content"]
    mark = {**mark, "hash": "older", "made_from": {**mark["made_from"], "data": data}}
    artefacts.write_json(file, mark)
    message = refusal(lambda: teacher_of(on_disk, tmp_path))
    assert "(data.content: None, now " in message
    assert "None: an older version, which took the path" in message


def test_a_run_from_before_the_settings_of_the_network_is_continued(smoke, tmp_path):
    stage = begun_teacher_of(smoke, tmp_path)
    file = stage.folder / "made_from.json"
    mark = read_json(file)
    for name in ("dilate", "padding"):
        del mark["made_from"]["network"][name]
    artefacts.write_json(file, {**mark, "hash": "older"})
    assert teacher_of(smoke, tmp_path).hash == "older"
    smoke.network.dilate = "first"
    assert "(network.dilate: all, now first)" in refusal(lambda: teacher_of(smoke, tmp_path))


def test_rendered_images_are_what_their_settings_say(smoke, tmp_path):
    before = teacher_of(smoke, tmp_path).hash
    smoke.data.root, smoke.data.threads = "anything", 7
    assert teacher_of(smoke, tmp_path).hash == before
    smoke.data.seed = 1
    assert teacher_of(smoke, tmp_path).hash != before


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """Of a teacher."""
    laid_out = chip.prepared(chip.smoke(), tmp_path_factory.mktemp("state"))
    fresh = init.initialize(laid_out.problem.teacher, jax.random.key(5), (1, 32, 64, 3))
    how = laid_out.config.train
    return supervised.fresh_state(fresh, train_stage.optimizer_of(how, how.lr))


@pytest.fixture
def saved(state, tmp_path):
    """A teacher's checkpoint somewhere, and its state."""
    checkpoint.adopt(tmp_path / "other" / "checkpoint", 6, state)
    return tmp_path / "other" / "checkpoint", state


def test_a_teacher_is_what_it_holds(smoke, tmp_path, saved):
    folder, state = saved
    smoke.teacher.checkpoint = str(folder)
    stage = begun_teacher_of(smoke, tmp_path)
    shutil.copytree(folder, tmp_path / "copy")
    checkpoint.adopt(tmp_path / "again", 6, state)
    for same in (f"{folder}/", str(tmp_path / "copy"), str(tmp_path / "again")):
        smoke.teacher.checkpoint = same
        assert teacher_of(smoke, tmp_path).hash == stage.hash
    other = jax.tree.map(lambda leaf: leaf + 1, state)
    checkpoint.adopt(tmp_path / "differs", 6, other)
    smoke.teacher.checkpoint = str(tmp_path / "differs")
    message = refusal(lambda: teacher_of(smoke, tmp_path))
    before, now = (checkpoint.content(s.variables()) for s in (state, other))
    assert f"(teacher.checkpoint: {before}, now {now})" in message


def test_a_teacher_that_is_gone_is_found_in_the_run_that_took_it(smoke, tmp_path, saved):
    folder, state = saved
    smoke.teacher.checkpoint = str(folder)
    stage = teacher_of(smoke, tmp_path)
    checkpoint.adopt(stage.folder / "checkpoint", smoke.train.steps, state)
    stage.finish()
    shutil.rmtree(folder)
    own = stage.folder / "checkpoint"
    expected = f"no such folder; this run has a copy of it: set it to {own}"
    assert expected in refusal(lambda: teacher_of(smoke, tmp_path))
    smoke.teacher.checkpoint = str(own)
    assert teacher_of(smoke, tmp_path).done


@pytest.mark.slow
def test_a_finetuned_teacher_needs_its_source_no_longer(smoke, tmp_path, saved):
    folder, state = saved
    smoke.teacher.checkpoint, smoke.teacher.finetune = str(folder), True
    stage = begun_teacher_of(smoke, tmp_path)
    checkpoint.adopt(stage.folder / "checkpoint", smoke.train.steps, state)
    stage.finish()
    shutil.rmtree(folder)
    found = teacher_of(smoke, tmp_path)
    assert found.done and found.hash == stage.hash


def test_a_teacher_of_another_shape_is_refused_by_name(smoke, tmp_path, saved):
    smoke.teacher.checkpoint, smoke.network.head_channels = str(saved[0]), 24
    expected = f"teacher.checkpoint: {saved[0]}: has ("
    assert refusal(lambda: teacher_of(smoke, tmp_path)).startswith(expected)


def test_a_teacher_of_another_optimizer_is_taken(smoke, tmp_path, saved):
    folder, state = saved
    smoke.teacher.checkpoint, smoke.train.optimizer, smoke.train.clip = str(folder), "adamw", 1.0
    laid_out = chip.prepared(smoke, tmp_path / "run")
    given = train_stage._given_teacher(
        laid_out.workdir, laid_out.problem, laid_out.how, smoke.teacher
    )
    assert checkpoint.content(given.variables()) == checkpoint.content(state.variables())


def test_what_systems_leave_in_a_checkpoint_is_skipped(smoke, tmp_path, saved):
    folder, state = saved
    for name in ("._6", ".DS_Store", "Thumbs.db", "6/._default", "6/default/.DS_Store"):
        (folder / name).write_bytes(b"\x00\x05\x16\x07")
    for name in ("@eaDir", "lost+found"):
        (folder / name).mkdir()
    smoke.teacher.checkpoint = str(folder)
    laid_out = chip.prepared(smoke, tmp_path)
    how = (tmp_path, laid_out.problem, laid_out.how)
    found = train_stage._given_teacher(*how, smoke.teacher)
    assert checkpoint.content(found) == checkpoint.content(state)

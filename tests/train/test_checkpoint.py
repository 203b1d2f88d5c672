"""Tests checkpoints of training states and small pytrees in one file."""

import concurrent.futures
import errno
import os
import pathlib

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest

import toy
from qnas_jax.errors import InputError
from qnas_jax.run.stage import Stage
from qnas_jax.train import checkpoint

TREE = {"a": {"b": jnp.arange(3), "c": jnp.float32(0.1)}, "d": [jnp.zeros((2, 1), jnp.int8)]}


def test_a_pytree_survives_a_round_trip(tmp_path):
    file = tmp_path / "tree.npz"
    checkpoint.write_arrays(file, TREE)
    found = checkpoint.read_arrays(file, TREE)
    assert found["a"]["c"] == np.float32(0.1)
    np.testing.assert_array_equal(found["a"]["b"], [0, 1, 2])
    assert found["d"][0].dtype == np.int8
    assert [path.name for path in tmp_path.iterdir()] == ["tree.npz"]


def test_a_pytree_of_another_shape_is_refused(tmp_path):
    file = tmp_path / "tree.npz"
    checkpoint.write_arrays(file, TREE)
    other = {**TREE, "d": [jnp.zeros((2, 2), jnp.int8)]}
    with pytest.raises(InputError, match=r"has \(2, 1\) at d/0, the network has \(2, 2\)"):
        checkpoint.read_arrays(file, other)


def test_a_damaged_file_is_reported(tmp_path):
    file = tmp_path / "tree.npz"
    checkpoint.write_arrays(file, TREE)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"tree\.npz: cannot be read .*; delete it"):
        checkpoint.read_arrays(file, TREE)


def test_a_checkpoint_of_another_shape_is_refused_in_one_line(tmp_path):
    toy.fit(tmp_path, 2)
    other = {"weights": jnp.ones(5), "velocity": jnp.zeros(3)}
    with pytest.raises(InputError, match=r"has \(3,\) at weights, the network has \(5,\)"):
        checkpoint.load_parts(tmp_path / "checkpoint", other)
    more = {**toy.FRESH, "bias": jnp.zeros(3)}
    with pytest.raises(InputError, match=r"has nothing at bias"):
        checkpoint.load_parts(tmp_path / "checkpoint", more)


def test_parts_are_read_where_they_were_not_saved(tmp_path):
    """As a network that was trained on a GPU, whose files are written on a CPU."""
    toy.fit(tmp_path, 2)
    expected = checkpoint.load_parts(tmp_path / "checkpoint", toy.FRESH)["weights"]
    (place,) = (tmp_path / "checkpoint" / "2").rglob("_sharding")
    text = place.read_text()
    assert "cpu:0" in text
    place.write_text(text.replace("cpu:0", "cuda:0"))
    found = checkpoint.load_parts(tmp_path / "checkpoint", {"weights": toy.FRESH["weights"]})
    np.testing.assert_array_equal(found["weights"], expected)


def test_a_damaged_checkpoint_is_reported_in_one_line(tmp_path):
    toy.fit(tmp_path, 2)
    for file in (tmp_path / "checkpoint" / "2").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(
        InputError, match=r"checkpoint/2: cannot be read \(.*\); delete it"
    ) as error:
        checkpoint.load_parts(tmp_path / "checkpoint", toy.FRESH)
    assert "\n" not in str(error.value)


def test_a_damaged_checkpoint_of_a_finished_stage_is_not_to_be_deleted_alone(tmp_path):
    toy.fit(tmp_path, 2)
    Stage(tmp_path, {}).finish()
    for file in (tmp_path / "checkpoint" / "2").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(InputError) as error:
        checkpoint.load_parts(tmp_path / "checkpoint", toy.FRESH)
    assert str(error.value).startswith(f"{tmp_path / 'checkpoint' / '2'}: cannot be read (")
    assert str(error.value).endswith(
        f"); put a copy of it back, or delete {tmp_path} and all that was made from it"
    )


STALE = os.strerror(errno.ESTALE)


@pytest.mark.parametrize(
    ("error", "file"),
    [
        (OSError(errno.ESTALE, STALE), "checkpoint/2"),
        (OSError(errno.ESTALE, STALE, "/runs/a/_METADATA"), "/runs/a/_METADATA"),
        (ValueError(f'ABORTED: Error reading "a/b": "/runs/a/d/5d62": {STALE} [x]'), "/a/d/5d62"),
    ],
    ids=["bare", "named", "words"],
)
def test_a_checkpoint_that_the_system_does_not_give_is_not_to_be_deleted(
    tmp_path, monkeypatch, error, file
):
    toy.fit(tmp_path, 2)

    def failing(*_, **__):
        raise error

    monkeypatch.setattr(orbax.checkpoint.CheckpointManager, "restore", failing)
    with pytest.raises(InputError) as told:
        checkpoint.load_parts(tmp_path / "checkpoint", toy.FRESH)
    assert str(told.value).endswith(f"{file}: cannot be read ({STALE}); try again")


def test_what_orbax_keeps_to_itself_is_found_by_reading(tmp_path, monkeypatch):
    toy.fit(tmp_path, 2)

    def stale(_):
        raise OSError(errno.ESTALE, STALE)

    monkeypatch.setattr(orbax.checkpoint.CheckpointManager, "item_metadata", lambda *_: None)
    with pytest.raises(InputError, match=r"checkpoint/2: cannot be read \(its metadata"):
        checkpoint.load_parts(tmp_path / "checkpoint", toy.FRESH)
    monkeypatch.setattr(pathlib.Path, "read_bytes", stale)
    with pytest.raises(InputError, match=rf"checkpoint/2/.*: cannot be read \({STALE}\); try ag"):
        checkpoint.load_parts(tmp_path / "checkpoint", toy.FRESH)


def test_a_quota_that_is_reached_names_the_folder(tmp_path, monkeypatch):
    quota = os.strerror(errno.EDQUOT)

    def failing(*_):
        raise ValueError(f"RESOURCE_EXHAUSTED: Failed to write: {quota} [os_error_code='122']")

    monkeypatch.setattr(orbax.checkpoint.CheckpointManager, "wait_until_finished", failing)
    with pytest.raises(OSError) as error:
        toy.fit(tmp_path, 2)
    assert error.value.errno == errno.EDQUOT
    assert error.value.filename == str(tmp_path / "checkpoint")


def test_a_missing_or_empty_checkpoint_folder_is_reported(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        checkpoint.load_parts(tmp_path / "nowhere", toy.FRESH)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: contains no checkpoint"):
        checkpoint.load_parts(tmp_path / "empty", toy.FRESH)


def test_an_adopted_state_counts_as_trained(tmp_path):
    state = {"weights": jnp.arange(3.0), "velocity": jnp.ones(3)}
    checkpoint.adopt(tmp_path / "checkpoint", 4, state)
    np.testing.assert_array_equal(toy.fit(tmp_path, 4)["weights"], state["weights"])


def test_threads_save_at_the_same_time(tmp_path):
    def train(name):
        with checkpoint.opened(tmp_path / name) as manager:
            for step in range(1, 11):
                checkpoint.save(manager, step, {"a": jnp.full(1000, step)})
            checkpoint.wait(manager)
            return int(checkpoint.restore(manager, {"a": jnp.zeros(1000, int)})[1]["a"][0])

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        begun = [pool.submit(train, name) for name in ("a", "b")]
        assert [one.result(timeout=120) for one in begun] == [10, 10]

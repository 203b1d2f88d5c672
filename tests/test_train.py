import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax import checkpoint, train
from qnas_jax.data.batching import Batch
from qnas_jax.errors import InputError
from qnas_jax.runlog import Metrics


@jax.jit
def _step(state, images, labels, number):
    """Noise from the step's number, data from the batch: nothing else may matter."""
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(7), number), (3,))
    velocity = 0.9 * state["velocity"] + images.mean() + noise
    weights = state["weights"] - 0.1 * velocity
    return {"weights": weights, "velocity": velocity}, {"loss": jnp.sum(weights**2)}


def _batch(step):
    rng = np.random.default_rng(step)
    images = rng.integers(0, 255, (2, 4, 4, 3)).astype(np.uint8)
    return Batch(images, np.zeros((2, 4, 4), np.uint8))


FRESH = {"weights": jnp.ones(3), "velocity": jnp.zeros(3)}


def _fit(folder, steps, step=_step, batch=_batch):
    folder.mkdir(parents=True, exist_ok=True)
    with Metrics(folder, "toy") as metrics:
        return train.fit(
            step,
            FRESH,
            batch,
            steps=steps,
            folder=folder / "checkpoint",
            save_every=2,
            title="toy",
            metrics=metrics,
            log_every=1,
        )


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path):
    whole = _fit(tmp_path / "whole", 7)

    def broken(step):
        if step == 5:
            raise OSError("the disk went away")
        return _batch(step)

    with pytest.raises(OSError, match="went away"):
        _fit(tmp_path / "parts", 7, batch=broken)
    parts = _fit(tmp_path / "parts", 7)
    for name in FRESH:
        np.testing.assert_array_equal(whole[name], parts[name])
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    last = {entry["step"]: entry["loss"] for entry in map(json.loads, lines)}
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert last == {entry["step"]: entry["loss"] for entry in map(json.loads, lines)}
    assert sorted(last) == list(range(1, 8))


def test_a_finished_training_makes_no_batch(tmp_path):
    done = _fit(tmp_path, 4)

    def never(step):
        raise AssertionError("no batch is needed")

    again = _fit(tmp_path, 4, batch=never)
    np.testing.assert_array_equal(done["weights"], again["weights"])


def test_a_loss_that_is_not_finite_stops_the_training_and_keeps_the_last_state(tmp_path):
    def diverging(state, images, labels, number):
        state, values = _step(state, images, labels, number)
        return state, {"loss": jnp.where(number == 5, jnp.nan, values["loss"])}

    with pytest.raises(train.Diverged, match=r"toy: loss is nan at step 5; step 4 is kept"):
        _fit(tmp_path, 8, step=diverging)
    step, state = checkpoint.restore(checkpoint.open_folder(tmp_path / "checkpoint"), FRESH)
    assert step == 4
    np.testing.assert_array_equal(state["weights"], _fit(tmp_path / "short", 4)["weights"])


def test_a_checkpoint_of_another_shape_is_refused_in_one_line(tmp_path):
    _fit(tmp_path, 2)
    other = {"weights": jnp.ones(5), "velocity": jnp.zeros(3)}
    with pytest.raises(InputError, match=r"holds \(3,\) at weights, the network has \(5,\)"):
        checkpoint.load(tmp_path / "checkpoint", other)
    more = {**FRESH, "bias": jnp.zeros(3)}
    with pytest.raises(InputError, match=r"holds nothing at bias"):
        checkpoint.load(tmp_path / "checkpoint", more)


def test_a_damaged_checkpoint_is_named_in_one_line(tmp_path):
    _fit(tmp_path, 2)
    for file in (tmp_path / "checkpoint" / "2").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(
        InputError, match=r"checkpoint/2: cannot be read \(.*\); delete it"
    ) as error:
        checkpoint.load(tmp_path / "checkpoint", FRESH)
    assert "\n" not in str(error.value)


def test_a_missing_or_empty_checkpoint_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        checkpoint.load(tmp_path / "nowhere", FRESH)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no checkpoint"):
        checkpoint.load(tmp_path / "empty", FRESH)


def test_an_adopted_state_counts_as_trained(tmp_path):
    state = {"weights": jnp.arange(3.0), "velocity": jnp.ones(3)}
    checkpoint.adopt(tmp_path / "checkpoint", 4, state)
    np.testing.assert_array_equal(_fit(tmp_path, 4)["weights"], state["weights"])

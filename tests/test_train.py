import json
import logging
import os
import re
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax import checkpoint, distill, preempt, segment, space, train
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


WHOLE = (train.Watched("the toy", "loss", lambda step: 0.1 / (step + 1), "toy.lr", lambda s: s),)


def _one_by_one(step):
    """Steps for `train.fit` that Python runs one after another, not compiled as one."""

    def steps(state, images, labels, numbers):
        found = []
        for given in zip(images, labels, numbers, strict=True):
            state, values = step(state, *given)
            found.append(values)
        return state, {name: jnp.stack([values[name] for values in found]) for name in found[0]}

    return steps


def _fit(folder, total, step=_step, batch=_batch, steps=None, state=FRESH, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    plan = train.Plan("toy", total, folder / "checkpoint", WHOLE, save_every=2, log_every=1)
    with Metrics(folder, "toy") as metrics:
        steps = steps or _one_by_one(step)
        return train.fit(steps, state, batch, plan._replace(**changes), metrics)


def _logged(folder):
    """Each logged step's loss; a step that was repeated counts once."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {entry["step"]: entry["loss"] for entry in map(json.loads, lines)}


def _saved(folder):
    return checkpoint.restore(checkpoint.open_folder(folder / "checkpoint"), FRESH)


def _same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in FRESH)


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path):
    whole = _fit(tmp_path / "whole", 7)

    def broken(step):
        if step == 5:
            raise OSError("the disk went away")
        return _batch(step)

    with pytest.raises(OSError, match="went away"):
        _fit(tmp_path / "watched", 7, batch=broken)
    watched = _fit(tmp_path / "watched", 7)
    assert _same(whole, watched)
    assert _logged(tmp_path / "watched") == _logged(tmp_path / "whole")
    assert sorted(_logged(tmp_path / "watched")) == list(range(1, 8))


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

    message = (
        "toy: the toy has loss nan at step 6 with learning rate 0.0167; "
        f"the state of step 4 is kept; lower toy.lr and delete {tmp_path}"
    )
    with pytest.raises(train.Diverged, match=f"^{re.escape(message)}$"):
        _fit(tmp_path, 8, step=diverging)
    assert sorted(_logged(tmp_path)) == list(range(1, 6))
    step, state = _saved(tmp_path)
    assert step == 4
    assert _same(state, _fit(tmp_path / "short", 4))


def test_a_loss_is_looked_at_in_every_step_also_where_none_is_logged(tmp_path):
    def diverging(state, images, labels, number):
        state, values = _step(state, images, labels, number)
        return state, {"loss": jnp.where(number == 2, jnp.inf, values["loss"])}

    message = "has loss inf at step 3 .*; no step was saved yet; lower toy.lr"
    with pytest.raises(train.Diverged, match=message):
        _fit(tmp_path, 100, step=diverging, save_every=50, log_every=50)
    assert _saved(tmp_path)[0] == 0
    with pytest.raises(train.Diverged, match=message):  # the last step, which none follows
        _fit(tmp_path, 3, step=diverging, save_every=50, log_every=50)
    assert _saved(tmp_path)[0] == 0


@pytest.mark.parametrize(("save_every", "kept"), [(2, 4), (3, 3)])
def test_a_state_that_its_last_update_broke_is_not_saved(tmp_path, save_every, kept):
    """Its loss is finite; only the next one would tell. Step 6 is the last or one to save."""

    def breaking(state, images, labels, number):
        state, values = _step(state, images, labels, number)
        velocity = state["velocity"].at[1].set(jnp.where(number == 5, jnp.inf, 0.0))
        return {**state, "velocity": velocity}, values

    message = f"a state that is not finite at step 6 .*; the state of step {kept} is kept"
    for steps in (6, 8):
        with pytest.raises(train.Diverged, match=message):
            _fit(tmp_path, steps, step=breaking, save_every=save_every)
        assert _saved(tmp_path)[0] == kept


def test_the_part_that_diverged_is_named(tmp_path):
    def step(state, images, labels, number):
        first, _ = _step(state[0], images, labels, number)
        second, _ = _step(state[1], images, labels, number)
        bad = jnp.where(number == 1, jnp.nan, 1.0)
        state = (first, {**second, "weights": bad * second["weights"]})
        return state, {"a": jnp.float32(1), "b": jnp.float32(2)}

    watched = [
        train.Watched(
            f"block {i + 1}", "ab"[i], lambda step, i=i: i + 1, "toy.lr", lambda s, i=i: s[i]
        )
        for i in (0, 1)
    ]
    match = "block 2 has a state that is not finite at step 2 with learning rate 2;"
    with pytest.raises(train.Diverged, match=match):
        _fit(tmp_path, 5, step=step, state=(FRESH, FRESH), watched=watched)


def test_a_supernet_with_an_absurd_learning_rate_says_which_block_diverged(tmp_path):
    searched = space.Space(
        (space.Block(4, 6, 2, 1, 1), space.Block(6, 8, 1, 1, 1)), (space.Op(3, 2),)
    )
    rates = [segment.polynomial(lr, 50, 0.9) for lr in (0.01, 1e12)]
    optimizers = tuple(segment.sgd(lr, 50, 0.9, 0.9, 0.0) for lr in (0.01, 1e12))
    rng = np.random.default_rng(0)
    shapes = [(2, 8, 8, 4), (2, 4, 4, 6), (2, 4, 4, 8)]
    maps = tuple(jnp.float32(rng.normal(0, 1, shape)) for shape in shapes)
    recipe = distill.Recipe(
        lambda teacher, images: teacher,
        searched,
        optimizers,
        distill.SAMPLING["fair"],
        jax.random.key(0),
    )
    steps = train.several(distill.train_step(recipe), maps)
    state = distill.fresh_state(searched, optimizers, jax.random.key(1))
    watched = [
        train.Watched(
            f"block {i + 1}", f"nsr_block{i + 1}", rates[i], "supernet.lr", lambda s, i=i: s[i]
        )
        for i in (0, 1)
    ]
    with pytest.raises(train.Diverged) as error:
        _fit(tmp_path, 50, steps=steps, state=state, watched=watched, title="supernet")
    found = re.fullmatch(
        r"supernet: block 2 has (?:loss (?:nan|inf)|a state that is not finite) at step (\d+) with "
        r"learning rate (\S+); (.*); lower supernet\.lr and delete .*",
        str(error.value),
    )
    assert found, error.value
    assert float(found[2]) == pytest.approx(float(rates[1](int(found[1]) - 1)), rel=5e-3)
    manager = checkpoint.open_folder(tmp_path / "checkpoint")
    saved, state = checkpoint.restore(manager, state)
    assert saved < int(found[1])
    kept = f"the state of step {saved} is kept" if saved else "no step was saved yet"
    assert found[3] == kept
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def _stopping(at):
    """The step function, with SIGTERM in its midst."""

    def step(state, images, labels, number):
        if number == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return _step(state, images, labels, number)

    return step


@pytest.mark.parametrize("at", [0, 2, 3, 6], ids=["first", "middle", "at a save", "last"])
def test_sigterm_saves_the_step_that_is_done_and_the_rest_follows_equally(tmp_path, at):
    whole = _fit(tmp_path / "whole", 7, log_every=3)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(preempt.Stopped, match=f"^stopped by SIGTERM at step {at + 1} of toy$"):
        _fit(tmp_path / "watched", 7, step=_stopping(at), log_every=3)
    assert signal.getsignal(signal.SIGTERM) == before
    assert _saved(tmp_path / "watched")[0] == at + 1
    assert _same(_fit(tmp_path / "watched", 7, log_every=3), whole)
    assert _logged(tmp_path / "watched") == _logged(tmp_path / "whole")


@pytest.mark.parametrize("steps", [7, 12])
def test_steps_dispatched_together_are_the_same_steps(tmp_path, steps):
    """Saves every 4 steps cut the threes: 3, 4, 6, 8, 9, 12."""
    alone = _fit(tmp_path / "alone", steps)
    state = jax.tree.map(jnp.copy, FRESH)
    together = {"steps": train.several(_step), "per_dispatch": 3, "save_every": 4}
    found = _fit(tmp_path / "together", steps, state=state, **together)
    for name in FRESH:
        np.testing.assert_allclose(found[name], alone[name], rtol=1e-6)
        np.testing.assert_array_equal(state[name], FRESH[name])  # not worked in
    one, other = _logged(tmp_path / "alone"), _logged(tmp_path / "together")
    assert list(other) == list(one) == list(range(1, steps + 1))
    np.testing.assert_allclose(list(other.values()), list(one.values()), rtol=1e-6)


def test_sigterm_amid_steps_dispatched_together_lets_them_end(tmp_path):
    stopped = []
    compiled = train.several(_step)

    def stopping(state, images, labels, numbers):
        if 4 in numbers and not stopped:
            stopped.append(os.kill(os.getpid(), signal.SIGTERM))
        return compiled(state, images, labels, numbers)

    how = {"per_dispatch": 3, "save_every": 4, "log_every": 5}
    whole = _fit(tmp_path / "whole", 11, steps=compiled, **how)
    with pytest.raises(preempt.Stopped, match="at step 6 of toy"):
        _fit(tmp_path / "watched", 11, steps=stopping, **how)
    assert _saved(tmp_path / "watched")[0] == 6
    assert _same(_fit(tmp_path / "watched", 11, steps=stopping, **how), whole)
    assert _logged(tmp_path / "watched").items() >= _logged(tmp_path / "whole").items()


def test_the_step_that_diverged_is_told_also_amid_others(tmp_path):
    def diverging(state, images, labels, number):
        state, values = _step(state, images, labels, number)
        return state, {"loss": jnp.where(number == 4, jnp.nan, values["loss"])}

    with pytest.raises(train.Diverged, match=r"loss nan at step 5 .* state of step 4 is kept"):
        _fit(tmp_path, 9, steps=train.several(diverging), per_dispatch=4, save_every=4)


def test_several_steps_work_in_the_memory_of_their_state():
    batches = [jnp.stack(arrays) for arrays in zip(*map(_batch, range(2)), strict=True)]
    state = jax.tree.map(jnp.copy, FRESH)
    train.several(_step)(state, *batches, jnp.arange(2))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_sigterm_in_every_step_and_twice_comes_to_the_same_end(tmp_path):
    def step(state, images, labels, number):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        return _step(state, images, labels, number)

    for number in range(1, 6):
        with pytest.raises(preempt.Stopped, match=f"at step {number} of toy"):
            _fit(tmp_path / "watched", 5, step=step)
    assert _same(_fit(tmp_path / "watched", 5), _fit(tmp_path / "whole", 5))
    assert _logged(tmp_path / "watched") == _logged(tmp_path / "whole")


def test_sigterm_during_a_save_lets_it_end(tmp_path, monkeypatch):
    save = checkpoint.save

    def interrupted(manager, step, state):
        save(manager, step, state)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(checkpoint, "save", interrupted)
    with pytest.raises(preempt.Stopped, match="at step 2 of toy"):
        _fit(tmp_path, 7)
    assert _saved(tmp_path)[0] == 2


def test_sigterm_while_the_checkpoint_is_read_stops_before_the_next_step(tmp_path, monkeypatch):
    _fit(tmp_path, 2)
    restore = checkpoint.restore

    def interrupted(manager, like):
        os.kill(os.getpid(), signal.SIGTERM)
        return restore(manager, like)

    def never(*_):
        raise AssertionError("no step is begun")

    monkeypatch.setattr(checkpoint, "restore", interrupted)
    with pytest.raises(preempt.Stopped, match="at step 2 of toy"):
        _fit(tmp_path, 7, step=never)


def test_a_state_that_is_not_finite_is_not_saved_on_sigterm_either(tmp_path):
    def broken(state, images, labels, number):
        state, values = _stopping(4)(state, images, labels, number)
        bad = jnp.where(number == 4, jnp.nan, 1.0)
        return {**state, "weights": bad * state["weights"]}, values

    with pytest.raises(
        train.Diverged, match=r"not finite at step 5 .*; the state of step 4 is kept"
    ):
        _fit(tmp_path, 8, step=broken)
    assert _saved(tmp_path)[0] == 4


def test_training_in_a_thread_leaves_the_signal_alone(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(_fit(tmp_path, 3)))
    thread.start()
    thread.join()
    assert _same(found[0], _fit(tmp_path / "main", 3))


@pytest.mark.parametrize(("seconds", "least", "most"), [(0.1, 60.0, 100.0), (0.0, 0.0, 40.0)])
def test_the_share_of_time_spent_waiting_for_pictures_is_told(
    tmp_path, caplog, seconds, least, most
):
    """One thread takes 0.1 s for a batch; a step that waits for its loss takes 0.02 s."""

    def slow(step):
        time.sleep(seconds)
        return _batch(step)

    def step(*given):
        time.sleep(0.02)
        return _step(*given)

    with caplog.at_level(logging.INFO, "qnas_jax.train"):
        _fit(tmp_path, 20, step=step, batch=slow, save_every=100, threads=1)
    line = caplog.records[-1].getMessage()
    found = re.fullmatch(r"toy: 20 steps in \d+s, (\d+\.\d) % of it waiting for pictures", line)
    assert found and least <= float(found[1]) <= most, line


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

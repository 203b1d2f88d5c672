"""The training loop: resumed, several steps at once, diverged. SIGTERM: test_preempt.py."""

import json
import logging
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from qnas_jax import errors, space
from qnas_jax.bwnas import distill
from qnas_jax.train import checkpoint, loop
from qnas_jax.train.optimizers import polynomial, sgd


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path):
    whole = toy.fit(tmp_path / "whole", 7)

    def broken(step):
        if step == 5:
            raise OSError("the disk went away")
        return toy.batch(step)

    with pytest.raises(OSError, match="went away"):
        toy.fit(tmp_path / "watched", 7, batch=broken)
    watched = toy.fit(tmp_path / "watched", 7)
    assert toy.same(whole, watched)
    assert toy.logged(tmp_path / "watched") == toy.logged(tmp_path / "whole")
    assert sorted(toy.logged(tmp_path / "watched")) == list(range(1, 8))


def test_a_finished_training_makes_no_batch(tmp_path):
    done = toy.fit(tmp_path, 4)

    def never(step):
        raise AssertionError("no batch is needed")

    again = toy.fit(tmp_path, 4, batch=never)
    np.testing.assert_array_equal(done["weights"], again["weights"])


@pytest.mark.parametrize("steps", [7, 12])
def test_steps_dispatched_together_are_the_same_steps(tmp_path, steps):
    """Saves every 4 steps cut the threes: 3, 4, 6, 8, 9, 12."""
    alone = toy.fit(tmp_path / "alone", steps)
    state = jax.tree.map(jnp.copy, toy.FRESH)
    together = {"steps": loop.several(toy.step), "per_dispatch": 3, "save_every": 4}
    found = toy.fit(tmp_path / "together", steps, state=state, **together)
    for name in toy.FRESH:
        np.testing.assert_allclose(found[name], alone[name], rtol=1e-6)
        np.testing.assert_array_equal(state[name], toy.FRESH[name])  # not worked in
    one, other = toy.logged(tmp_path / "alone"), toy.logged(tmp_path / "together")
    assert list(other) == list(one) == list(range(1, steps + 1))
    np.testing.assert_allclose(list(other.values()), list(one.values()), rtol=1e-6)


def test_several_steps_work_in_the_memory_of_their_state():
    batches = [jnp.stack(arrays) for arrays in zip(*map(toy.batch, range(2)), strict=True)]
    state = jax.tree.map(jnp.copy, toy.FRESH)
    loop.several(toy.step)(state, *batches, jnp.arange(2))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(("seconds", "least", "most"), [(0.1, 60.0, 100.0), (0.0, 0.0, 40.0)])
def test_the_share_of_time_spent_waiting_for_images_is_reported(
    tmp_path, caplog, seconds, least, most
):
    """One thread takes 0.1 s for a batch; a step that waits for its loss takes 0.02 s."""

    def slow(step):
        time.sleep(seconds)
        return toy.batch(step)

    def step(*given):
        time.sleep(0.02)
        return toy.step(*given)

    with caplog.at_level(logging.INFO, "qnas_jax.train.loop"):
        toy.fit(tmp_path, 20, step=step, batch=slow, save_every=100, threads=1)
    line = caplog.records[-1].getMessage()
    found = re.fullmatch(r"toy: 20 steps in \d+s, (\d+\.\d) % of it waiting for images", line)
    assert found and least <= float(found[1]) <= most, line
    *_, last = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert least / 100 <= last[loop.WAITED] <= most / 100


def test_a_loss_that_is_not_finite_stops_the_training_and_keeps_the_last_state(tmp_path):
    def diverging(state, images, labels, number):
        state, values = toy.step(state, images, labels, number)
        return state, {"loss": jnp.where(number == 5, jnp.nan, values["loss"])}

    message = (
        "toy: the toy has loss nan at step 6 with learning rate 0.0167; "
        f"the state of step 4 is kept; lower toy.lr and delete {tmp_path}"
    )
    with pytest.raises(errors.Diverged, match=f"^{re.escape(message)}$"):
        toy.fit(tmp_path, 8, step=diverging)
    assert sorted(toy.logged(tmp_path)) == list(range(1, 6))
    step, state = toy.saved(tmp_path)
    assert step == 4
    assert toy.same(state, toy.fit(tmp_path / "short", 4))


def test_a_loss_is_looked_at_in_every_step_also_where_none_is_logged(tmp_path):
    def diverging(state, images, labels, number):
        state, values = toy.step(state, images, labels, number)
        return state, {"loss": jnp.where(number == 2, jnp.inf, values["loss"])}

    message = "has loss inf at step 3 .*; no step was saved yet; lower toy.lr"
    with pytest.raises(errors.Diverged, match=message):
        toy.fit(tmp_path, 100, step=diverging, save_every=50, log_every=50)
    assert toy.saved(tmp_path)[0] == 0
    with pytest.raises(errors.Diverged, match=message):  # the last step, which none follows
        toy.fit(tmp_path, 3, step=diverging, save_every=50, log_every=50)
    assert toy.saved(tmp_path)[0] == 0


@pytest.mark.parametrize(("save_every", "kept"), [(2, 4), (3, 3)])
def test_a_state_that_its_last_update_broke_is_not_saved(tmp_path, save_every, kept):
    """Its loss is finite; only the next one would tell. Step 6 is the last or one to save."""

    def breaking(state, images, labels, number):
        state, values = toy.step(state, images, labels, number)
        velocity = state["velocity"].at[1].set(jnp.where(number == 5, jnp.inf, 0.0))
        return {**state, "velocity": velocity}, values

    message = f"a state that is not finite at step 6 .*; the state of step {kept} is kept"
    for steps in (6, 8):
        with pytest.raises(errors.Diverged, match=message):
            toy.fit(tmp_path, steps, step=breaking, save_every=save_every)
        assert toy.saved(tmp_path)[0] == kept


def test_the_part_that_diverged_is_named(tmp_path):
    def step(state, images, labels, number):
        first, _ = toy.step(state[0], images, labels, number)
        second, _ = toy.step(state[1], images, labels, number)
        bad = jnp.where(number == 1, jnp.nan, 1.0)
        state = (first, {**second, "weights": bad * second["weights"]})
        return state, {"a": jnp.float32(1), "b": jnp.float32(2)}

    watched = [
        loop.Watched(
            f"block {i + 1}", "ab"[i], lambda step, i=i: i + 1, "toy.lr", lambda s, i=i: s[i]
        )
        for i in (0, 1)
    ]
    match = "block 2 has a state that is not finite at step 2 with learning rate 2;"
    with pytest.raises(errors.Diverged, match=match):
        toy.fit(tmp_path, 5, step=step, state=(toy.FRESH, toy.FRESH), watched=watched)


def test_a_supernet_with_an_absurd_learning_rate_says_which_block_diverged(tmp_path):
    searched = space.Space(
        (space.Block(4, 6, 2, 1, 1), space.Block(6, 8, 1, 1, 1)), (space.Op(3, 2),)
    )
    rates = [polynomial(lr, 50, 0.9) for lr in (0.01, 1e12)]
    optimizers = tuple(sgd(lr, 50, 0.9, 0.9, 0.0) for lr in (0.01, 1e12))
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
    steps = loop.several(distill.train_step(recipe), maps)
    state = distill.fresh_state(searched, optimizers, jax.random.key(1))
    watched = [
        loop.Watched(
            f"block {i + 1}", f"nsr_block{i + 1}", rates[i], "supernet.lr", lambda s, i=i: s[i]
        )
        for i in (0, 1)
    ]
    with pytest.raises(errors.Diverged) as error:
        toy.fit(tmp_path, 50, steps=steps, state=state, watched=watched, title="supernet")
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


def test_the_step_that_diverged_is_told_also_amid_others(tmp_path):
    def diverging(state, images, labels, number):
        state, values = toy.step(state, images, labels, number)
        return state, {"loss": jnp.where(number == 4, jnp.nan, values["loss"])}

    with pytest.raises(errors.Diverged, match=r"loss nan at step 5 .* state of step 4 is kept"):
        toy.fit(tmp_path, 9, steps=loop.several(diverging), per_dispatch=4, save_every=4)


def test_steps_are_compiled_once_wherever_their_arguments_lie(tmp_path):
    """A teacher from a checkpoint is on a named device, a fresh state is not."""

    def step(constant, state, images, labels, number):
        return toy.step(
            jax.tree.map(lambda leaf: leaf + 0 * constant, state), images, labels, number
        )

    constant = jax.device_put(np.float32(1), jax.local_devices()[0])
    program = loop.program(step)
    toy.fit(tmp_path, 5, steps=loop.with_constants(program, constant))
    assert program._cache_size() == 1

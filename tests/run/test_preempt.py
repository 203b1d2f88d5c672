"""SIGTERM amid a training: what is done is saved, and the rest follows equally."""

import contextlib
import os
import signal
import threading

import jax.numpy as jnp
import pytest

import toy
from qnas_jax import errors
from qnas_jax.run import preempt
from qnas_jax.train import checkpoint, loop


def _stopping(at):
    """The step function, with SIGTERM in its midst."""

    def step(state, images, labels, number):
        if number == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return toy.step(state, images, labels, number)

    return step


@pytest.mark.parametrize("at", [0, 2, 3, 6], ids=["first", "middle", "at a save", "last"])
def test_sigterm_saves_the_step_that_is_done_and_the_rest_follows_equally(tmp_path, at):
    whole = toy.fit(tmp_path / "whole", 7, log_every=3)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(preempt.Stopped, match=f"^stopped by SIGTERM at step {at + 1} of toy$"):
        toy.fit(tmp_path / "watched", 7, step=_stopping(at), log_every=3)
    assert signal.getsignal(signal.SIGTERM) == before
    assert toy.saved(tmp_path / "watched")[0] == at + 1
    assert toy.same(toy.fit(tmp_path / "watched", 7, log_every=3), whole)
    assert toy.logged(tmp_path / "watched") == toy.logged(tmp_path / "whole")


def test_sigterm_amid_steps_dispatched_together_lets_them_end(tmp_path):
    stopped = []
    compiled = loop.several(toy.step)

    def stopping(state, images, labels, numbers):
        if 4 in numbers and not stopped:
            stopped.append(os.kill(os.getpid(), signal.SIGTERM))
        return compiled(state, images, labels, numbers)

    how = {"per_dispatch": 3, "save_every": 4, "log_every": 5}
    whole = toy.fit(tmp_path / "whole", 11, steps=compiled, **how)
    with pytest.raises(preempt.Stopped, match="at step 6 of toy"):
        toy.fit(tmp_path / "watched", 11, steps=stopping, **how)
    assert toy.saved(tmp_path / "watched")[0] == 6
    assert toy.same(toy.fit(tmp_path / "watched", 11, steps=stopping, **how), whole)
    assert toy.logged(tmp_path / "watched").items() >= toy.logged(tmp_path / "whole").items()


def test_sigterm_in_every_step_and_twice_comes_to_the_same_end(tmp_path):
    def step(state, images, labels, number):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        return toy.step(state, images, labels, number)

    for number in range(1, 6):
        with pytest.raises(preempt.Stopped, match=f"at step {number} of toy"):
            toy.fit(tmp_path / "watched", 5, step=step)
    assert toy.same(toy.fit(tmp_path / "watched", 5), toy.fit(tmp_path / "whole", 5))
    assert toy.logged(tmp_path / "watched") == toy.logged(tmp_path / "whole")


def test_sigterm_during_a_save_lets_it_end(tmp_path, monkeypatch):
    save = checkpoint.save

    def interrupted(manager, step, state):
        save(manager, step, state)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(checkpoint, "save", interrupted)
    with pytest.raises(preempt.Stopped, match="at step 2 of toy"):
        toy.fit(tmp_path, 7)
    assert toy.saved(tmp_path)[0] == 2


def test_sigterm_while_the_checkpoint_is_read_stops_before_the_next_step(tmp_path, monkeypatch):
    toy.fit(tmp_path, 2)
    restore = checkpoint.restore

    def interrupted(manager, like):
        os.kill(os.getpid(), signal.SIGTERM)
        return restore(manager, like)

    def never(*_):
        raise AssertionError("no step is begun")

    monkeypatch.setattr(checkpoint, "restore", interrupted)
    with pytest.raises(preempt.Stopped, match="at step 2 of toy"):
        toy.fit(tmp_path, 7, step=never)


def test_a_state_that_is_not_finite_is_not_saved_on_sigterm_either(tmp_path):
    def broken(state, images, labels, number):
        state, values = _stopping(4)(state, images, labels, number)
        bad = jnp.where(number == 4, jnp.nan, 1.0)
        return {**state, "weights": bad * state["weights"]}, values

    with pytest.raises(
        errors.Diverged, match=r"not finite at step 5 .*; the state of step 4 is kept"
    ):
        toy.fit(tmp_path, 8, step=broken)
    assert toy.saved(tmp_path)[0] == 4


def test_training_in_a_thread_leaves_the_signal_alone(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(toy.fit(tmp_path, 3)))
    thread.start()
    thread.join()
    assert toy.same(found[0], toy.fit(tmp_path / "main", 3))


def test_a_stop_that_a_callback_swallows_is_raised_again():
    """Python prints and ignores what a callback of C raises, as `contextlib.suppress` here."""
    with pytest.raises(preempt.Stopped), preempt.raising():
        with contextlib.suppress(preempt.Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        with preempt.noting():
            pytest.fail("a training began")
    after = []
    with pytest.raises(preempt.Stopped), preempt.raising():
        with contextlib.suppress(preempt.Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        after.append("went on")
    assert after
    with preempt.raising(), preempt.noting():
        pass

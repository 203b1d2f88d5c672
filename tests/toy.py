"""A toy that is trained: three weights, pulled about by noise and images."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from qnas_jax.data.batching import Batch
from qnas_jax.run.log import Metrics
from qnas_jax.train import checkpoint, loop

FRESH = {"weights": jnp.ones(3), "velocity": jnp.zeros(3)}
WHOLE = (loop.Watched("the toy", "loss", lambda step: 0.1 / (step + 1), "toy.lr", lambda s: s),)


@jax.jit
def step(state, images, labels, number):
    """Noise from the step's number, data from the batch: nothing else may matter."""
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(7), number), (3,))
    velocity = 0.9 * state["velocity"] + images.mean() + noise
    weights = state["weights"] - 0.1 * velocity
    return {"weights": weights, "velocity": velocity}, {"loss": jnp.sum(weights**2)}


def batch(step):
    rng = np.random.default_rng(step)
    images = rng.integers(0, 255, (2, 4, 4, 3)).astype(np.uint8)
    return Batch(images, np.zeros((2, 4, 4), np.uint8))


def singly(step):
    """Steps for `train.fit` that Python runs one after another, not compiled as one."""

    def steps(state, images, labels, numbers):
        found = []
        for given in zip(images, labels, numbers, strict=True):
            state, values = step(state, *given)
            found.append(values)
        return state, {name: jnp.stack([values[name] for values in found]) for name in found[0]}

    return steps


def fit(folder, total, step=step, batch=batch, steps=None, state=FRESH, **changes):
    """Trains it; `changes` are those to the plan."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = loop.Plan("toy", total, folder / "checkpoint", WHOLE, save_every=2, log_every=1)
    with Metrics(folder, "toy") as metrics:
        steps = steps or singly(step)
        return loop.fit(steps, state, batch, plan._replace(**changes), metrics)


def logged(folder):
    """Each logged step's loss; a step that was repeated counts once."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {entry["step"]: entry["loss"] for entry in map(json.loads, lines)}


def saved(folder):
    return checkpoint.restore(checkpoint.open_folder(folder / "checkpoint"), FRESH)


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in FRESH)

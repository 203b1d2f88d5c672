"""Predictors of a subnet's accuracy from few subnets that were measured.

linear = fit_linear(noise, accuracies)       # one weight for each block's NSR, none negative
network = train(key, features, accuracies)   # an MLP of the ops; then, with `start=network`,
                                             # of ops and bitwidths from far fewer subnets

The linear one is DONNA's idea with weights that more noise never helps; `sum_b weights[b] * nsr[b]`
is a sum over blocks, so the exact search minimizes it unchanged. The network is APQ's.

References:
  Moons et al., 2021, https://arxiv.org/abs/2012.08859, section 3.3 (linear in the blocks' noise).
  Wang et al., 2020, https://arxiv.org/abs/2006.08509, section 3.2 (transfer to bitwidths); the
  authors' code, https://github.com/mit-han-lab/apq.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from qnas_jax.space import Op, Subnet


class Linear(NamedTuple):
    """Predicts ``bias - sum_b weights[b] * features[b]``.

    Attributes:
      weights: float64[features], none negative, per unit of its feature.
      bias: What is predicted without noise.
    """

    weights: np.ndarray
    bias: float


def fit_linear(features: np.ndarray, targets: np.ndarray) -> Linear:
    """Returns the least-squares fit with weights that are not negative and a free bias.

    Features are centred and scaled for the solver alone; the weights are those of the features as
    given. A feature that never changes has weight 0.

    Args:
      features: float[n, features], the noise of each block of each network.
      targets: float[n], the accuracies.

    Raises:
      ValueError: There is no network, something is not finite, or the lengths differ.
    """
    from scipy.optimize import nnls  # takes seconds to import

    features, targets = _checked(features, targets)
    means, mean = features.mean(0), targets.mean()
    scale = features.std(0)
    # A deviation of the size of rounding is none.
    scale = np.where(scale > 1e-12 * np.abs(features).max(0), scale, np.inf)
    weights = nnls((means[None] - features) / scale[None], targets - mean)[0] / scale
    return Linear(weights, float(mean + means @ weights))


def _checked(features: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features, targets = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    if features.ndim != 2 or targets.shape != features.shape[:1] or not len(targets):
        raise ValueError(
            f"features {features.shape}, targets {targets.shape}: must be [n, f] and [n], n above 0"
        )
    if not (np.isfinite(features).all() and np.isfinite(targets).all()):
        raise ValueError("features and targets: all must be finite")
    return features, targets


def predict(linear: Linear, features: np.ndarray) -> np.ndarray:
    """Returns the predicted targets, float64[n], of features float[n, features]."""
    return linear.bias - np.asarray(features, np.float64) @ linear.weights


def leave_one_out(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns for each network what the fit of all others predicts, relative to their mean.

    With their bias, useless features would rank the truth backwards: the mean of all others falls
    where the target of the one that is left out is high.

    Args:
      features: float[n, features].
      targets: float[n].

    Returns:
      float64[n].

    Raises:
      ValueError: As of `fit_linear`, or there are fewer than two networks.
    """
    features, targets = _checked(features, targets)
    if len(targets) < 2:
        raise ValueError("features: one network leaves no other to fit")
    found = []
    for row, kept in zip(features, ~np.eye(len(targets), dtype=bool), strict=True):
        weights = fit_linear(features[kept], targets[kept]).weights
        found.append((features[kept].mean(0) - row) @ weights)
    return np.array(found, np.float64)


class Features(NamedTuple):
    """Subnets as a network reads them.

    Attributes:
      ops: float32[n, layers * ops], one-hot for each layer.
      bits: float32[n, layers * 2 * bitwidths], one-hot for the weights and the activations of each
        layer; None for a predictor of ops alone.
    """

    ops: np.ndarray
    bits: np.ndarray | None = None


def encode(subnets: Sequence[Subnet], ops: Sequence[Op], bits: Sequence[int]) -> Features:
    """Returns the one-hot features of subnets with equally many layers.

    Args:
      subnets: The subnets.
      ops: All ops that a layer may have.
      bits: All bitwidths that weights or activations may have.

    Raises:
      ValueError: There is no subnet, they differ in layers, or one has an op or a bitwidth that is
        not among these.
    """
    layers = [[choice for block in subnet for choice in block] for subnet in subnets]
    if not layers or len({len(choices) for choices in layers}) > 1:
        raise ValueError("subnets: there must be some, all of equally many layers")
    found_ops = [[choice.op for choice in choices] for choices in layers]
    found_bits = [[b for c in choices for b in (c.w_bits, c.a_bits)] for choices in layers]
    return Features(_one_hot("op", found_ops, ops), _one_hot("bitwidth", found_bits, bits))


def _one_hot(name: str, rows: Sequence[Sequence], known: Sequence) -> np.ndarray:
    place = {value: number for number, value in enumerate(known)}
    missing = sorted({value for row in rows for value in row} - set(place))
    if missing:
        raise ValueError(f"{name} {missing[0]}: must be one of {', '.join(map(str, known))}")
    places = np.array([[place[value] for value in row] for row in rows])
    return np.eye(len(known), dtype=np.float32)[places].reshape(len(rows), -1)


def rows_of(features: Features, kept: np.ndarray) -> Features:
    """Returns the features of some subnets, given by a mask or their places."""
    return jax.tree.map(lambda part: part[kept], features)


def standard(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Returns values relative to the mean of others, in units of their standard deviation."""
    return (values - of.mean()) / max(float(of.std()), 1e-12)


class Dense(NamedTuple):
    """A fully connected layer: weights float32[inputs, outputs], bias float32[outputs]."""

    weights: jax.Array
    bias: jax.Array


class Network(NamedTuple):
    """An MLP; the last layer has one output, the others a ReLU.

    Attributes:
      layers: Its layers; the first reads the ops.
      bits: What reads the bitwidths, added to the first layer's output after its ReLU; None: they
        are not read.
      mean: Of the targets that it was first trained on; its output is relative to that.
      scale: Their standard deviation, the unit of its output.
    """

    layers: tuple[Dense, ...]
    bits: Dense | None
    mean: jax.Array
    scale: jax.Array


class Training(NamedTuple):
    """How a network is trained.

    Attributes:
      hidden: Units of each hidden layer; not read where training begins with a network.
      steps: Steps of Adam, each on all subnets.
      learning_rate: Of Adam.
    """

    hidden: tuple[int, ...] = (400, 400, 400)
    steps: int = 300
    learning_rate: float = 1e-3


def train(
    key: jax.Array,
    features: Features,
    targets: np.ndarray,
    how: Training = Training(),  # noqa: B008
    start: Network | None = None,
) -> Network:
    """Returns a network that was trained to predict the targets.

    With `start` training begins with that network. If it does not read bitwidths and there are
    some, a layer of zeros is added for them: it first predicts what the network did.

    Args:
      key: A PRNG key, for the first weights; not read if there is a `start`.
      features: Of the subnets, see `encode`.
      targets: float[n], their accuracies.
      how: The constants.
      start: The network to begin with.

    Raises:
      ValueError: Lengths differ, something is not finite, there is no hidden layer, or `start` does
        not fit the features.
    """
    _, checked = _checked(features.ops, targets)
    if not how.hidden:
        raise ValueError("hidden=(): there must be a hidden layer, which reads the ops")
    if start is None:
        start = _fresh(key, features.ops.shape[1], how.hidden, checked)
    if start.bits is None and features.bits is not None:
        start = start._replace(bits=_zeros(features.bits.shape[1], len(start.layers[0].bias)))
    _check_fit(start, features)
    aims = (jnp.asarray(checked, jnp.float32) - start.mean) / start.scale
    layers, bits = _trained((start.layers, start.bits), features, aims, how)
    return start._replace(layers=layers, bits=bits)


def _fresh(key: jax.Array, inputs: int, hidden: tuple[int, ...], targets: np.ndarray) -> Network:
    sizes = list(itertools.pairwise((inputs, *hidden, 1)))
    draw = jax.nn.initializers.he_normal()
    keys = jax.random.split(key, len(sizes))
    layers = (Dense(draw(k, s), jnp.zeros(s[1])) for k, s in zip(keys, sizes, strict=True))
    scale = targets.std() or 1.0  # all alike
    return Network(tuple(layers), None, jnp.float32(targets.mean()), jnp.float32(scale))


def _zeros(inputs: int, outputs: int) -> Dense:
    return Dense(jnp.zeros((inputs, outputs)), jnp.zeros(outputs))


def _check_fit(network: Network, features: Features) -> None:
    for name, layer, values in (
        ("ops", network.layers[0], features.ops),
        ("bits", network.bits, features.bits),
    ):
        wanted = None if layer is None else layer.weights.shape[0]
        given = None if values is None else values.shape[1]
        if wanted != given:
            raise ValueError(f"features.{name} of width {given}: the network reads {wanted}")


_Weights = Any  # a network's layers and bits, as Optax's types know no such tuples


@functools.partial(jax.jit, static_argnames="how")
def _trained(weights: _Weights, features: Features, aims: jax.Array, how: Training) -> _Weights:
    """The weights after full-batch Adam on the mean squared error."""
    optimizer = optax.adam(how.learning_rate)

    def loss(weights: _Weights) -> jax.Array:
        layers, bits = weights
        return jnp.square(_output(layers, bits, features) - aims).mean()

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        weights, state = carry
        updates, state = optimizer.update(jax.grad(loss)(weights), state, weights)
        return (optax.apply_updates(weights, updates), state), None

    return lax.scan(step, (weights, optimizer.init(weights)), length=how.steps)[0][0]


def _output(layers: tuple[Dense, ...], bits: Dense | None, features: Features) -> jax.Array:
    """What the network gives, in its own unit; [n]."""
    values = jax.nn.relu(_linear(layers[0], features.ops))
    if bits is not None:
        values = values + _linear(bits, features.bits)
    for layer in layers[1:-1]:
        values = jax.nn.relu(_linear(layer, values))
    return _linear(layers[-1], values)[:, 0]


def _linear(layer: Dense, values: np.ndarray | jax.Array | None) -> jax.Array:
    return jnp.asarray(values) @ layer.weights + layer.bias[None]


def forward(network: Network, features: Features) -> np.ndarray:
    """Returns the predicted targets, float64[n].

    Raises:
      ValueError: The features are not those that the network reads.
    """
    _check_fit(network, features)
    found = network.mean + network.scale * _output(network.layers, network.bits, features)
    return np.asarray(found, np.float64)

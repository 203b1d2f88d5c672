"""The table of QA-BWNAS for a given network: the noise of each block under each choice of bits.

A layer of a block has one bitwidth, for the weights of its convolutions and for what they read. All
choices of a block are scored, with 8 bits in all other blocks: the noise-to-signal ratio of the
block's output against the network in float. Noise is taken to add up over the blocks, and the best
combination within a budget is exact. Layers outside of blocks keep their largest bitwidths.

References:
  Lu et al., 2023, https://arxiv.org/abs/2401.12350.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from qnas_jax import metrics
from qnas_jax.errors import InputError
from qnas_jax.haq.evaluate import Evaluate, Scores, Tested
from qnas_jax.nn.trace import Trace
from qnas_jax.nn.units import pixels
from qnas_jax.search import allocation, pareto
from qnas_jax.search.allocation import Choices
from qnas_jax.train import supervised

BITS = (2, 3, 4, 6, 8)  # of a layer


def blocks_of(traced: Trace) -> list[list[list[int]]]:
    """Returns the numbers of the convolutions, by block and layer; empty where there are none."""
    sites = {unit.name: unit.site for unit in traced.units}
    found: dict[int, dict[int, list[int]]] = {}
    for number, conv in enumerate(traced.convs):
        if site := sites[conv.name]:
            found.setdefault(site.block, {}).setdefault(site.layer, []).append(number)
    return [list(layers.values()) for _, layers in sorted(found.items())]


def check(traced: Trace, budgets: Iterable[Choices]) -> None:
    """Raises InputError where the network has no blocks, or their fewest bits exceed a budget."""
    blocks = blocks_of(traced)
    if not blocks:
        raise InputError("haq.methods: 'lut' needs a network of blocks: MobileNetV2 or a subnet")
    for choices in budgets:
        policies = [policies_of(block, choices)[:1] for block in blocks]
        choose(policies, [np.zeros(1)] * len(blocks), choices)


def policies_of(block: Sequence[Sequence[int]], choices: Choices) -> np.ndarray:
    """Returns all choices of a block as policies of the whole network, int64[n, layers, 2].

    Args:
      block: The numbers of the convolutions of each layer.
      choices: Bounds, and who reads the same tensor.
    """
    found = []
    for chosen in itertools.product(BITS, repeat=len(block)):
        policy = choices.most.copy()
        for bits, layer in zip(chosen, block, strict=True):
            policy[layer] = bits
        found.append(np.clip(policy, choices.least, choices.most))
    return np.unique(allocation.tied(choices.lead, np.stack(found)), axis=0)


def noise(
    tested: Tested, images: np.ndarray, norm_images: np.ndarray | None
) -> Callable[[int], Evaluate]:
    """Returns a function from a block to what scores its choices, with the noise as the loss.

    One program serves all blocks. There is no accuracy: it is NaN.

    Args:
      tested: The network; its `features` are the maps at all boundaries of blocks.
      images: On which outputs are compared, uint8[n, h, w, 3].
      norm_images: Of which batch norms take statistics under a policy; None: they keep theirs.
    """
    state = supervised.fresh_state(tested.variables, optax.identity())
    in_float: Any = jax.jit(supervised.features(tested.model))

    @jax.jit
    def measured(bits, images, norms, maps):
        read = tested.quantize(state.params, bits)
        stats = state.batch_stats
        if norms is not None:
            stats = supervised.settled(tested.model, state, read, norms)
        read = {**read, "batch_stats": stats}
        found: Any = tested.model.apply(read, pixels(images), method="features")
        pairs = zip(found, maps, strict=True)
        return jnp.stack([metrics.nsr(y, x, metrics.channel_variance(x)) for y, x in pairs])

    @functools.cache  # only where a block is not known yet
    def given():
        return jnp.asarray(images), norm_images, in_float(tested.variables, images)

    def of_block(block: int) -> Evaluate:
        def evaluate(policies: np.ndarray) -> Scores:
            bits = [jnp.asarray(policy, jnp.int32) for policy in policies]
            found = np.array([measured(one, *given())[block + 1] for one in bits], np.float64)
            return Scores(np.full(len(found), np.nan), found)

        return evaluate

    return of_block


def choose(
    tables: Sequence[np.ndarray], noises: Sequence[np.ndarray], choices: Choices
) -> np.ndarray:
    """Returns the policy of the least sum of noises within the budget, int64[layers, 2].

    Args:
      tables: For each block the policies of its choices, see `policies_of`.
      noises: Their noise, float[n].
      choices: Bounds, costs and the budget.

    Raises:
      InputError: No combination meets the budget.
    """
    whole = allocation.costs_of(choices.cost, choices.most)
    objectives = [
        np.stack([whole - allocation.costs_of(choices.cost, policies), noise], 1) * (-1, 1)
        for policies, noise in zip(tables, noises, strict=True)
    ]
    front = pareto.pareto_front(objectives)
    affordable = np.flatnonzero(whole + front.objectives[:, 0] <= choices.budget * (1 + 1e-9))
    if not len(affordable):
        lowest = whole + front.objectives[:, 0].min()
        raise InputError(
            f"haq.methods: 'lut' costs at least {lowest:.4g}, with {BITS[0]} bits in all blocks "
            f"and the most in all other layers; a budget is {choices.budget:.4g}"
        )
    best = affordable[np.argmin(front.objectives[affordable, 1])]
    chosen = [policies[row] for policies, row in zip(tables, front.rows[best], strict=True)]
    return np.min(chosen, 0)  # what a block does not choose has the most bits

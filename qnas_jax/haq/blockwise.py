"""The table of QA-BWNAS for a given network: the noise of each block under each choice of bits.

A layer of a block has one bitwidth, for the weights of its convolutions and for what they read. All
choices of a block are scored, with 8 bits in all other blocks: the noise-to-signal ratio of the
block's output against the network in float. Layers outside of blocks are one more group with one
bitwidth, scored by the noise of the logits. Noise is taken to add up over the groups, and the best
combination within a budget is exact.

References:
  Lu et al., 2023, https://arxiv.org/abs/2401.12350.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from qnas_jax import metrics
from qnas_jax.errors import InputError
from qnas_jax.nn.trace import Trace
from qnas_jax.nn.units import pixels
from qnas_jax.ptq import norms
from qnas_jax.search import allocation, pareto
from qnas_jax.search.allocation import Choices
from qnas_jax.stages.scoring import Evaluate, Scores, Tested
from qnas_jax.train import supervised

BITS = (2, 3, 4, 6, 8)  # of a layer


def groups_of(traced: Trace) -> list[list[list[int]]]:
    """Returns the numbers of the convolutions, by block and layer, and last all outside of blocks.

    Raises:
      InputError: The network has no blocks.
    """
    sites = {unit.name: unit.site for unit in traced.units}
    found: dict[int, dict[int, list[int]]] = {}
    outside = []
    for number, conv in enumerate(traced.convs):
        if site := sites[conv.name]:
            found.setdefault(site.block, {}).setdefault(site.layer, []).append(number)
        else:
            outside.append(number)
    if not found:
        raise InputError("haq.methods: 'lut' needs a network of blocks: MobileNetV2 or a subnet")
    return [*(list(layers.values()) for _, layers in sorted(found.items())), [outside]]


def check(traced: Trace, choices: Choices) -> None:
    """Raises InputError where the network has no blocks, or the fewest bits exceed the budget."""
    tables = [policies_of(group, choices)[:1] for group in groups_of(traced)]
    try:
        choose(tables, [np.zeros(1)] * len(tables), choices)
    except InputError as error:
        raise InputError(f"haq.methods: 'lut': {error}") from None


def policies_of(group: Sequence[Sequence[int]], choices: Choices) -> np.ndarray:
    """Returns all choices of a group as policies of the whole network, int64[n, layers, 2].

    Args:
      group: The numbers of the convolutions of each layer.
      choices: Bounds, and who reads the same tensor.
    """
    found = []
    for chosen in itertools.product(BITS, repeat=len(group)):
        policy = choices.most.copy()
        for bits, layer in zip(chosen, group, strict=True):
            policy[layer] = bits
        found.append(np.clip(policy, choices.least, choices.most))
    return np.unique(allocation.tied(choices.lead, np.stack(found)), axis=0)


def noise(
    tested: Tested, images: np.ndarray, norm_images: np.ndarray | None
) -> Callable[[int], Evaluate]:
    """Returns a function from a group to what scores its choices, with the noise as the loss.

    One program serves all groups. There is no accuracy: it is NaN.

    Args:
      tested: The network; its `features` are the maps at all boundaries of blocks.
      images: On which outputs are compared, uint8[n, h, w, 3].
      norm_images: Of which batch norms take statistics under a policy; None: they keep theirs.
    """
    state = supervised.fresh_state(tested.variables, optax.identity())

    def outputs(read, images) -> Any:
        maps: Any = tested.model.apply(read, pixels(images), method="features")
        return [*maps[1:], tested.model.apply(read, pixels(images))]  # one pass when compiled

    @jax.jit
    def measured(bits, images, norm_images, maps):
        read = {**tested.quantize(state.params, bits), "batch_stats": state.batch_stats}
        if norm_images is not None:
            read["batch_stats"] = norms.settled(tested.model, read, norm_images)
        found = outputs(read, images)
        pairs = zip(found, maps, strict=True)
        return jnp.stack([metrics.nsr(y, x, metrics.channel_variance(x)) for y, x in pairs])

    @functools.cache  # only where a group is not known yet
    def given():
        seen = jnp.asarray(images)
        return seen, norm_images, jax.jit(outputs)(tested.variables, seen)

    def of_group(group: int) -> Evaluate:
        def evaluate(policies: np.ndarray) -> Scores:
            bits = [jnp.asarray(policy, jnp.int32) for policy in policies]
            found = np.array([measured(one, *given())[group] for one in bits], np.float64)
            return Scores(np.full(len(found), np.nan), found)

        return evaluate

    return of_group


def choose(
    tables: Sequence[np.ndarray], noises: Sequence[np.ndarray], choices: Choices
) -> np.ndarray:
    """Returns the policy of the least sum of noises within the budget, int64[layers, 2].

    Args:
      tables: For each group the policies of its choices, see `policies_of`.
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
    if not len(front):
        raise InputError("haq.methods: 'lut': all choices of a block have noise that is not finite")
    affordable = np.flatnonzero(whole + front.objectives[:, 0] <= choices.budget * (1 + 1e-9))
    if not len(affordable):
        lowest = whole + front.objectives[:, 0].min()
        raise InputError(
            f"the budget is {choices.budget:g}; with {BITS[0]} bits everywhere it is {lowest:g}"
        )
    best = affordable[np.argmin(front.objectives[affordable, 1])]
    chosen = [policies[row] for policies, row in zip(tables, front.rows[best], strict=True)]
    return np.min(chosen, 0)  # what a group does not choose has the most bits

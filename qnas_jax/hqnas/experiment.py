"""A run of HQNAS before its first step: images, networks, costs and budgets."""

import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from qnas_jax import space
from qnas_jax.data.batching import Dataset, central_crops
from qnas_jax.errors import InputError
from qnas_jax.hardware import matrix, target
from qnas_jax.hardware.deployment import Deployment
from qnas_jax.hqnas import derive, fronts, learn, relax, shared
from qnas_jax.hqnas.config import Config
from qnas_jax.hqnas.learn import Network
from qnas_jax.hqnas.relax import Bounds, Costs
from qnas_jax.hqnas.shared import Shares
from qnas_jax.nn import init, policy
from qnas_jax.nn.trace import trace
from qnas_jax.ptq import norms, ranges
from qnas_jax.quant.nested import nested
from qnas_jax.run import artefacts
from qnas_jax.stages import beginning, budgets, fit
from qnas_jax.stages.evaluation import Trained
from qnas_jax.stages.experiment import Problem, Purpose, key, prepare
from qnas_jax.stages.quantizers import Quantize
from qnas_jax.train import distillation, loop


class Begun(NamedTuple):
    """A run whose teacher is trained.

    Attributes:
      config: Its config.
      problem: Images and task; the training split without the images of the scores.
      held_out: The images on which choices are scored.
      deployed: The device and the size of its images.
      teacher: The teacher.
      network: The widest network.
      steps: The program of the steps of all searches, see `loop.program`.
      quantize: (parameters, a subnet as numbers) -> the variables that the network reads.
      imitate: (variables, images, target) -> how far the network's outputs are from the target.
      params: Its shared weights at the beginning.
      costs: float64[layers, ops, w_bits, a_bits] and all else, by the name of the cost.
      budgets: The bound of `hqnas.cost` in its unit, by the setting.
      limits: The bounds of further costs in their units.
    """

    config: Config
    problem: Problem
    held_out: Dataset
    deployed: Deployment
    teacher: Trained
    network: Network
    steps: Callable
    quantize: Quantize
    imitate: Callable
    params: PyTree
    costs: dict[str, tuple[np.ndarray, float]]
    budgets: dict[float, float]
    limits: dict[str, float]


def begin(given: Config, workdir: pathlib.Path) -> Begun:
    """Prepares the run and trains the teacher.

    Raises:
      InputError: A setting, an image or a file cannot be used; before anything takes long.
    """
    given.check()
    config, problem, deployed = prepare(given)
    own = config.hqnas
    problem, held_out = beginning.held_out(problem, own.score_images)
    target.check_w_bits(deployed.target, "hqnas.bits", own.bits)
    target.check_per_channel(deployed.target, "a network of HQNAS")
    costs = costs_of(deployed, problem.space.ops, own.bits)
    for setting, names in (("cost", [own.cost]), ("limits", [name for name, _ in own.limits])):
        for name in set(names) - set(costs):
            rule = f"target {deployed.target.name!r} knows {', '.join(costs)}"
            raise InputError(f"hqnas.{setting}={name!r}: {rule}")
    most = budgets.teacher_cost(deployed, problem, own.cost)
    bounded = {share: share * most for share in own.budgets}
    check_budgets("hqnas.budgets", own.cost, costs[own.cost], bounded)
    limits = {
        name: share * budgets.teacher_cost(deployed, problem, name) for name, share in own.limits
    }
    for name, share in own.limits:
        check_budgets("hqnas.limits", name, costs[name], {share: limits[name]})
    model = problem.student(shared.widest(problem.space))
    traced = trace(model, problem.val[0][0].shape)
    described = shared.describe(traced, problem.space, tuple(own.bits))
    all_bounds = [_bounds(costs, {own.cost: most, **limits}) for most in bounded.values()]
    for each in all_bounds:
        derive.check(described, each)
        if "sequential" in own.rivals:
            _check_ops(described, each)
    if "bwnas" in own.rivals:
        fronts.check(own.fronts, described, all_bounds)
    mark = artefacts.plain(config.network)
    teacher, variables = beginning.teacher(workdir, config, problem, mark)
    shape = (1, *config.train.crop, 3)
    fresh = init.initialize(model, key(config.seed, Purpose.SUPERNET_INIT), shape)
    network = Network(model, described, fresh, problem.task.loss)
    params = shared.from_teacher(described, fresh["params"], variables["params"])
    params = shared.with_transforms(described, params) if own.transform else params
    step = learn.step(network, relax.RELAXATIONS[own.relaxation], own.bilevel)
    quantize = functools.partial(_of_codes, network)
    return Begun(
        config, problem, held_out, deployed, teacher, network, loop.program(step), quantize,
        jax.jit(functools.partial(_imitation, network)), params, costs, bounded, limits,
    )  # fmt: skip


def _check_ops(described: shared.Shared, bounds: Bounds) -> None:
    try:
        derive.check(described, relax.of_ops(described, bounds))
    except InputError as error:
        rule = "'sequential' counts ops at the middle bitwidth"
        raise InputError(f"hqnas.rivals: {rule}, where {error}") from None


def costs_of(
    deployed: Deployment, ops: tuple[space.Op, ...], bits: tuple[int, ...]
) -> dict[str, tuple[np.ndarray, float]]:
    """Returns every cost of each candidate, and of all that is in no block, by its name."""
    pairs = [(w, a) for w in bits for a in bits]
    fixed = deployed.fixed()
    found = {}
    for name, values in deployed.matrix(ops, pairs).items():
        if np.isfinite(values).all():
            shape = (*values.shape[:2], len(bits), len(bits))
            found[name] = values.reshape(shape), float(sum(fixed[name].values()))
    return found


def check_budgets(
    setting: str, name: str, cost: tuple[np.ndarray, float], most: dict[float, float]
) -> None:
    """Raises InputError where the smallest subnet exceeds a budget.

    Args:
      setting: Of the budgets.
      name: Of the cost.
      cost: That of each candidate, and of all else.
      most: Budgets by their share of the teacher's cost.
    """
    layers, fixed = cost
    budgets.check(setting, name, fixed + float(layers.min((1, 2, 3)).sum()), most)


def bounds(begun: Begun, budget: float) -> dict[str, Costs]:
    """Returns what the search keeps within a budget of `hqnas.cost`, and within the limits."""
    return _bounds(begun.costs, {begun.config.hqnas.cost: budget, **begun.limits})


def _bounds(costs: dict[str, tuple[np.ndarray, float]], most: dict[str, float]) -> dict[str, Costs]:
    found = {}
    for name, budget in most.items():
        found[name] = Costs(*(jnp.asarray(x, jnp.float32) for x in (*costs[name], budget)))
    return found


def cost_of(begun: Begun, subnet: space.Subnet) -> dict[str, float]:
    """Returns every cost of a subnet, by its name."""
    ops, bits = begun.problem.space.ops, tuple(begun.config.hqnas.bits)
    pairs = [(w, a) for w in bits for a in bits]
    flat = {
        name: values.reshape(*values.shape[:2], -1) for name, (values, _) in begun.costs.items()
    }
    found = matrix.subnet_costs(flat, ops, pairs, subnet)
    return {name: found[name] + begun.costs[name][1] for name in found}


def _imitation(network: Network, read: PyTree, images: Array, target: Array) -> Array:
    same = jax.random.key(0)  # of dropout
    return distillation.cross_entropy(learn.outputs(network, read, images, same), target)


def _of_codes(network: Network, params: PyTree, codes: Array) -> PyTree:
    """The variables that the network reads, under a subnet as numbers."""
    counts = [len(network.shared.ops), *[len(network.shared.bits)] * 2]
    shares = Shares(*(jax.nn.one_hot(codes[:, i], n) for i, n in enumerate(counts)))
    return shared.chosen(network.shared, network.variables["quant"], params, shares)


def norm_images(begun: Begun) -> np.ndarray:
    """Returns the images of which batch norms take statistics under a choice."""
    config = begun.config
    return central_crops(begun.problem.train, range(config.hqnas.norm_images), config.train.crop)


def standalone(
    begun: Begun, model: nn.Module, params: PyTree, subnet: space.Subnet
) -> tuple[PyTree, Quantize]:
    """Returns the variables of a subnet's own network, and what its bitwidths do to them.

    Its weights have nested codes, as in the search; ranges of activations are those of the least
    squared error.

    Args:
      begun: The run.
      model: The subnet's network.
      params: Its parameters, cut from the shared ones.
      subnet: The subnet.
    """
    config, image_shape = begun.config, begun.problem.val[0][0].shape
    traced = trace(model, image_shape)
    names = [unit.name for unit in traced.units if unit.conv or unit.has_grid]
    fixed = begun.deployed.target.fixed_bits
    by_unit = {**dict.fromkeys(names, fixed), **policy.of_subnet(traced, subnet)}

    def rounded(params):
        params = jax.tree.map(lambda leaf: leaf, params)
        for conv in traced.convs:
            leaves = policy.at(params, conv.name)
            leaves["kernel"] = nested(leaves["kernel"], jnp.int32(by_unit[conv.name][0]))
        return params

    shape = (1, *config.train.crop, 3)
    fresh = init.initialize(model, key(config.seed, Purpose.RETRAIN_INIT), shape)
    settle = jax.jit(functools.partial(norms.settled, model))
    read = {"params": rounded(params), "batch_stats": fresh["batch_stats"]}
    read["batch_stats"] = stats = settle(read, norm_images(begun))
    images = fit.range_images(begun.problem.train, fit.training(config))
    found = ranges.ranges_of(model, traced, read, images, "mse")

    def quantize(params, bits):
        del bits  # those of the subnet
        quant = ranges.with_ranges(fresh["quant"], by_unit, found)
        return {"params": rounded(params), "quant": quant}

    return {"params": params, "batch_stats": stats}, quantize

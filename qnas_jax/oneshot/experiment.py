"""A run of one-shot search before its first step: images, networks, costs and budgets."""

import pathlib
from typing import NamedTuple

from jaxtyping import PyTree

from qnas_jax.data.batching import Dataset
from qnas_jax.errors import InputError
from qnas_jax.hardware import target
from qnas_jax.hardware.deployment import Deployment
from qnas_jax.oneshot import coding, supernet
from qnas_jax.oneshot.coding import Coding, Costs
from qnas_jax.oneshot.config import Config
from qnas_jax.run import artefacts
from qnas_jax.stages import beginning, budgets
from qnas_jax.stages.evaluation import Trained
from qnas_jax.stages.experiment import Problem, prepare
from qnas_jax.train import mesh


class Begun(NamedTuple):
    """A run whose teacher is trained.

    Attributes:
      config: Its config, with the part of its space that the target runs.
      problem: Images and task; the training split without the images of the scores.
      held_out: The images on which subnets are scored.
      deployed: The device and the size of its images.
      teacher: The teacher.
      variables: Its variables.
      coded: What the genes of a subnet number.
      costs: Every cost that the target knows, by its name.
      teacher_cost: The teacher's at 8 bits, in the unit of `oneshot.cost`.
      budgets: The bound of `oneshot.cost` in its unit, by the setting; none for a front.
    """

    config: Config
    problem: Problem
    held_out: Dataset
    deployed: Deployment
    teacher: Trained
    variables: PyTree
    coded: Coding
    costs: dict[str, Costs]
    teacher_cost: float
    budgets: dict[float, float]


def begin(given: Config, workdir: pathlib.Path) -> Begun:
    """Prepares the run and trains the teacher.

    Raises:
      InputError: A setting, an image or a file cannot be used; before anything takes long.
    """
    given.check()
    config, problem, deployed = prepare(given)
    own = config.oneshot
    mesh.check_batch("oneshot.batch", own.batch)
    target.check_per_channel(deployed.target, "a network of a one-shot search")
    if own.sampling == "fair":
        supernet.check_fair_steps("oneshot.steps", own.steps, len(problem.space.ops))
    coded = Coding(problem.space, config.space.bits, config.space.bits_per == "layer")
    costs = coding.known_costs(deployed, coded)
    if own.cost not in costs:
        rule = f"target {deployed.target.name!r} knows {', '.join(costs)}"
        raise InputError(f"oneshot.cost={own.cost!r}: {rule}")
    teacher_cost = budgets.teacher_cost(deployed, problem, own.cost)
    smallest = coding.cheapest(coded, costs[own.cost], own.cost)
    lowest = float(coding.costs_of(coded, costs[own.cost], smallest[None])[0])
    shares = own.budgets if own.search == "evolution" else ()
    bounds = {share: share * teacher_cost for share in shares}
    budgets.check("oneshot.budgets", own.cost, lowest, bounds)
    problem, held_out = beginning.held_out(problem, own.images)
    mark = artefacts.plain(config.network)
    teacher, variables = beginning.teacher(workdir, config, problem, mark)
    return Begun(
        config, problem, held_out, deployed, teacher, variables, coded, costs, teacher_cost, bounds
    )

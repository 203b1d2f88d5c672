"""Budgets of searches, given as shares of what the teacher costs at 8 bits."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from qnas_jax.errors import InputError
from qnas_jax.hardware.deployment import Deployment
from qnas_jax.space import COSTS
from qnas_jax.stages import evaluation
from qnas_jax.stages.experiment import Problem, teacher_costs


def teacher_cost(deployed: Deployment, problem: Problem, name: str) -> float:
    """Returns a cost of the teacher at 8 bits, in its unit.

    Args:
      deployed: The device.
      problem: Has the teacher.
      name: Of a cost that the target knows.
    """
    if name != "size_bytes":
        return teacher_costs(deployed, problem.teacher)[name]
    fresh = jax.eval_shape(
        lambda: problem.teacher.init(jax.random.key(0), jnp.zeros((1, *problem.val[0][0].shape)))
    )
    eight = jax.tree.map(lambda leaf: np.full(leaf.shape, 8), fresh["quant"])
    sizes = evaluation.network_sizes(problem.teacher, eight, problem.val[0][0].shape)
    return float(sizes["size_bytes"])


def check(setting: str, name: str, lowest: float, budgets: Mapping[float, float]) -> None:
    """Refuses budgets that no subnet meets.

    Args:
      setting: Of the budgets.
      name: Of the cost.
      lowest: The cost of the cheapest subnet.
      budgets: Bounds by their share of the teacher's cost.

    Raises:
      InputError: The cheapest subnet exceeds one.
    """
    shown = COSTS[name]
    for share, budget in budgets.items():
        if budget < lowest:
            raise InputError(
                f"{setting}={share:g}: that share of the teacher's is "
                f"{budget / shown.per_shown_unit:.4g} {shown.shown_unit}, but "
                f"{shown.lowest} {lowest / shown.per_shown_unit:.4g} {shown.shown_unit}"
            )

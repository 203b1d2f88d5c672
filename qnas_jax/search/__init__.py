"""Exact Pareto fronts of costs that add up over blocks; NumPy alone, all costs are minimized.

front = search.pareto_front([block1, block2])  # float[rows, objectives] of each block
front.objectives, front.rows                   # the sums, and the row of each block
"""

from qnas_jax.search.front import Point, best_under
from qnas_jax.search.pareto import Front, non_dominated, pareto_front

__all__ = ["Front", "Point", "best_under", "non_dominated", "pareto_front"]

"""QA-BWNAS: scores every path of every block by its noise, and adds up tables.

    params = bwnas.init_supernet(jax.random.key(0), space)
    step = bwnas.distill_step(recipe)       # (teacher, state, images, number) -> state, NSR
    table = bwnas.score(params, space, [(8, 8), (4, 4)], maps)
    points = bwnas.search(table)            # the front of NSR and size

References:
  Lu et al., 2023, https://arxiv.org/abs/2401.12350.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qnas_jax.bwnas.library import (
        SAMPLING,
        Recipe,
        Table,
        distill_step,
        init_state,
        init_supernet,
        path_params,
        score,
        search,
    )

__all__ = [
    "SAMPLING",
    "Recipe",
    "Table",
    "distill_step",
    "init_state",
    "init_supernet",
    "path_params",
    "score",
    "search",
]


def __getattr__(name: str) -> Any:
    if name in __all__:  # late, as tools that read tables need no JAX
        return getattr(importlib.import_module(f"{__name__}.library"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

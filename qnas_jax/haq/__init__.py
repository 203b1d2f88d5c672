"""HAQ: an agent chooses each layer's bitwidths, the hardware in the loop.

    layers = haq.describe(convs, lead=range(len(convs)))
    result = haq.search(jax.random.key(0), evaluate, cost, layers, budget)
    result.bits                             # int[layers, 2], of weights and of activations

References:
  Wang et al., 2019, https://arxiv.org/abs/1811.08886.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qnas_jax.haq.agents import Result, search
    from qnas_jax.haq.ddpg import DDPG
    from qnas_jax.haq.env import Layers, describe

_MODULES = {
    "DDPG": "ddpg",
    "Layers": "env",
    "Result": "agents",
    "describe": "env",
    "search": "agents",
}
__all__ = ["DDPG", "Layers", "Result", "describe", "search"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # late, as tools that read tables need no JAX
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

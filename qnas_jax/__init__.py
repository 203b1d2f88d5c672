"""qnas_jax: finds, for a device and a task, the network and its bitwidths together.

As a library; arrays and functions, no config and no folder:

    import qnas_jax as qn

    Op, Block, Space, Choice     the search space as plain data
    parse_subnet, format_subnet  the text form of a subnet
    quant       numbers on a grid of 2 to 8 bits: fake_quant, fake_quant_weight, min_max, kmeans
    nn          networks as Flax modules: MobileNetV2, DeepLabV3, ConvBnAct, with_policy, trace
    hardware    what layers cost on a device: cost_matrix
    search      exact Pareto fronts of sums: pareto_front
    bwnas       block-wise search: init_supernet, distill_step, score, search
    haq         an agent chooses the bits of each layer: describe, search, DDPG
    hqnas       ops and bits learn by gradient; see `hqnas/learn.py` and `hqnas/relax.py`
    export      networks as files: to_graph, to_onnx, to_tflite; simulator runs them in JAX
    benchmark   all networks of a small space under all policies: load, regret
    data        images and labels: Streets, Objects, Digits, Cityscapes, Folders
    metrics     every figure, defined once: nsr, mean_iou, kendall_tau

A package is imported when it is first used, so `import qnas_jax` takes milliseconds.

As a program, `launch/main.py` runs a whole search: `stages` has its steps, `bwnas/pipeline`,
`haq/pipeline` and `hqnas/pipeline` their order, `run` what any run needs (config, files, log),
`train` the training loop, `kernels` convolutions, `profiling` timing on runtimes, and `report` the
page of a run.
"""

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from qnas_jax.space import Block, Choice, Op, Space, format_subnet, parse_subnet

if TYPE_CHECKING:
    from qnas_jax import benchmark, bwnas, data, export, haq, hardware, metrics, nn, quant, search

if sys.platform == "win32" or importlib.util.find_spec("fcntl") is None:  # no file locks
    print("error: qnas_jax runs on Linux and macOS; on Windows use WSL", file=sys.stderr)
    raise SystemExit(2)

__all__ = [
    "Block",
    "Choice",
    "Op",
    "Space",
    "benchmark",
    "bwnas",
    "data",
    "export",
    "format_subnet",
    "haq",
    "hardware",
    "metrics",
    "nn",
    "parse_subnet",
    "quant",
    "search",
]


def __getattr__(name: str) -> Any:
    if name in __all__:  # a room; the words are imported already
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

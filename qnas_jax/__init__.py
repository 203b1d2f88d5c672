"""qnas_jax: finds, for a device and a task, the network and its bitwidths together.

The way through a run is `pipeline.py`, and each step of it in `stages/`; the rooms it passes:

    config, setting      what a run is told, and what that amounts to
    data/                pictures: rendered streets, Cityscapes, training batches
    space                the search space as plain data: op, block, path, subnet
    quant/               numbers on a grid of 2 to 8 bits
    nn/                  networks: MobileNetV2, DeepLabV3, the supernet's blocks
    train, segment       the training loop; training and measuring a whole network
    distill              block-wise distillation of the supernet
    lut, tree, table     every path of every block, quantized and scored
    hardware/            what a device runs, and what a layer costs on it
    search/              the Pareto front over the table, exact or within an epsilon
    report/              the page of a run
    artefact, checkpoint, runlog     what a run leaves behind, and how it goes on
"""

import importlib.util
import sys

if sys.platform == "win32" or importlib.util.find_spec("fcntl") is None:  # no locks of files
    print("error: qnas_jax runs on Linux and macOS; on Windows use WSL", file=sys.stderr)
    raise SystemExit(2)

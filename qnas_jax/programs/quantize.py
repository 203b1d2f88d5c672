"""Shows what each method of quantization gives the networks of a run, by bitwidth.

    qnas quantize --config configs/objects.py --workdir runs/objects --bits=8,4,w4a8

Reads the teacher of a run, and with --subnets its retrained subnets. Weights and activations of
the searched blocks get each bitwidth, all else keeps 8 bits. The row `qat` trains the network, as
`retrain.qat_steps` says. Prints a table and writes `quantized.json` in the folder of the run; after
a stop the same command continues.
"""

import copy
import re
from typing import Any

from absl import flags

from qnas_jax.bwnas import finished, inspection
from qnas_jax.bwnas.config import Config
from qnas_jax.errors import InputError
from qnas_jax.hardware.target import check_w_bits
from qnas_jax.run import artefacts, cli, disk, platform
from qnas_jax.run.stage import read_json
from qnas_jax.space import LEAST_BITS, MOST_BITS, Bits
from qnas_jax.stages import fit, methods
from qnas_jax.stages.evaluation import Trained
from qnas_jax.stages.experiment import prepare
from qnas_jax.stages.fit import Training

cli.define_run_flags()
_BITS = flags.DEFINE_list("bits", ["8", "6", "4", "3"], "Bitwidths, as 8,4,w4a8.")
_METHODS = flags.DEFINE_list("methods", list(methods.METHODS), "Which rows.")
_SUBNETS = flags.DEFINE_integer("subnets", 0, "How many retrained subnets, too.", lower_bound=0)


def main() -> None:
    """Prints the scores of each network under each method and bitwidth."""
    config, workdir = cli.run_flags(Config)
    platform.use_compilation_cache()
    bits, rows = _checked(_BITS.value, _METHODS.value, config.retrain.qat_steps)
    config, problem, deployed = prepare(config)
    check_w_bits(deployed.target, "--bits", [w_bits for w_bits, _ in bits])
    inspection.check_per_tensor(config)
    if not deployed.target.per_channel:
        rows = _without_norms(rows)
    inspection.check_norms(_with_norms(config, rows), problem)
    how, file = fit.training(config), workdir / "quantized.json"
    networks = finished.trained(workdir, config, problem, _SUBNETS.value)
    with disk.only_one(workdir):
        known = read_json(file) if file.exists() else {}
        for network in networks:
            name, made_from = network.stage.folder.name, _made_from(network, how)
            if known.get(name, {}).get("made_from") != made_from:  # scores of another network
                known[name] = {"made_from": made_from, "scores": {}}
            scores = known[name]["scores"]
            for cell, score in methods.scores(
                workdir, problem, how, config.retrain, network, rows, bits, set(scores)
            ):
                scores[cell] = score
                artefacts.write_json(file, known)
            print(f"{name}: {problem.task.metric.title}, %")
            print(methods.as_text(scores, rows, bits))
    print(f"scores: {file}")


def _made_from(network: Trained, how: Training) -> dict[str, Any]:
    """What scores belong to."""
    rows = {name: artefacts.plain(settings) for name, settings in methods.METHODS.items()}
    return {"stage": network.stage.hash, "images": how.quantize.images, "methods": rows}


def _with_norms(config: Config, rows: list[str]) -> Config:
    """The config that takes statistics of norms as the rows do."""
    changed = copy.deepcopy(config)
    changed.quantize.norms = any(methods.METHODS.get(row, {}).get("norms") for row in rows)
    changed.retrain.qat_steps *= methods.QAT in rows
    return changed


def _without_norms(rows: list[str]) -> list[str]:
    """The rows that a target with one scale of weights for a layer runs."""
    kept = [row for row in rows if not methods.METHODS.get(row, {}).get("norms")]
    for row in sorted(set(rows) - set(kept)):
        print(f"{row}: left out, as the target has one scale for all weights of a layer")
    if not kept:
        raise InputError("--methods: none is left")
    return kept


def _checked(bits: list[str], rows: list[str], steps: int) -> tuple[list[Bits], list[str]]:
    known = [*methods.METHODS, methods.QAT]
    for name in rows:
        if name not in known:
            raise InputError(f"--methods: {name!r} must be among {', '.join(known)}")
    if methods.QAT in rows and not steps:
        raise InputError("--methods: 'qat' needs --config.retrain.qat_steps, like 300")
    if not rows or not bits:
        raise InputError("--bits and --methods: must not be empty")
    pairs = list(dict.fromkeys(map(_pair, bits)))
    if not all(LEAST_BITS <= b <= MOST_BITS for pair in pairs for b in pair):
        raise InputError(f"--bits={','.join(bits)}: bitwidths lie in [{LEAST_BITS}, {MOST_BITS}]")
    return pairs, list(dict.fromkeys(rows))


def _pair(text: str) -> Bits:
    """Bitwidths of weights and of activations, from "4" or "w4a8"."""
    found = re.fullmatch(r"(\d+)|w(\d+)a(\d+)", text)
    if not found:
        raise InputError(f"--bits: {text!r} must be a bitwidth, like 4, or two, like w4a8")
    both, weights, activations = found.groups()
    return int(weights or both), int(activations or both)

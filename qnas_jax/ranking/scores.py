"""Every score of an audit's subnets: from tables and supernets, and controls that know nothing."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from qnas_jax import space
from qnas_jax.bwnas import populate_table, retraining
from qnas_jax.bwnas.config import Config
from qnas_jax.bwnas.lut.table import Table
from qnas_jax.bwnas.pipeline import Searched
from qnas_jax.errors import InputError
from qnas_jax.hardware import target
from qnas_jax.nn.composed import Weights
from qnas_jax.oneshot import supernet, training
from qnas_jax.oneshot.config import Oneshot
from qnas_jax.ranking.drawn import usable
from qnas_jax.run.config import check_images
from qnas_jax.run.stage import Stage
from qnas_jax.search import predictor
from qnas_jax.stages import beginning, candidates, fit
from qnas_jax.stages.candidates import Score
from qnas_jax.stages.experiment import Problem, prepare
from qnas_jax.train import supervised

FLOAT_BITS = 16  # so many change nothing that can be seen: a table at them is one in float
PRETRAINED_ON = 2000  # random subnets, for the predictor that is a network
SAMPLINGS = {"spos": "uniform", "fairnas": "fair"}  # of the one-shot supernets


class Scored(NamedTuple):
    """A score of each subnet.

    Attributes:
      title: Its name in text.
      values: float64[subnets].
      lower_is_better: Whether a low value promises a high accuracy.
    """

    title: str
    values: np.ndarray
    lower_is_better: bool = True


def check(given: Config) -> None:
    """Refuses what would fail after hours; opens the images, trains nothing.

    Raises:
      InputError: A setting cannot be used.
    """
    problem = check_tables(given)
    target.check_per_channel(target.named(given.hardware.target), "an audit")
    own = given.audit
    kept = {"norm_images": own.norm_images, "batch": own.batch}
    wanted = {f"audit.images + audit.{name}": own.images + count for name, count in kept.items()}
    check_images(len(problem.train), wanted)
    supernet.check_fair_steps("audit.steps", own.steps, len(problem.space.ops))


def check_tables(given: Config) -> Problem:
    """Refuses what makes tables that cannot be compared; opens the images and returns the problem.

    Raises:
      InputError: A setting cannot be used.
    """
    given.check()
    if given.lut.time_budget_s:
        rule = "must be 0 for an audit: its tables are compared"
        raise InputError(f"lut.time_budget_s={given.lut.time_budget_s:g}: {rule}")
    return prepare(given)[1]


def of_rows(rows: Table, subnets: Sequence[space.Subnet]) -> np.ndarray:
    """Returns the NSR of each block of subnets, float64[subnets, blocks].

    Args:
      rows: A table; if it has one pair of bitwidths, it is read whatever those of the subnets.
      subnets: The subnets.
    """
    alone = rows.bits[0] if len(rows.bits) == 1 else None
    places = {(int(block), rows.choices(row)): row for row, block in enumerate(rows.block)}

    def nsr(block: int, choices: tuple[space.Choice, ...]) -> float:
        own = tuple(space.Choice(c.op, *alone) if alone else c for c in choices)
        return float(rows.nsr[places[block, own]])

    return np.array([[nsr(b, own) for b, own in enumerate(subnet)] for subnet in subnets])


def float_table(workdir: pathlib.Path, found: Searched) -> Table:
    """Returns the table of all ops in float; it is filled once."""
    config, problem, deployed, _, variables = found.begun
    chosen = dataclasses.replace(config.space, w_bits=(FLOAT_BITS,), a_bits=(FLOAT_BITS,),
                                 bits_per="block")  # fmt: skip
    how = dataclasses.replace(config.lut, compute="float32", ranges="min_max", time_budget_s=0.0)
    return populate_table.populate_table(
        workdir / "audit" / "float", problem, deployed, chosen, how, config.kernels,
        fit.training(config).train.crop, found.distilled, variables, found.params,
    )[1]  # fmt: skip


def composed(
    workdir: pathlib.Path, found: Searched, subnets: Sequence[space.Subnet]
) -> candidates.Scores:
    """Returns what the distilled blocks give in a row, each reading the quantized one before."""
    config, problem, _, _, variables = found.begun
    how, train = _oneshot(config), fit.training(config)
    problem, held_out = beginning.held_out(problem, config.audit.images)
    network = training.network_of(problem)
    begins = retraining.beginning(config, problem, variables, found.params)
    weights = Weights(training.rest_of(network, train, begins.teacher), found.params)
    features = jax.jit(supervised.features(problem.teacher))
    setting = training.setting(problem, train, how, held_out)._replace(
        features=functools.partial(features, variables)
    )
    mark = {"supernet": found.distilled.hash, **measured_on(found)}
    stage = Stage(workdir / "audit" / "composed", mark)
    return _scored(stage, candidates.scorer(network, weights, setting), subnets, "composed")


def one_shot(
    workdir: pathlib.Path, found: Searched, subnets: Sequence[space.Subnet], name: str
) -> candidates.Scores:
    """Returns the accuracies of subnets with the weights of a one-shot supernet.

    Args:
      workdir: The folder of the run.
      found: The run.
      subnets: The subnets.
      name: One of `SAMPLINGS`.
    """
    shared, score = one_shot_supernet(workdir, found, name)
    stage = Stage(workdir / "audit" / name, {"supernet": shared.hash, **measured_on(found)})
    return _scored(stage, score, subnets, name)


def one_shot_supernet(workdir: pathlib.Path, found: Searched, name: str) -> tuple[Stage, Score]:
    """Trains a one-shot supernet; returns its stage and what scores subnets with its weights.

    Args:
      workdir: The folder of the run.
      found: The run.
      name: One of `SAMPLINGS`.
    """
    config, problem, _, teacher, variables = found.begun
    how, train = _oneshot(config, SAMPLINGS[name]), fit.training(config)
    problem, held_out = beginning.held_out(problem, config.audit.images)
    begins = retraining.beginning(config, problem, variables, found.params)
    trained = training.train(workdir, problem, train, how, teacher.stage, begins.teacher, name)
    setting = training.setting(problem, train, how, held_out)
    return trained.stage, training.scorer(trained, setting)


def _oneshot(config, sampling: str = "uniform") -> Oneshot:
    own = config.audit
    return Oneshot(
        sampling=sampling, steps=own.steps, batch=own.batch, lr=own.lr, images=own.images,
        warmup=min(20, own.steps - 1), init=config.supernet.init, norm_images=own.norm_images,
        images_per_pass=config.run.eval_batch, ranges=config.lut.ranges,
    )  # fmt: skip


def measured_on(found: Searched) -> dict:
    """Returns the settings that scores of whole networks depend on, for the mark of a stage."""
    config = found.begun.config
    return {
        "images": config.audit.images,
        "norm_images": config.audit.norm_images,
        "images_per_pass": config.run.eval_batch,
        "ranges": config.lut.ranges,
    }


def _scored(
    stage: Stage, score: Score, subnets: Sequence[space.Subnet], title: str
) -> candidates.Scores:
    """Scores each subnet once; the scores stay in the folder of the stage."""
    stage.begin()
    file = stage.folder / "scores.json"
    found = candidates.remembering(score, file, f"scores, {title}")(subnets)
    stage.finish()
    return found


def controls(rows: Sequence[dict], seed: int) -> dict[str, Scored]:
    """Returns scores that know nothing of what a subnet computes.

    Args:
      rows: `metrics.json` of each trained subnet, with its size and MACs.
      seed: Of the random score.
    """
    sizes = np.array([row["size_bytes"] for row in rows], np.float64)
    macs = np.array([row["macs"] for row in rows], np.float64)
    drawn = np.random.default_rng(seed).random(len(rows))
    return {
        "size": Scored("size", sizes, False),
        "macs": Scored("MACs", macs, False),
        "random": Scored("random", drawn),
    }


def network_predictions(
    subnets: Sequence[space.Subnet], rows: Table, in_float: Table, truth: np.ndarray, seed: int
) -> Scored:
    """Returns what APQ's predictor says of each subnet, trained on all others.

    It is trained on the NSR sums in float of many random subnets first, of which each costs
    nothing, and then with the bitwidths on the accuracies of the other subnets.

    Args:
      subnets: The subnets.
      rows: The table of the space.
      in_float: The table in float.
      truth: Accuracies, float64[subnets].
      seed: Of all draws.
    """
    ops, bits = rows.ops, sorted({b for pair in rows.bits for b in pair})
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    places = [rng.choice(usable(in_float, b), PRETRAINED_ON) for b in range(in_float.blocks)]
    free = [tuple(in_float.choices(row) for row in own) for own in zip(*places, strict=True)]
    of_ops = predictor.encode(free, ops, (FLOAT_BITS,))._replace(bits=None)
    sums = in_float.nsr[np.stack(places)].sum(0)
    start = predictor.train(key, of_ops, -predictor.standard(sums, sums))
    features, found = predictor.encode(subnets, ops, bits), []
    for left_out in range(len(subnets)):
        kept = np.arange(len(subnets)) != left_out
        aims = predictor.standard(truth[kept], truth[kept])
        own = predictor.rows_of(features, kept)
        trained = predictor.train(key, own, aims, predictor.Training(steps=100), start)
        alone = predictor.rows_of(features, ~kept)
        found.append(float(predictor.forward(trained, alone)[0]))  # of the others' deviation
    return Scored("network, transferred from float", np.array(found), False)


def predicted(title: str, noise: np.ndarray, truth: np.ndarray) -> Scored:
    """Returns what a weighted sum of noise, fitted on all other subnets, says of each."""
    return Scored(title, predictor.leave_one_out(noise, truth), False)


def everything(
    workdir: pathlib.Path,
    found: Searched,
    subnets: Sequence[space.Subnet],
    truth: np.ndarray,
    rows: Sequence[dict],
) -> tuple[dict[str, Scored], dict[str, np.ndarray]]:
    """Returns all scores by name, and the noise that the weighted sums read.

    Args:
      workdir: The folder of the run.
      found: The run.
      subnets: The subnets.
      truth: Their accuracies after training, float64[subnets].
      rows: See `controls`.
    """
    quantized = of_rows(found.rows, subnets)
    in_float = float_table(workdir, found)
    joined = composed(workdir, found, subnets)
    spos, fairnas = (one_shot(workdir, found, subnets, name) for name in SAMPLINGS)
    noise = {"nsr": quantized, "composed": joined.nsr}
    return {
        "nsr_float": Scored("NSR sum in float (16 bits)", of_rows(in_float, subnets).sum(1)),
        "nsr": Scored("NSR sum, quantized", quantized.sum(1)),
        "weighted": predicted("weighted NSR sum", quantized, truth),
        "composed": Scored("composed NSR", joined.nsr[:, -1]),
        "weighted_composed": predicted("weighted composed NSR", joined.nsr, truth),
        "network": network_predictions(
            subnets, found.rows, in_float, truth, found.begun.config.seed
        ),
        "composed_accuracy": Scored("accuracy of the composed blocks", joined.accuracy, False),
        "spos": Scored("SPOS", spos.accuracy, False),
        "fairnas": Scored("FairNAS", fairnas.accuracy, False),
        **controls(rows, found.begun.config.seed),
    }, noise  # fmt: skip

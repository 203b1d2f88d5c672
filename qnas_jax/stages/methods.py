"""What each method of quantization gives a network, by bitwidth."""

import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from qnas_jax.nn import policy
from qnas_jax.nn.trace import trace
from qnas_jax.run import recipes
from qnas_jax.run.log import Progress
from qnas_jax.run.stage import read_json
from qnas_jax.space import Bits
from qnas_jax.stages import evaluation, qat
from qnas_jax.stages.evaluation import Trained
from qnas_jax.stages.experiment import Problem
from qnas_jax.stages.fit import Training
from qnas_jax.tasks.task import evaluate

BEST = {"ranges": "best", "weight_ranges": "mse"}
ROUNDING = {"rounding_steps": 300}

# Settings of `recipes.Quantize` by the names of rows.
METHODS: dict[str, dict[str, Any]] = {
    "min_max": {"ranges": "min_max"},
    "percentile": {"ranges": "percentile"},
    "mse": {"ranges": "mse", "weight_ranges": "mse"},
    "kl": {"ranges": "kl", "weight_ranges": "kl"},
    "best": BEST,
    "best+equalize": {**BEST, "equalize": True},
    "best+biases": {**BEST, "biases": True},
    "best+norms": {**BEST, "norms": True},
    # Adaptive rounding takes weights as they are: clipped ones leave it less to choose.
    "mse+rounding": {"ranges": "mse", **ROUNDING},
    "mse+rounding+biases": {"ranges": "mse", **ROUNDING, "biases": True},
}
FLOAT = "float"
QAT, START = "qat", "mse"  # the row of quantization-aware training, and the one that it begins from


def scores(
    workdir: pathlib.Path,
    problem: Problem,
    how: Training,
    retrain: recipes.Retrain,
    trained: Trained,
    methods: Sequence[str],
    bits: Sequence[Bits],
    known: Collection[str],
) -> Iterator[tuple[str, float]]:
    """Yields scores on the validation images, in percent, by the names of `name_of`.

    The layers of searched blocks get the bitwidths; all else keeps 8 bits. Scores are those of the
    integers that a file computes.

    Args:
      workdir: The folder of the run, for what `QAT` trains.
      problem: The images, and the task.
      how: How the network was trained.
      retrain: How `QAT` trains it.
      trained: It.
      methods: Keys of `METHODS`, or `QAT`.
      bits: Bitwidths of weights and of activations.
      known: Names that are left out, but for those of `QAT`.
    """
    # The stages of `QAT` know what they were made from.
    cells = [(m, b) for m in methods for b in bits if m == QAT or name_of(m, b) not in known]
    if not cells and FLOAT in known:
        return
    # What a row does not name is off, whatever the config has.
    given = how.quantize.images, how.quantize.images_per_pass
    of_row = {
        name: how._replace(
            quantize=recipes.Quantize(*given, **METHODS[START if name == QAT else name])
        )
        for name in methods
    }
    for method, pair in cells:
        if method == QAT:  # another recipe is refused before anything takes long
            qat.stage_with_bits(workdir, of_row[QAT], retrain, trained, pair)
    variables, quant = evaluation.load_float(problem, how, trained)
    traced, task = trace(trained.model, problem.val[0][0].shape), problem.task

    def score(computed) -> float:
        found, _ = evaluate({"quantized": computed}, problem.val, how.run.eval_batch, task)
        return found[f"{task.metric.name}_quantized"]

    if FLOAT not in known:
        yield FLOAT, score(evaluation.in_float(task, trained.model, variables))
    progress = Progress("methods", len(cells))
    for number, (method, pair) in enumerate(cells, 1):
        own = of_row[method]
        if method == QAT:
            aware = qat.train_with_bits(workdir, problem, own, retrain, trained, pair)
            figures = read_json(aware.stage.folder / "metrics.json")
            yield name_of(method, pair), figures[f"{task.metric.name}_quantized"]
        else:
            names = {unit.name: pair for unit in traced.units if unit.site}
            policy_ = policy.with_policy(quant, names)
            coded, found = evaluation.post_trained(problem, own, trained, variables, policy_)
            shape = problem.val[0][0].shape
            computed = evaluation.simulated(task, trained.model, coded, found, shape)
            yield name_of(method, pair), score(computed)
        progress.show(number)


def name_of(method: str, bits: Bits) -> str:
    """Returns the name of a score."""
    return f"{method}/w{bits[0]}a{bits[1]}"


def as_text(found: Mapping[str, float], methods: Sequence[str], bits: Sequence[Bits]) -> str:
    """Returns the scores as a table for a terminal."""
    lines = [f"{'':22}" + "".join(f"{f'w{w}a{a}':>9}" for w, a in bits)]
    for method in methods:
        cells = (f"{found[name_of(method, pair)]:9.2f}" for pair in bits)
        lines.append(f"{method:22}" + "".join(cells))
    return "\n".join([*lines, f"{FLOAT:22}{found[FLOAT]:9.2f}"])

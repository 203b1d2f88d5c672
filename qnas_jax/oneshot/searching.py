"""The stages that search: subnets are scored with the shared weights, each once.

A search that was stopped finds the same when it is resumed: its draws depend on the seed alone, and
the scores it had are kept.
"""

import json
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from qnas_jax import space
from qnas_jax.oneshot import coding, evolving, training
from qnas_jax.oneshot.evolving import NO_BUDGET, Scored, Searched
from qnas_jax.oneshot.experiment import Begun
from qnas_jax.run import artefacts
from qnas_jax.run.stage import Stage, reading
from qnas_jax.stages import candidates, fit
from qnas_jax.stages.candidates import Score
from qnas_jax.stages.experiment import Purpose, key

ALGORITHMS = {"evolution": evolving.evolved, "nsga2": evolving.spread_out}


class Found(NamedTuple):
    """What a search has found.

    Attributes:
      stage: Its stage.
      share: The budget as the config has it; 0 for a front.
      chosen: The subnets that are trained to the end.
      scored: All that were scored, in this order.
    """

    stage: Stage
    share: float
    chosen: list[Scored]
    scored: list[Scored]


def search(workdir: pathlib.Path, begun: Begun, trained: training.Trained) -> list[Found]:
    """Runs the search of each budget, or that of the front; returns what they found.

    Args:
      workdir: The folder of the run.
      begun: The run.
      trained: The supernet.
    """
    own = begun.config.oneshot
    given = training.setting(begun.problem, fit.training(begun.config), own, begun.held_out)
    score = training.scorer(trained, given)
    shares = own.budgets if own.search == "evolution" else (0.0,)
    return [found(workdir, begun, trained.stage, score, share) for share in shares]


def found(
    workdir: pathlib.Path, begun: Begun, supernet: Stage, score: Score, share: float
) -> Found:
    """Runs a search that is not finished; returns what it found.

    Args:
      workdir: The folder of the run.
      begun: The run.
      supernet: The stage of the shared weights.
      score: Scores subnets with them.
      share: The budget as the config has it; 0 for a front.
    """
    own, stage = begun.config.oneshot, stage_of(workdir, begun, supernet, share)
    file = stage.folder / "subnets.json"
    if not (stage.done and file.exists()):
        stage.begin()
        _search(begun, score, share, stage)
        stage.finish()
    scored = read(file)
    if own.search == "evolution":
        return Found(stage, share, [evolving.best(scored)], scored)
    return Found(stage, share, evolving.spread(scored, begun.config.retrain.subnets), scored)


def stage_of(workdir: pathlib.Path, begun: Begun, supernet: Stage, share: float) -> Stage:
    """Returns the stage of a search; see `found`."""
    own, target = begun.config.oneshot, begun.deployed.target.name
    costs = begun.costs[own.cost]
    scoring = ("candidates", "images", "images_per_pass", "norm_images", "ranges")
    made_from = {
        "supernet": supernet.hash,
        "search": own.search,
        "cost": own.cost,
        "costs": artefacts.digest([costs.layers.tolist(), costs.fixed]),
        "budget": share,
        "bits": [list(pair) for pair in begun.coded.bits],
        "bits_per": begun.config.space.bits_per,
        "seed": begun.config.seed,
        **{name: getattr(own, name) for name in scoring},
    }
    bound = f"{share:g}" if share else "front"
    return Stage(workdir / "oneshot" / f"{target}-{own.cost}-{bound}", made_from)


def _search(begun: Begun, score: Score, share: float, stage: Stage) -> None:
    """Writes all subnets that a search scores."""
    own, coded, costs = begun.config.oneshot, begun.coded, begun.costs[begun.config.oneshot.cost]
    remembered = candidates.remembering(
        score, stage.folder / "scores.json", f"subnets {stage.folder.name}", own.at_once
    )

    def accuracies(genes: np.ndarray) -> np.ndarray:
        return remembered(coding.subnets_at(coded, genes)).accuracy

    budget = begun.budgets[share] if share else NO_BUDGET
    given = Searched(coded, costs, budget, coding.cheapest(coded, costs, own.cost))
    # By the budget itself, so that a further one changes no other search.
    number = int(artefacts.digest(float(share))[:7], 16)
    drawn = jax.random.fold_in(key(begun.config.seed, Purpose.SUPERNET_PATHS), number)
    tried = ALGORITHMS[own.search](drawn, accuracies, given, own.candidates)
    subnets = map(space.format_subnet, coding.subnets_at(coded, tried.genes))
    values = coding.costs_of(coded, costs, tried.genes).tolist()
    rows = [list(row) for row in zip(subnets, values, tried.accuracy.tolist(), strict=True)]
    artefacts.write_json(stage.folder / "subnets.json", {"subnets": rows})


def read(file: pathlib.Path) -> list[Scored]:
    """Returns the subnets that a search scored, in this order.

    Raises:
      InputError: The file is missing or damaged.
    """
    with reading(file) as content:
        rows = json.load(content)["subnets"]
        return [Scored(space.parse_subnet(s), float(c), float(a)) for s, c, a in rows]

"""The order of the stages.

    images > network > agents > rivals > tests > retrained networks > files > report

Each stage finds its inputs, is skipped or resumed (see `run/stage.py`), and leaves its files in
the folder of the run.
"""

import dataclasses
import functools
import logging
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qnas_jax.data.batching import stacked
from qnas_jax.haq import agents, blockwise, env, experiment, rivals
from qnas_jax.haq.config import Config
from qnas_jax.haq.costs import TABLE, Goal
from qnas_jax.haq.ddpg import DDPG
from qnas_jax.haq.experiment import Begun, begin
from qnas_jax.haq.results import as_text, write_results
from qnas_jax.haq.rivals import Found
from qnas_jax.run import artefacts, disk, processes
from qnas_jax.run.stage import Stage
from qnas_jax.search import allocation
from qnas_jax.stages import export as export_stage
from qnas_jax.stages import fit, policies
from qnas_jax.stages.evaluation import Trained
from qnas_jax.stages.experiment import Purpose
from qnas_jax.stages.scoring import Evaluate, Tested, remembering
from qnas_jax.train import loop

logger = logging.getLogger(__name__)

FOUND = "found.json"  # what every method found

__all__ = ["as_text", "begin", "run"]


def run(given: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs every stage that is not finished; returns the content of `haq/results.json`.

    Only one process at a time may do that in a folder, or several that work together: they train
    the network, then the first does the rest, and the others return {}.

    Raises:
      InputError: A setting, an image or a file of the run cannot be used.
      Diverged: A loss or a state is no longer finite.
      Stopped: SIGTERM came; the same call resumes the run.
    """
    begun = begin(given, workdir)
    return processes.by_first("haq", functools.partial(_search_and_train, begun, workdir)) or {}


def _search_and_train(begun: Begun, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs all stages after that of the network, in one process."""
    tested, haq, stage = experiment.tested(begun), begun.config.haq, _stage(workdir, begun)
    stage.begin()
    scored = experiment.scorer(begun, tested, begun.rewards, haq.steps, haq.lr)
    at_once = haq.policies_per_pass
    reward = remembering(scored, stage.folder / "scores.npz", "policies", at_once)
    original = experiment.float_accuracy(begun, tested)
    found = _search(workdir, begun, stage, reward, original)
    found += _rivals(begun, stage, reward) + _block_table(begun, tested, stage)
    final = {"steps": haq.final_steps, "lr": haq.final_lr}
    tester = experiment.scorer(begun, tested, begun.problem.val, **final)
    file = stage.folder / f"tests-{artefacts.digest(final)}.npz"
    test = remembering(tester, file, "tests", at_once)
    trained = _retrain(workdir, begun, tested, stage, found, reward)
    stage.finish()
    return write_results(workdir, begun, stage, found, original, reward, test, trained)


# What neither agents nor rivals depend on.
_LATER = ("methods", "images_per_pass", "policies_per_pass", "final_steps", "final_lr", "exports")


def _stage(workdir: pathlib.Path, begun: Begun) -> Stage:
    """The stage of agents and rivals."""
    haq, agent = artefacts.plain(begun.config.haq), begun.config.agent
    for name in _LATER:
        del haq[name]
    if any(target.startswith(f"{TABLE}:") for target in haq["targets"]):
        # Its content counts, not its path.
        haq["table"] = artefacts.digest(disk.read(pathlib.Path(haq["table"])).decode("latin1"))
    else:
        del haq["table"]
    made_from = {"network": begun.network.stage.hash, "haq": haq, "agent": agent}
    return Stage(workdir / "haq", made_from)


def _search(
    workdir: pathlib.Path, begun: Begun, stage: Stage, reward: Evaluate, original: float
) -> list[Found]:
    """Runs all agents, side by side: each goal with each seed."""
    if "haq" not in begun.config.haq.methods:
        return []
    seeds = _seeds(begun.config)
    team = [(goal, seed) for goal in begun.goals for seed in seeds]

    @functools.cache  # only where a goal's result is not known yet
    def learned() -> tuple[agents.State, float]:
        state = _learned(workdir, begun, stage, team, reward, original)
        return state, round(stage.elapsed() / len(team), 3)

    def of_goal(goal):
        state, seconds = learned()
        for number, (own, seed) in enumerate(team):
            if own is goal:
                best = agents.best_of(state, number)
                asked = len({p.tobytes() for p in best.policies})
                yield Found(goal, "haq", seed, best.bits, asked, seconds)

    file = stage.folder / FOUND
    of_goals = (rivals.once(file, g, "haq", lambda g=g: list(of_goal(g))) for g in begun.goals)
    return [one for of_goal in of_goals for one in of_goal]


def _learned(
    workdir: pathlib.Path,
    begun: Begun,
    stage: Stage,
    team: list[tuple[Goal, int]],
    reward: Evaluate,
    original: float,
) -> agents.State:
    """The agents after all episodes; writes their curves."""
    config, layers = begun.config, begun.layers
    world = agents.worlds(
        layers, [g.choices.cost for g, _ in team], [g.choices.budget for g, _ in team]
    )
    if config.haq.order == "sensitivity":
        world = agents.ordered(world, layers, _order(begun, reward))
    how = DDPG(**artefacts.plain(config.agent) | {"hidden": tuple(config.agent.hidden)})
    root = jax.random.fold_in(jax.random.PRNGKey(config.seed), Purpose.AGENTS)
    keys = [jax.random.fold_in(root, seed) for _, seed in team]
    state = agents.fresh(keys, how, layers, config.haq.episodes)
    trim = env.from_highest if config.haq.order == "highest" else env.within_budget
    one = agents.episode(how, layers, world, lambda bits: reward(bits).accuracy, original, trim)
    state = _fit(workdir, config, stage, one, state)
    curves = {"accuracy": np.asarray(state.accuracy), "bits": np.asarray(state.bits)}
    with artefacts.writing(stage.folder / "curves.npz") as file:
        np.savez_compressed(file, allow_pickle=False, **curves)
    return state


def _seeds(config: Config) -> list[int]:
    return [config.seed + i for i in range(config.haq.seeds)]


def _order(begun: Begun, reward: Evaluate) -> np.ndarray:
    """The slots by the loss that they add at a middle bitwidth, the smallest first."""
    choices = begun.goals[0].choices._replace(budget=np.inf)
    added = allocation.sensitivities(lambda p: reward(p).loss, choices)
    middle = (choices.least.min() + choices.most.max()) // 2
    return np.argsort(added[:, :, middle].ravel(), kind="stable")


def _fit(workdir, config: Config, stage: Stage, one, state: agents.State) -> agents.State:
    """Runs the episodes with checkpoints, metrics and progress, as a training's steps."""

    def steps(state, images, labels, numbers):
        found: list[dict[str, float]] = []
        for number in np.asarray(numbers):
            state, figures = one(state, int(number))
            found.append(figures)
        return state, {name: jnp.array([f[name] for f in found]) for name in found[0]}

    watched = loop.Watched(
        "the agents", "critic_error", lambda _: config.agent.critic_lr, "agent.critic_lr",
        lambda state: state,
    )  # fmt: skip
    planned = loop.Plan(
        "episodes", config.haq.episodes, stage.folder / "checkpoint", [watched],
        config.run.save_every, config.run.log_every,
    )  # fmt: skip
    return fit.fit(workdir, planned, steps, state, lambda _: loop.NO_BATCH)


def _rivals(begun: Begun, stage: Stage, reward: Evaluate) -> list[Found]:
    """Runs the other methods, one after another, for all goals."""
    haq = begun.config.haq
    effort = rivals.Effort(_seeds(begun.config), haq.episodes, haq.per_round)
    found = []
    for method in haq.methods:
        for goal in begun.goals if method not in ("haq", "lut") else ():
            make = functools.partial(rivals.run, goal, method, effort, reward)
            found += rivals.once(stage.folder / FOUND, goal, method, make)
    return found


def _block_table(begun: Begun, tested: Tested, stage: Stage) -> list[Found]:
    """What the table of noise says for each goal; see `blockwise`."""
    if "lut" not in begun.config.haq.methods:
        return []
    groups = blockwise.groups_of(begun.traced)
    tables = [blockwise.policies_of(group, begun.goals[0].choices) for group in groups]
    size = begun.config.haq.images_per_pass
    images = stacked(begun.rewards, range(min(size, len(begun.rewards)))).images
    of_group = blockwise.noise(tested, images, experiment.norm_images(begun))

    def of_goal(goal: Goal):
        start = time.monotonic()
        noises = [
            remembering(of_group(n), stage.folder / f"noise{n + 1}.npz", f"block {n + 1}")(table)
            for n, table in enumerate(tables)
        ]
        bits = blockwise.choose(tables, [noise.loss for noise in noises], goal.choices)
        took = round(time.monotonic() - start, 3)
        yield Found(goal, "lut", 0, bits, sum(map(len, tables)), took)

    file = stage.folder / FOUND
    of_goals = (rivals.once(file, g, "lut", lambda g=g: list(of_goal(g))) for g in begun.goals)
    return [one for of_goal in of_goals for one in of_goal]


def _retrain(
    workdir: pathlib.Path,
    begun: Begun,
    tested: Tested,
    stage: Stage,
    found: list[Found],
    reward: Evaluate,
) -> dict[str, Trained]:
    """Trains the best policy of the agents for each goal to the end, and writes its files."""
    config = begun.config
    if not config.haq.exports or config.haq.quantizer == "kmeans":
        return {}
    how = fit.training(config)
    # As the tests train; see `experiment.scorer`.
    own = policies.recipe(config.haq.final_steps, config.haq.final_lr)
    how = how._replace(train=dataclasses.replace(how.train, **own))
    trained = {}
    for goal in begun.goals:
        of_goal = [f for f in found if f.goal is goal and f.method == "haq"]
        if not of_goal:
            continue
        accuracies = reward(np.stack([f.bits for f in of_goal])).accuracy
        best = of_goal[int(np.argmax(accuracies))]
        # Other settings of the last training have other folders.
        name = f"{goal.device}-{goal.cost_name}-{goal.title}-{artefacts.digest(own)[:6]}"
        made_from = {"haq": stage.hash, "policy": best.bits.tolist(), **own}
        own_stage = Stage(workdir / "retrain" / name, made_from)
        one = Trained(own_stage, begun.network.model, begun.network.subnet, policies.NETWORK)
        under = policies.UnderPolicy(
            tested.quantize, best.bits.astype(np.int32), f"retrain {name}",
            experiment.tuning_key(config), experiment.norm_images(begun),
        )  # fmt: skip
        policies.train_policy(workdir, begun.problem, how, one, begun.variables, under)
        export_stage.export(workdir, begun.problem, how, begun.deployed, one)
        trained[name] = one
    folders = [workdir / "export" / name for name in trained]
    export_stage.check(folders, begun.problem.task, config.export.max_drop)
    return trained

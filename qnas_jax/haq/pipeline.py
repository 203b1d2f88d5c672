"""The order of the stages.

    images > network > agents > rivals > tests > retrained networks > files > report

Each stage finds its inputs, is skipped or resumed (see `run/stage.py`), and leaves its files in
the folder of the run.
"""

import dataclasses
import logging
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from qnas_jax.data.batching import Part, central_crops
from qnas_jax.haq import env, networks, quantizers, rivals
from qnas_jax.haq import search as agents
from qnas_jax.haq.config import Config
from qnas_jax.haq.costs import Goal, goals
from qnas_jax.haq.ddpg import DDPG
from qnas_jax.haq.env import Layers
from qnas_jax.haq.evaluate import Evaluate, Tested, Tuning, batches, evaluator, remembering
from qnas_jax.haq.results import as_text, write_results
from qnas_jax.haq.rivals import Found
from qnas_jax.nn import init
from qnas_jax.nn.trace import Trace, trace
from qnas_jax.run import artefacts
from qnas_jax.run.stage import Stage
from qnas_jax.search import allocation
from qnas_jax.stages import export as export_stage
from qnas_jax.stages import fit, policies
from qnas_jax.stages import train as train_stage
from qnas_jax.stages.experiment import Problem, Purpose, key, prepare
from qnas_jax.stages.train import Trained
from qnas_jax.train import loop
from qnas_jax.train.optimizers import sgd

logger = logging.getLogger(__name__)

__all__ = ["as_text", "begin", "run"]


class Begun(NamedTuple):
    """A run whose network is trained in float.

    Attributes:
      config: Its config.
      problem: Images and task; the training split without the images of the rewards.
      rewards: The images of the rewards.
      deployed: The size of deployed images.
      network: The network.
      variables: Its `params` and `batch_stats`.
      traced: Its units.
      layers: What is chosen.
      goals: Costs and budgets.
    """

    config: Config
    problem: Problem
    rewards: Part
    deployed: Any
    network: Trained
    variables: PyTree
    traced: Trace
    layers: Layers
    goals: list[Goal]


def begin(given: Config, workdir: pathlib.Path) -> Begun:
    """Prepares the run and trains the network in float.

    Raises:
      InputError: A setting, an image or a file cannot be used; before anything takes long.
    """
    given.check()
    config, problem, deployed = prepare(given)
    count = len(problem.train) - config.haq.reward_images
    rewards = Part(problem.train, range(count, len(problem.train)))
    model, subnet = networks.network(config, problem)
    problem = problem._replace(train=Part(problem.train, range(count)), teacher=model)
    traced = trace(model, problem.val[0][0].shape)
    kmeans = config.haq.quantizer == "kmeans"
    networks.check(traced, config.haq.network)
    lead = quantizers.lead_of(traced)
    how = {"bounds": (1, 8), "chooses": (True, False), "pinned": ()} if kmeans else {}
    layers = env.describe(traced.convs, lead, **how)
    wanted = goals(
        config.haq.targets, config.haq.budgets, config.haq.table, traced.convs, layers, kmeans
    )
    training = fit.training(config)
    train_stage.teacher_stage(workdir, problem, training, config.network, config.teacher)
    if not (workdir / "config.json").exists():
        artefacts.write_json(workdir / "config.json", config)
    network, variables = train_stage.train_teacher(
        workdir, problem, training, config.network, config.teacher
    )
    network = network._replace(subnet=subnet)
    return Begun(config, problem, rewards, deployed, network, variables, traced, layers, wanted)


def run(given: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs every stage that is not finished; returns the content of `haq/results.json`.

    Only one process at a time may do that in a folder.

    Raises:
      InputError: A setting, an image or a file of the run cannot be used.
      Diverged: A loss or a state is no longer finite.
      Stopped: SIGTERM came; the same call resumes the run.
    """
    begun = begin(given, workdir)
    tested = Tested(begun.network.model, begun.problem.task, begun.variables, _quantize(begun))
    stage = _stage(workdir, begun)
    stage.begin()
    reward = remembering(
        _evaluator(begun, tested, begun.rewards, begun.config.haq.steps, begun.config.haq.lr),
        stage.folder / "scores.npz",
        "policies",
    )
    original = _float_accuracy(begun, tested)
    found = _search(workdir, begun, stage, reward, original)
    found += _rivals(begun, reward)
    test = remembering(
        _evaluator(
            begun,
            tested,
            begun.problem.val,
            begun.config.haq.final_steps,
            begun.config.haq.final_lr,
        ),
        stage.folder / "tests.npz",
        "tests",
    )
    trained = _retrain(workdir, begun, tested, stage, found, reward)
    stage.finish()
    return write_results(workdir, begun, stage, found, original, reward, test, trained)


def _stage(workdir: pathlib.Path, begun: Begun) -> Stage:
    """The stage of agents and rivals."""
    config = begun.config
    made_from = {"network": begun.network.stage.hash, "haq": config.haq, "agent": config.agent}
    return Stage(workdir / "haq", made_from)


def _quantize(begun: Begun) -> quantizers.Quantize:
    """What a policy does to the network."""
    config, model = begun.config, begun.network.model
    if config.haq.quantizer == "kmeans":
        return quantizers.shared(begun.traced, begun.variables["params"])
    crop, per_pass = config.train.crop, config.quantize.images_per_pass
    fresh = init.initialize(model, key(config.seed, Purpose.TEACHER_INIT), (1, *crop, 3))
    images = (
        central_crops(
            begun.problem.train, range(s, min(s + per_pass, config.quantize.images)), crop
        )
        for s in range(0, config.quantize.images, per_pass)
    )
    return quantizers.linear(
        model, begun.traced, begun.variables, fresh["quant"], images, config.haq.ranges
    )


def _evaluator(begun: Begun, tested: Tested, images: Any, steps: int, lr: float) -> Evaluate:
    """Scores policies on images, each after some steps of training."""
    config, how = begun.config, fit.training(begun.config)
    tuning = None
    if steps:
        optimizer = sgd(lr, steps, 1.0, config.train.momentum, config.train.weight_decay)
        make_batch = fit.batches(begun.problem.train, how, config.train.batch)
        tuning = Tuning(steps, optimizer, make_batch, key(config.seed, Purpose.TUNING))
    held, count = batches(images, config.haq.images_per_pass), config.haq.norm_images
    norms = central_crops(begun.problem.train, range(count), config.train.crop) if count else None
    return evaluator(tested, held, norms, tuning, config.haq.policies_per_pass)


def _float_accuracy(begun: Begun, tested: Tested) -> float:
    """Accuracy on the images of the rewards, in float; policies are compared with it."""
    floats = tested._replace(quantize=lambda params, bits: {"params": params})
    held = batches(begun.rewards, begun.config.haq.images_per_pass)
    none = np.asarray(begun.layers.most)[None]
    accuracy = float(evaluator(floats, held)(none).accuracy[0])
    title = begun.problem.task.metric.title
    logger.info("haq: %s %.2f %% in float on the images of the rewards", title, accuracy)
    return accuracy


def _search(
    workdir: pathlib.Path, begun: Begun, stage: Stage, reward: Evaluate, original: float
) -> list[Found]:
    """Runs all agents, side by side: each goal with each seed."""
    config, layers = begun.config, begun.layers
    if "haq" not in config.haq.methods:
        return []
    team = [(goal, seed) for goal in begun.goals for seed in _seeds(config)]
    world = agents.worlds(
        layers, [g.choices.cost for g, _ in team], [g.choices.budget for g, _ in team]
    )
    if config.haq.order == "sensitivity":
        world = agents.ordered(world, layers, _order(begun, reward))
    how = DDPG(**artefacts.plain(config.agent) | {"hidden": tuple(config.agent.hidden)})
    root = jax.random.fold_in(jax.random.PRNGKey(config.seed), Purpose.AGENTS)
    keys = [jax.random.fold_in(root, seed) for _, seed in team]
    state = agents.fresh(keys, how, layers, config.haq.episodes)
    one = agents.episode(how, layers, world, lambda b: _accuracies(reward, b), original)
    state = _fit(workdir, config, stage, one, state)
    curves = {"accuracy": np.asarray(state.accuracy), "bits": np.asarray(state.bits)}
    with artefacts.writing(stage.folder / "curves.npz") as file:
        np.savez_compressed(file, allow_pickle=False, **curves)
    seconds = stage.elapsed() / len(team)
    found = []
    for number, (goal, seed) in enumerate(team):
        best = agents.best_of(state, number)
        asked = len({p.tobytes() for p in best.policies})
        found.append(Found(goal, "haq", seed, best.bits, asked, round(seconds, 3)))
    return found


def _seeds(config: Config) -> list[int]:
    return [config.seed + i for i in range(config.haq.seeds)]


def _accuracies(reward: Evaluate, bits: np.ndarray) -> np.ndarray:
    """Accuracies of the policies of all agents, of which some may be equal."""
    return reward(bits).accuracy


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


def _rivals(begun: Begun, reward: Evaluate) -> list[Found]:
    haq = begun.config.haq
    effort = rivals.Effort(_seeds(begun.config), haq.episodes, haq.per_round)
    found = []
    for method in haq.methods:
        for goal in begun.goals if method != "haq" else ():
            logger.info("haq: %s for %s", method, goal)
            found += rivals.run(goal, method, effort, reward)
    return found


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
    own = {"steps": config.haq.final_steps, "lr": config.haq.final_lr, "optimizer": "sgd",
           "warmup": 0}  # fmt: skip
    how = how._replace(train=dataclasses.replace(how.train, **own))
    trained = {}
    for goal in begun.goals:
        of_goal = [f for f in found if f.goal is goal and f.method == "haq"]
        if not of_goal:
            continue
        accuracies = reward(np.stack([f.bits for f in of_goal])).accuracy
        best = of_goal[int(np.argmax(accuracies))]
        name = f"{goal.device}-{goal.cost_name}-{goal.title}"
        made_from = {"haq": stage.hash, "policy": best.bits.tolist()}
        one = policies.train_policy(
            workdir, begun.problem, how, Stage(workdir / "retrain" / name, made_from),
            begun.network.model, begun.variables, tested.quantize, best.bits.astype(np.int32),
            f"retrain {name}", begun.network.subnet,
        )  # fmt: skip
        export_stage.export(workdir, begun.problem, how, begun.deployed, one)
        trained[name] = one
    folders = [workdir / "export" / name for name in trained]
    export_stage.check(folders, begun.problem.task, config.export.max_drop)
    return trained

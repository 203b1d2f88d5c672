"""Episodes per second of the HAQ search, against the published loop in torch.

The network, images, targets and agents are those of configs/haq_objects.py: half of MobileNetV2's
width at 48 x 48 pixels, 53 convolutions, 106 updates an episode. Both score a policy alike: the
batch norms take their statistics anew, of 64 images, then the images of the rewards are scored,
without training; no score is remembered. Torch has one agent; ours may run several side by side.

    python launch/bench/main.py haq --json haq.json

An episode has three parts: the agents propose policies, the policies are scored, the agents learn
(an update for each step). The fastest episode counts; the parts are those of that episode. The
first, which compiles and is the only one of the warm-up, is left out. Torch runs its episodes on
all cores and on one, as its small updates may be faster there; on a GPU, where ours runs on one, it
runs there too. Ratios are to the fastest.
"""

import argparse
import functools
import importlib
import runpy
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from qnas_jax.data.batching import Batch, Part, central_crops
from qnas_jax.errors import InputError
from qnas_jax.haq import agents, config, costs, env, networks
from qnas_jax.haq.ddpg import DDPG
from qnas_jax.nn import init, weights
from qnas_jax.nn.trace import Trace, trace
from qnas_jax.run import artefacts, paths
from qnas_jax.stages import experiment, quantizers
from qnas_jax.stages.scoring import Tested, batches, evaluator

CONFIG = "configs/haq_objects.py"
SIDE_BY_SIDE = "1,9,27"
REPEATS = 3
PARTS = ("propose_s", "score_s", "update_s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subject."""
    parser.add_argument("--agents", type=int, default=4, help="side by side in timed episodes")
    parser.add_argument("--episodes", type=int, default=REPEATS, help="that are timed")
    parser.add_argument("--images", type=int, default=250, help="on which policies are scored")
    parser.add_argument(
        "--side-by-side", default=SIDE_BY_SIDE, help="agents whose updates alone are timed"
    )
    parser.add_argument("--per-pass", type=int, default=1, help="policies scored by one program")
    parser.add_argument("--config", default=CONFIG, help="the config file of the search")
    parser.add_argument("--no-torch", action="store_true")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures updates alone, then whole episodes; prints a table; returns the figures."""
    teams = sorted({int(n) for n in arguments.side_by_side.split(",") if n})
    asked = {name: getattr(arguments, name) for name in ("agents", "episodes", "per_pass")}
    for name, value in asked.items():
        if value < 1:
            raise InputError(f"--{name.replace('_', '-')}={value}: must be at least 1")
    begin = time.perf_counter()
    case = _prepared(str(paths.named("--config", arguments.config)), arguments.images)
    convs, how = case.traced.convs, case.how
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {len(convs)} convolutions, ",
        end="",
    )
    print(f"{arguments.images} images, batch norms of {len(case.norm_images)}")
    figures: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "convolutions": len(convs),
        "updates_per_episode": len(case.layers.slots),
        "hidden": list(how.hidden),
        "batch": how.batch,
        "images": arguments.images,
        "per_pass": arguments.per_pass,
        "norm_images": len(case.norm_images),
        "prepare_s": time.perf_counter() - begin,
    }
    print("agents  propose s  update s  update s per agent  compile s")
    figures["side_by_side"] = [_team(case, number) for number in teams]
    figures |= _episodes(case, arguments)
    for name, value in figures.items():
        if isinstance(value, float):
            print(f"{name:28s} {value:.4g}")
        elif name.startswith("torch"):
            print(f"{name:28s} {', '.join(f'{n} {v:.4g}' for n, v in value.items())}")
    return figures


class Case(NamedTuple):
    """What is searched.

    Attributes:
      tested: The network, and what a policy does to it.
      traced: Its units.
      layers: Its layers.
      goals: Costs and budgets, which the agents take in turns.
      how: The constants of the agents.
      rewards: The images on which policies are scored.
      norm_images: Those of which batch norms take their statistics.
    """

    tested: Tested
    traced: Trace
    layers: env.Layers
    goals: list[costs.Goal]
    how: DDPG
    rewards: list[Batch]
    norm_images: np.ndarray


def _prepared(file: str, images: int) -> Case:
    """The run of a config up to its search; random weights where it names no file of them."""
    given: config.Config = runpy.run_path(file)["get_config"]()
    given.haq.reward_images = images
    given.check()
    given, problem, _ = experiment.prepare(given)
    haq, crop = given.haq, given.train.crop
    model, _ = networks.network(given, problem)
    fresh = init.initialize(model, jax.random.key(0), (1, *crop, 3))
    variables = {kind: fresh[kind] for kind in weights.KINDS}
    if given.teacher.checkpoint:
        variables = weights.load(
            paths.named("teacher.checkpoint", given.teacher.checkpoint), model, variables
        )
    traced = trace(model, problem.val[0][0].shape)
    layers = env.describe(traced.convs, quantizers.lead_of(traced))
    goals = costs.goals(haq.targets, haq.budgets, haq.table, traced.convs, layers, kmeans=False)
    count = len(problem.train) - images
    per_pass = given.quantize.images_per_pass
    seen = (
        central_crops(problem.train, range(s, min(s + per_pass, given.quantize.images)), crop)
        for s in range(0, given.quantize.images, per_pass)
    )
    quantize = quantizers.linear(model, traced, variables, fresh["quant"], seen, haq.ranges)
    how = DDPG(**artefacts.plain(given.agent) | {"hidden": tuple(given.agent.hidden), "warmup": 1})
    rewards = batches(Part(problem.train, range(count, len(problem.train))), haq.images_per_pass)
    norm_images = central_crops(problem.train, range(haq.norm_images), crop)
    tested = Tested(model, problem.task, variables, quantize)
    return Case(tested, traced, layers, goals, how, rewards, norm_images)


class _Agents:
    """Some agents side by side; each call is an episode."""

    def __init__(self, case: Case, number: int, episodes: int, evaluate: Callable):
        chosen = [case.goals[i % len(case.goals)].choices for i in range(number)]
        world = agents.worlds(case.layers, [c.cost for c in chosen], [c.budget for c in chosen])
        keys = [jax.random.fold_in(jax.random.PRNGKey(0), i) for i in range(number)]
        self._state = agents.fresh(keys, case.how, case.layers, episodes)
        self._evaluate, self._scored, self._number = evaluate, (0.0, 0.0), 0
        self._run = agents.episode(case.how, case.layers, world, self._timed, original=0.0)

    def _timed(self, bits: np.ndarray) -> np.ndarray:
        begin = time.perf_counter()
        accuracy = self._evaluate(bits)
        self._scored = begin, time.perf_counter()
        return accuracy

    def __call__(self) -> dict[str, float]:
        """Seconds of the parts of an episode."""
        begin = time.perf_counter()
        self._state, _ = jax.block_until_ready(self._run(self._state, self._number))
        self._number += 1
        return _parts(begin, *self._scored, time.perf_counter())


def _parts(*times: float) -> dict[str, float]:
    """Seconds between the times, and in all."""
    found = dict(zip(PARTS, np.diff(times).tolist(), strict=True))
    return {**found, "episode_s": sum(found.values())}


def _fastest(episodes: list[dict[str, float]]) -> dict[str, float]:
    return min(episodes, key=lambda one: one["episode_s"])


def _timed(peer: Any) -> dict[str, float]:
    return _parts(*peer())


def _team(case: Case, number: int) -> dict[str, Any]:
    """Agents that propose and learn; no policy is scored."""
    agents = _Agents(case, number, REPEATS + 1, lambda bits: np.zeros(len(bits)))
    first = agents()
    best = _fastest([agents() for _ in range(REPEATS)])
    found = {
        "agents": number,
        "propose_s": best["propose_s"],
        "update_s": best["update_s"],
        "propose_s_per_agent": best["propose_s"] / number,
        "update_s_per_agent": best["update_s"] / number,
        "compile_s": max(first["episode_s"] - best["episode_s"], 0.0),
    }
    print(f"{number:6} {found['propose_s']:10.4f} {found['update_s']:9.3f} ", end="")
    print(f"{found['update_s_per_agent']:19.4f} {found['compile_s']:10.1f}", flush=True)
    return found


def _episodes(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """Whole episodes; with torch's, in turns."""
    evaluate = evaluator(case.tested, case.rewards, case.norm_images, width=arguments.per_pass)
    count = arguments.agents
    agents = _Agents(case, count, arguments.episodes + 1, lambda bits: evaluate(bits).accuracy)
    first, sides, result = agents(), [agents], {}
    peers: dict[str, Callable] = {}
    if not arguments.no_torch:
        peers, differences = importlib.import_module("haq_torch").peers(case, evaluate)
        result |= differences
        sides += [functools.partial(_timed, peer) for peer in peers.values()]
    times = [[side() for side in sides] for _ in range(arguments.episodes)]
    best, *torchs = [_fastest(list(of_side)) for of_side in zip(*times, strict=True)]
    return _rated(count, first, best, dict(zip(peers, torchs, strict=True))) | result


def _rated(
    agents: int,
    first: dict[str, float],
    best: dict[str, float],
    torchs: dict[str, dict[str, float]],
) -> dict[str, Any]:
    """The figures that follow from seconds.

    Args:
      agents: Number of agents.
      first: Seconds of their first episode.
      best: Seconds of their fastest episode.
      torchs: Seconds of torch's fastest episode, by where it ran; may be empty.
    """
    found: dict[str, Any] = {"agents": agents, **best}
    for name in PARTS:
        found[f"{name}_per_agent"] = best[name] / agents
    for name in PARTS:
        found[f"{name.removesuffix('_s')}_share"] = best[name] / best["episode_s"]
    for name in PARTS:
        compiled = max(first[name] - best[name], 0.0)
        found[f"{name.removesuffix('_s')}_compile_s"] = compiled
    found["compile_s"] = sum(found[f"{n.removesuffix('_s')}_compile_s"] for n in PARTS)
    found["episodes_per_s"] = agents / best["episode_s"]
    for name, one in torchs.items():
        figures = {"episodes_per_s": 1 / one["episode_s"], **one}
        figures["ratio"] = found["episodes_per_s"] * one["episode_s"]
        found[f"torch_{name}"] = figures
    if torchs:
        fastest = _fastest(list(torchs.values()))
        found["ratio_torch"] = found["episodes_per_s"] * fastest["episode_s"]
        for name in PARTS:
            ratio = fastest[name] / found[f"{name}_per_agent"]
            found[f"ratio_torch_{name.removesuffix('_s')}"] = ratio
    return found

"""A run of HAQ before its first episode: images, network, layers, goals, and how to score."""

import logging
import pathlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Key, PyTree

from qnas_jax.data.batching import Part, central_crops
from qnas_jax.haq import blockwise, env, networks
from qnas_jax.haq.config import Config
from qnas_jax.haq.costs import Goal, goals
from qnas_jax.haq.env import Layers
from qnas_jax.hardware.target import check_per_channel, check_w_bits
from qnas_jax.nn import init
from qnas_jax.nn.trace import Trace
from qnas_jax.run import paths
from qnas_jax.space import MOST_BITS
from qnas_jax.stages import beginning, fit, quantizers
from qnas_jax.stages.evaluation import Trained
from qnas_jax.stages.experiment import Problem, Purpose, key, prepare
from qnas_jax.stages.scoring import Evaluate, Tested, Tuning, batches, evaluator
from qnas_jax.train.optimizers import sgd

logger = logging.getLogger(__name__)


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
    config, problem, deployed = prepare(paths.with_homes(given, ("haq.table",)))
    check_w_bits(deployed.target, "a policy of HAQ", (MOST_BITS,))
    check_per_channel(deployed.target, "a network of HAQ")
    problem, rewards = beginning.held_out(problem, config.haq.reward_images)
    model, subnet = networks.network(config, problem)
    problem = problem._replace(teacher=model)
    traced = networks.traced(model, problem, config.haq.network)
    kmeans = config.haq.quantizer == "kmeans"
    lead = quantizers.lead_of(traced)
    how = {"bounds": (1, 8), "chooses": (True, False), "pinned": ()} if kmeans else {}
    layers = env.describe(traced.convs, lead, **how)
    wanted = goals(
        config.haq.targets, config.haq.budgets, config.haq.table, traced.convs, layers, kmeans
    )
    if "lut" in config.haq.methods:
        for goal in wanted:
            blockwise.check(traced, goal.choices)
    network, variables = beginning.teacher(workdir, config, problem, networks.identity(config))
    network = network._replace(subnet=subnet)
    return Begun(config, problem, rewards, deployed, network, variables, traced, layers, wanted)


def tested(begun: Begun) -> Tested:
    """Returns the network with what a policy does to it."""
    return Tested(begun.network.model, begun.problem.task, begun.variables, _quantizer(begun))


def _quantizer(begun: Begun) -> quantizers.Quantize:
    """What a policy does to the network."""
    config, model = begun.config, begun.network.model
    if config.haq.quantizer == "kmeans":
        return quantizers.shared(begun.traced, begun.variables["params"])
    shape = (1, *config.train.crop, 3)
    fresh = init.initialize(model, key(config.seed, Purpose.TEACHER_INIT), shape)
    images = fit.range_images(begun.problem.train, fit.training(config))
    return quantizers.linear(
        model, begun.traced, begun.variables, fresh["quant"], images, config.haq.ranges
    )


def scorer(begun: Begun, tested: Tested, images: Any, steps: int, lr: float) -> Evaluate:
    """Scores policies on images, each after some steps of training."""
    config, how = begun.config, fit.training(begun.config)
    tuning = None
    if steps:
        optimizer = sgd(lr, steps, 1.0, config.train.momentum, config.train.weight_decay)
        make_batch = fit.batches(begun.problem.train, how, config.train.batch)
        tuning = Tuning(steps, optimizer, make_batch, tuning_key(config))
    held = batches(images, config.haq.images_per_pass)
    return evaluator(tested, held, norm_images(begun), tuning, config.haq.policies_per_pass)


def tuning_key(config: Config) -> Key[Array, ""]:
    """Returns the PRNG key of the training under a policy."""
    return key(config.seed, Purpose.TUNING)


def norm_images(begun: Begun) -> np.ndarray | None:
    """Returns the images of which batch norms take statistics under a policy; None for none."""
    count, crop = begun.config.haq.norm_images, begun.config.train.crop
    return central_crops(begun.problem.train, range(count), crop) if count else None


def float_accuracy(begun: Begun, tested: Tested) -> float:
    """Accuracy on the images of the rewards, in float; policies are compared with it."""
    floats = tested._replace(quantize=lambda params, bits: {"params": params})
    held = batches(begun.rewards, begun.config.haq.images_per_pass)
    none = np.asarray(begun.layers.most)[None]
    accuracy = float(evaluator(floats, held)(none).accuracy[0])
    title = begun.problem.task.metric.title
    logger.info("haq: %s %.2f %% in float on the images of the rewards", title, accuracy)
    return accuracy

"""The supernet, distilled from the teacher."""

import logging
import operator
from typing import Any

import jax
from jaxtyping import PyTree

from qnas_jax import space
from qnas_jax.bwnas import distill, distill_pmap
from qnas_jax.errors import InputError
from qnas_jax.nn import supernet, trace
from qnas_jax.run import artefacts, log, parallel
from qnas_jax.run.stage import Stage, read_json
from qnas_jax.stages.experiment import Purpose, Setting
from qnas_jax.stages.fit import fit
from qnas_jax.train import loop, supervised

logger = logging.getLogger(__name__)

VALIDATION_PICTURES = 32  # for the NSR after training; more if a batch has more
RANDOM_PATHS = 10  # of each block, whose NSR is measured


def supernet_stage(setting: Setting, teacher: Stage) -> Stage:
    """Where the supernet lies, or is to lie."""
    config = setting.config
    made_from = {
        "teacher": teacher.hash,
        "kernels": config.space.kernels,
        "expansions": config.space.expansions,
        "depths": config.space.depths,
        "supernet": config.supernet,
        "seed": config.seed,
    }
    return Stage(setting.workdir / "supernet", made_from)


def train_supernet(
    setting: Setting, teacher: Stage, variables: PyTree
) -> tuple[Stage, list[supernet.Params]]:
    """Distills the teacher into every block of the supernet; measures some of its paths.

    All devices of all processes take part.
    """
    how = setting.config.supernet
    with parallel.first_goes_first("supernet"):
        stage = supernet_stage(setting, teacher)
        if parallel.is_first():
            stage.begin()
    recipe = distill.Recipe(
        supervised.features(setting.teacher()),
        setting.searched,
        tuple(
            supervised.sgd(lr, how.steps, how.power, how.momentum, how.weight_decay, how.clip)
            for lr in how.lr
        ),
        distill.SAMPLING[how.sampling],
        setting.key(Purpose.SUPERNET_TRAIN),
        how.parts,
        how.compute,
    )
    key = setting.key(Purpose.SUPERNET_INIT)
    state = distill.fresh_state(setting.searched, recipe.optimizers, key)
    if jax.device_count() == 1 or stage.done:
        steps, forms = loop.several(distill.train_step(recipe), variables), loop.AS_IT_IS
    else:
        together = _on_all_devices(setting, stage, recipe, variables, state)
        steps, forms = together.steps, (together.spread, together.gathered)
    watched = [
        loop.Watched(
            f"block {i + 1}",
            distill.metric(i),
            supervised.polynomial(lr, how.steps, how.power),
            "supernet.lr",
            operator.itemgetter(i),
        )
        for i, lr in enumerate(how.lr)
    ]
    state = fit(setting, stage, steps, state, how, "supernet", watched, forms)
    params = [block.params for block in state]
    if parallel.is_first() and not stage.done:
        artefacts.write_json(stage.folder / "nsr.json", _validate(setting, variables, params))
        stage.finish()
    parallel.wait_for_all("distilled")
    return stage, params


def _on_all_devices(setting, stage, recipe, variables, state) -> distill_pmap.Grouped:
    processes, here = jax.process_count(), jax.local_device_count()
    if here * processes != jax.device_count():
        raise InputError(f"{jax.device_count()} devices of {processes} processes: as many of each")
    if recipe.parts % processes:
        raise InputError(
            f"supernet.parts={recipe.parts}: {processes} processes share a batch; "
            f"set a multiple of {processes}"
        )
    convs = trace.convs(setting.teacher(), (*setting.config.train.crop, 3))
    encoder = [conv for conv in convs if conv.name.startswith("encoder/")]
    first = next(conv for conv in encoder if conv.name.startswith("encoder/block1/"))
    shape = (first.in_height, first.in_width)
    cost = distill_pmap.step_cost(setting.searched, shape, encoder, _depthwise_cost(stage, shape))
    blocks = len(setting.searched.blocks)
    groups = parallel.lay_out(cost, blocks, here, recipe.parts // processes)
    used = len(groups.members) * groups.replicas
    names = " | ".join(" ".join(str(i + 1) for i in group) for group in groups.members)
    logger.info(
        "supernet: blocks %s, each group on %d of the %d devices of a process (%d without work)",
        names, groups.replicas, here, here - used,
    )  # fmt: skip
    devices = parallel.first_devices(used)
    return distill_pmap.train_step(recipe, variables, state, groups, devices)


def _depthwise_cost(stage: Stage, shape: tuple[int, int]) -> float:
    """Measured once in a run, by the first process: all must lay out the same groups."""
    file = stage.folder / "depthwise_cost.json"
    with parallel.first_goes_first("measured"):
        if not file.exists():
            artefacts.write_json(file, round(distill_pmap.depthwise_cost(*shape), 2))
        cost = read_json(file)
    logger.info("supernet: a depthwise product takes %.1f times as long as a dense one", cost)
    return cost


def images_per_pass(setting: Setting) -> int:
    """Validation pictures that are normed together; see `_validate`."""
    return min(setting.config.supernet.batch, len(setting.val_data))


def _validate(setting: Setting, variables: PyTree, params: list[supernet.Params]) -> dict[str, Any]:
    """NSR of each block's largest, smallest and some random paths, on validation pictures.

    These are the middles of the pictures as they are, in batches as large as the training's,
    because norms use the batch's own statistics in both.
    """
    how, searched = setting.config.supernet, setting.searched
    per_batch = images_per_pass(setting)
    count = max(min(VALIDATION_PICTURES, len(setting.val_data)) // per_batch, 1)
    key = setting.key(Purpose.SUPERNET_PATHS)
    paths = [
        distill.compared_paths(block, searched.ops, RANDOM_PATHS, jax.random.fold_in(key, i))
        for i, block in enumerate(searched.blocks)
    ]
    features = jax.jit(supervised.features(setting.teacher()))
    batches = (range(i * per_batch, (i + 1) * per_batch) for i in range(count))
    maps = (features(variables, setting.validation_crops(batch)) for batch in batches)
    found = distill.path_nsr(searched, params, maps, paths)
    means = ", ".join(f"{values[2:].mean():.4g}" for values in found)
    logger.info("supernet: NSR of random paths on validation pictures, by block: %s", means)
    trained = log.read_metrics(setting.workdir, "supernet").get(how.steps, {})
    blocks = [
        {"training": trained.get(distill.metric(i)), **_described(searched.ops, *block)}
        for i, block in enumerate(zip(paths, found, strict=True))
    ]
    return {"images": count * per_batch, "images_per_pass": per_batch, "blocks": blocks}


def _described(ops, paths, values) -> dict[str, Any]:
    """The paths of `distill.compared_paths` and their NSR by what they are."""
    largest, smallest, *random = [
        {"path": space.format_path(tuple(ops[op] for op in path)), "nsr": float(nsr)}
        for path, nsr in zip(paths, values, strict=True)
    ]
    return {"largest": largest, "smallest": smallest, "random": random}

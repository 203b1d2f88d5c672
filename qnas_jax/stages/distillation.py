"""The supernet, distilled from the teacher."""

import logging

import jax
from jaxtyping import PyTree

from qnas_jax import distill, grouped, parallel, segment
from qnas_jax.artefact import Stage
from qnas_jax.errors import InputError
from qnas_jax.nn import layers, supernet
from qnas_jax.setting import Purpose, Setting
from qnas_jax.stages.fitting import fit

logger = logging.getLogger(__name__)


def train_supernet(
    setting: Setting, teacher: Stage, variables: PyTree
) -> tuple[Stage, list[supernet.Params]]:
    """Distills the teacher into every block of the supernet, on all devices of all processes."""
    config, how = setting.config, setting.config.supernet
    made_from = {
        "teacher": teacher.hash,
        "kernels": config.space.kernels,
        "expansions": config.space.expansions,
        "depths": config.space.depths,
        "supernet": how,
        "seed": config.seed,
    }
    with parallel.first_goes_first("supernet"):
        stage = Stage(setting.workdir / "supernet", made_from)
    recipe = distill.Recipe(
        segment.features(setting.teacher()),
        setting.searched,
        tuple(
            segment.sgd(lr, how.steps, how.power, how.momentum, how.weight_decay) for lr in how.lr
        ),
        distill.SAMPLING[how.sampling],
        setting.key(Purpose.SUPERNET_TRAIN),
        how.parts,
    )
    key = setting.key(Purpose.SUPERNET_INIT)
    state = distill.fresh_state(setting.searched, recipe.optimizers, key)
    if jax.device_count() == 1:
        step, forms = distill.train_step(recipe, variables), {}
    else:
        step, *both = _on_all_devices(setting, recipe, variables, state)
        forms = {"forms": both}
    state = fit(setting, stage, step, state, how.steps, how.batch, "supernet", **forms)
    if parallel.is_first():
        stage.finish()
    parallel.wait_for_all("distilled")
    return stage, [block.params for block in state]


def _on_all_devices(setting, recipe, variables, state) -> grouped.Grouped:
    processes, here = jax.process_count(), jax.local_device_count()
    if recipe.parts % processes:
        raise InputError(
            f"supernet.parts={recipe.parts}: {processes} processes share a batch; "
            f"set a multiple of {processes}"
        )
    convs = layers.convs(setting.teacher(), (*setting.config.train.crop, 3))
    cost = grouped.step_cost(setting.searched, convs)
    blocks = len(setting.searched.blocks)
    groups = parallel.lay_out(cost, blocks, here, recipe.parts // processes)
    used = len(groups.members) * groups.replicas
    names = " | ".join(" ".join(str(i + 1) for i in group) for group in groups.members)
    logger.info(
        "supernet: blocks %s, each group on %d of the %d devices of a process (%d without work)",
        names, groups.replicas, here, here - used,
    )  # fmt: skip
    devices = parallel.first_devices(used)
    return grouped.train_step(recipe, variables, state, groups, devices)

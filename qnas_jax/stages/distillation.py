"""The supernet, distilled from the teacher."""

import operator

from jaxtyping import PyTree

from qnas_jax import distill, segment, train
from qnas_jax.artefact import Stage
from qnas_jax.nn import supernet
from qnas_jax.setting import Purpose, Setting
from qnas_jax.stages.fitting import fit


def train_supernet(
    setting: Setting, teacher: Stage, variables: PyTree
) -> tuple[Stage, list[supernet.Params]]:
    """Distills the teacher into every block of the supernet."""
    config, how = setting.config, setting.config.supernet
    stage = Stage(
        setting.workdir / "supernet",
        {
            "teacher": teacher.hash,
            "kernels": config.space.kernels,
            "expansions": config.space.expansions,
            "depths": config.space.depths,
            "supernet": how,
            "seed": config.seed,
        },
    )
    optimizers = tuple(
        segment.sgd(lr, how.steps, how.power, how.momentum, how.weight_decay) for lr in how.lr
    )
    step = distill.train_step(
        segment.features(setting.teacher()),
        variables,
        setting.searched,
        optimizers,
        distill.SAMPLING[how.sampling],
        setting.key(Purpose.SUPERNET_TRAIN),
    )
    state = distill.fresh_state(setting.searched, optimizers, setting.key(Purpose.SUPERNET_INIT))
    parts = [
        train.Part(
            f"block {i + 1}",
            f"nsr_block{i + 1}",
            segment.polynomial(lr, how.steps, how.power),
            "supernet.lr",
            operator.itemgetter(i),
        )
        for i, lr in enumerate(how.lr)
    ]
    state = fit(setting, stage, step, state, how.steps, how.batch, "supernet", parts)
    stage.finish()
    return stage, [block.params for block in state]

"""What the stages that train have in common."""

from collections.abc import Sequence
from typing import TypeVar

from qnas_jax.errors import InputError
from qnas_jax.run import config, parallel
from qnas_jax.run.log import Metrics
from qnas_jax.run.stage import Stage
from qnas_jax.stages.experiment import Setting
from qnas_jax.train import loop

State = TypeVar("State")


def fit(
    setting: Setting,
    stage: Stage,
    steps: loop.Steps,
    state: State,
    how: config.Train | config.Supernet,
    title: str,
    watched: Sequence[loop.Watched],
    forms: loop.Forms = loop.AS_IT_IS,
) -> State:
    """Runs a stage's training steps as the run's settings say; see `train.fit`.

    Raises:
      InputError: The stage is finished, but its last state is gone: another training would
        not be what the stages behind it were made from.
    """
    run, folder = setting.config.run, stage.folder / "checkpoint"
    if stage.done and not (folder / str(how.steps)).is_dir():
        raise InputError(
            f"{folder / str(how.steps)}: is missing; put it back, "
            f"or delete {stage.folder} and all that was made from it"
        )
    plan = loop.Plan(
        title,
        how.steps,
        folder,
        watched,
        save_every=run.save_every,
        log_every=run.log_every,
        per_dispatch=run.per_dispatch,
        threads=setting.config.data.threads,
    )
    name = stage.folder.relative_to(setting.workdir).as_posix()

    def make_batch(number):
        return setting.training_batch(number, how.batch)

    with Metrics(setting.workdir, name, parallel.is_first()) as metrics:
        return loop.fit(steps, state, make_batch, plan, metrics, forms)

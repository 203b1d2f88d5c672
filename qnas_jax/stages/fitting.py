"""What the stages that train have in common."""

from collections.abc import Sequence
from typing import TypeVar

from qnas_jax import parallel, train
from qnas_jax.artefact import Stage
from qnas_jax.runlog import Metrics
from qnas_jax.setting import Setting

State = TypeVar("State")


def fit(
    setting: Setting,
    stage: Stage,
    steps_function: train.Steps,
    state: State,
    steps: int,
    batch: int,
    title: str,
    watched: Sequence[train.Watched],
    forms: train.Forms = train.AS_IT_IS,
) -> State:
    """Runs a stage's training steps as the run's settings say; see `train.fit`."""
    config = setting.config
    name = stage.folder.relative_to(setting.workdir).as_posix()
    with Metrics(setting.workdir, name, parallel.is_first()) as metrics:
        return train.fit(
            steps_function,
            state,
            lambda number: setting.training_batch(number, batch),
            steps=steps,
            folder=stage.folder / "checkpoint",
            save_every=config.run.save_every,
            title=title,
            watched=watched,
            metrics=metrics,
            log_every=config.run.log_every,
            per_dispatch=config.run.per_dispatch,
            threads=config.data.threads,
            forms=forms,
        )

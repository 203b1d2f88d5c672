"""Saves the teacher of a run as one file, for other runs' `teacher.checkpoint`.

    qnas save_weights --config configs/streets_teacher.py --file teacher.safetensors

Takes the teacher of the run, and trains it if it is missing. The file has its weights in half
precision; the score of what it holds is printed.
"""

import jax
from absl import flags

from qnas_jax.bwnas import inspection
from qnas_jax.bwnas.config import Config
from qnas_jax.errors import InputError
from qnas_jax.nn import weights
from qnas_jax.run import artefacts, cli, disk, paths, platform
from qnas_jax.stages import fit
from qnas_jax.stages import train as train_stage
from qnas_jax.stages.experiment import prepare
from qnas_jax.tasks.task import evaluate
from qnas_jax.train import supervised

cli.define_run_flags()
_FILE = flags.DEFINE_string("file", None, "The .safetensors file to write.", required=True)


def main() -> None:
    """Writes the file; prints its size and its score in float."""
    config, workdir = cli.run_flags(Config)
    file = paths.named("--file", _FILE.value)
    if file.suffix != weights.OWN_SUFFIX:
        raise InputError(f"--file={file}: must end in {weights.OWN_SUFFIX}")
    platform.use_compilation_cache()
    config, problem, deployed = prepare(config)
    inspection.inspect(config, problem, deployed)
    how = fit.training(config)
    with disk.only_one(workdir):
        teacher, variables = train_stage.train_teacher(
            workdir, problem, how, config.network, config.teacher
        )
    content = weights.to_bytes(jax.device_get(variables))
    artefacts.write(file, content)
    read, task = weights.load(file, teacher.model, variables), problem.task
    predict = supervised.predictor(teacher.model, task.predict)
    sources = {"fp32": lambda images: predict(read, images)}
    found, _ = evaluate(sources, problem.val, config.run.eval_batch, task)
    score = found[f"{task.metric.name}_fp32"]
    print(f"{file}: {len(content)} bytes, {task.metric.title} {score:.2f} % in float")

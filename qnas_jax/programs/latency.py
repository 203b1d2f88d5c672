"""Measures the latency of the teacher and the retrained subnets of a run, in float and quantized.

    qnas latency --config configs/streets.py --workdir runs/streets

Images may have another size (--config.hardware.image_size="(512, 1024)"). Writes
`hardware/latency.json` in the run's folder, or the file that --json names.
"""

from absl import flags

from qnas_jax.bwnas import finished
from qnas_jax.bwnas.config import Config
from qnas_jax.export import runtimes
from qnas_jax.profiling.timing import Effort
from qnas_jax.run import artefacts, cli, paths
from qnas_jax.run.stage import check_made_from
from qnas_jax.stages import latency as latency_stage
from qnas_jax.stages.experiment import prepare

cli.define_run_flags()
_RUNTIME = flags.DEFINE_string("runtime", "onnxruntime", "The runtime: onnxruntime or litert.")
_THREADS = flags.DEFINE_integer("threads", 1, "Threads of the runtime.", lower_bound=1)
_JSON = flags.DEFINE_string(
    "json", None, "The JSON file to write. By default hardware/latency.json in the run's folder."
)


def main() -> None:
    """Times the networks; prints and writes their figures."""
    config, workdir = cli.run_flags(Config)
    json = str(workdir / "hardware" / "latency.json") if _JSON.value is None else _JSON.value
    path = paths.file("--json", json)
    subnets = finished.subnets(workdir)
    check_made_from(workdir / "teacher", {"network": config.network})
    check_made_from(workdir / "supernet", {"depths": config.space.depths})
    runtime, threads = runtimes.named(_RUNTIME.value), _THREADS.value
    runtimes.check_threads(threads)
    _, problem, deployed = prepare(config)
    found = latency_stage.compare(
        problem, deployed.image_shape, subnets, runtime, threads, Effort()
    )
    artefacts.write_json(path, found)
    print(latency_stage.as_text(found))
    print(f"figures: {path}")

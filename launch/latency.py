"""Latency of the teacher and the retrained subnets of a run, in float and quantized.

    python launch/latency.py --config configs/streets.py --workdir runs/streets

Networks have made-up weights, which their latency does not depend on, and so may have pictures of
any size (--config.hardware.picture="(512, 1024)"). Leaves `hardware/latency.json` in the run's
folder, or what --json names.
"""

from qnas_jax import platform

if __name__ == "__main__":
    platform.prepare_process()  # before all other imports

import json
import pathlib

from absl import flags

from qnas_jax import artefact, cli, space
from qnas_jax.errors import InputError
from qnas_jax.export import profile, runtimes, stand_in
from qnas_jax.export.timing import Effort
from qnas_jax.setting import Setting, prepare

cli.define_run_flags()
_RUNTIME = flags.DEFINE_string("runtime", "onnxruntime", "What runs the files.")
_THREADS = flags.DEFINE_integer("threads", 1, "How many the runtime has.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "File for the figures.")


def main() -> None:
    """Times the networks; prints and writes their figures."""
    config, workdir = cli.run_flags()
    setting = prepare(config, workdir)
    networks = {"teacher": (setting.teacher(), setting.teacher_subnet())}
    networks |= {space.format_subnet(s): (setting.student(s), s) for s in _retrained(setting)}
    graphs = {}
    for name, (model, subnet) in networks.items():
        bits = [[(choice.w_bits, choice.a_bits) for choice in block] for block in subnet]
        graphs[name] = tuple(stand_in.network(model, b, setting.picture()) for b in (None, bits))
    runtime = runtimes.named(_RUNTIME.value)
    found = profile.compare(graphs, runtime, _THREADS.value, Effort())
    found["picture"] = setting.picture()[:2]
    path = pathlib.Path(_JSON.value or workdir / "hardware" / "latency.json")
    artefact.write_json(path, found)
    print("float ms  quantized ms  ratio")
    for name, figures in found["networks"].items():
        float_ms, quantized_ms = (figures[kind]["latency_ms"] for kind in ("float", "quantized"))
        print(f"{float_ms:8.3f} {quantized_ms:13.3f} {figures['ratio']:6.2f}  {name}")
    print(f"figures: {path}")


def _retrained(setting: Setting) -> list[space.Subnet]:
    files = sorted(setting.workdir.glob("retrain/*/metrics.json"))
    if not files:
        raise InputError(f"{setting.workdir}: holds no retrained subnet")
    return [space.parse_subnet(json.loads(file.read_text())["subnet"]) for file in files]


if __name__ == "__main__":
    cli.start(main)

"""The front of every quantization policy, from one supernet, on one plot.

    python launch/policies.py --config configs/streets.py --workdir runs/streets

Goes on from the teacher and supernet of a run (and makes them if they are missing). Leaves
`policies/` in its folder: a table and a front for each policy, `fronts.svg`, `fronts.csv`.
"""

from qnas_jax import platform

if __name__ == "__main__":
    platform.hide_cache_warnings()  # both before all other imports
    platform.use_huge_pages()  # it may start Python again

import copy
import dataclasses
import pathlib

from absl import flags
from ml_collections import config_flags

from qnas_jax import artefact, cli, pipeline
from qnas_jax.report import figures
from qnas_jax.search import front
from qnas_jax.setting import prepare

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default runs/CONFIG.")
flags.mark_flag_as_required("config")

APART = tuple((w, a) for w in (4, 6, 8) for a in (4, 6, 8))
# (weights' bits, activations' bits, what chooses)
POLICIES = {
    "INT8": ((8,), (8,), "block"),
    "INT6": ((6,), (6,), "block"),
    "INT4": ((4,), (4,), "block"),
    "4, 6, 8 per block": ((4, 6, 8), (4, 6, 8), "block"),
    "4, 6, 8 per block, apart": (tuple(w for w, _ in APART), tuple(a for _, a in APART), "block"),
    "4, 6, 8 per layer": ((4, 6, 8), (4, 6, 8), "layer"),
}


def main() -> None:
    """Fills a table for each policy, searches it, and draws all fronts."""
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    platform.use_compilation_cache()
    config = cli.checked_config(_CONFIG.value, path)
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{pathlib.Path(path).stem}")
    config.check()
    setting = prepare(config, workdir)
    teacher, variables = pipeline.train_teacher(setting)
    distilled, params = pipeline.train_supernet(setting, teacher, variables)
    fronts, seconds = {}, {}
    for name, (w_bits, a_bits, bits_per) in POLICIES.items():
        changed = copy.deepcopy(config)
        changed.space.w_bits, changed.space.a_bits = w_bits, a_bits
        changed.space.bits_per = bits_per
        folder = workdir / "policies" / name.replace(", ", "-").replace(" ", "_")
        one = dataclasses.replace(setting, config=changed, workdir=folder)
        populated, rows = pipeline.populate_table(one, distilled, variables, params)
        _, fronts[name] = pipeline.search_front(one, populated, rows)
        seconds[name] = populated.seconds
    _report(workdir / "policies", fronts, seconds)


def _report(
    folder: pathlib.Path, fronts: dict[str, list[front.Point]], seconds: dict[str, float]
) -> None:
    """Prints each policy's smallest subnet that is as good as INT8's best; draws the fronts."""
    limit = fronts["INT8"][0].nsr
    lines = ["policy,rows_s,front,best_nsr,size_bytes_at_int8_best,encoder_size_bytes"]
    print(f"NSR of the best INT8 subnet: {limit:.4f}; the smallest that is no worse:")
    print("policy                     table s  front   best NSR  size kB  encoder kB")
    for name, points in fronts.items():
        within = [point for point in points if point.nsr <= limit]
        least = min(within, key=lambda point: point.size_bytes) if within else None
        sizes = f"{least.size_bytes},{least.encoder_size_bytes}" if least else ","
        lines.append(f'"{name}",{seconds[name]:.1f},{len(points)},{points[0].nsr:.6f},{sizes}')
        shown = "    none"
        if least:
            shown = f"{least.size_bytes / 1e3:8.1f} {least.encoder_size_bytes / 1e3:11.1f}"
        print(f"{name:26s} {seconds[name]:7.1f} {len(points):6d} {points[0].nsr:10.4f} {shown}")
    with artefact.writing(folder / "fronts.csv") as file:
        file.write(("\n".join(lines) + "\n").encode())
    with artefact.writing(folder / "fronts.svg") as file:
        file.write(figures.fronts(fronts).encode())
    print(f"fronts: {folder / 'fronts.svg'}")


if __name__ == "__main__":
    cli.start(main)

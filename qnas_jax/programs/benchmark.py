"""Makes the benchmark that `qnas_jax.benchmark` looks up: trains and quantizes a whole small space.

    qnas benchmark --workdir runs/benchmark

Trains each of 256 networks three times, counts its right answers under each of 625 policies, and
distils each op from a teacher: most of an hour on two cores. A network's figures are written when
it is done, so after a stop the same command continues. Writes `objects.npz` in the folder;
`qn.benchmark.load` reads it.
"""

from absl import flags

from qnas_jax.benchmark import networks, summary, table
from qnas_jax.benchmark.generate import generate
from qnas_jax.run import disk, paths, platform

_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run.", required=True)


def main() -> None:
    """Makes the benchmark or continues it, and prints what its figures are like."""
    workdir = paths.folder("--workdir", _WORKDIR.value)
    platform.use_compilation_cache()
    with disk.only_one(workdir):
        found, seconds = generate(networks.PLAN, workdir)
        file = workdir / table.SHIPPED.name
        table.save(file, found)
    print(summary.as_text(found))
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB, made in {seconds:.0f} s")

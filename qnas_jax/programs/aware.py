"""Says at which bitwidths a search must know of quantization: the table in float against others.

    qnas aware --config configs/streets_aware.py

Fills the tables in float and at all bitwidths of the config, which have weights and activations
alike for a block, and trains what either search picks, as `retrain` says. Writes `audit/aware.json`
in the run's folder; after a stop, the same command continues.
"""

from typing import Any

from qnas_jax.bwnas import pipeline
from qnas_jax.bwnas.config import Config
from qnas_jax.errors import InputError
from qnas_jax.ranking import aware, scores, trained
from qnas_jax.ranking.drawn import Drawn
from qnas_jax.run import artefacts, cli, disk, platform
from qnas_jax.space import Bits, Subnet, format_subnet

cli.define_run_flags()


def main() -> None:
    """Compares the tables; prints and writes the results."""
    config, workdir = cli.run_flags(Config)
    if config.space.bits_per != "block":
        raise InputError(
            "space.bits_per: must be 'block', as bitwidths are compared block by block"
        )
    scores.check_tables(config)
    platform.use_compilation_cache()
    with disk.only_one(workdir):
        found = pipeline.search(config, workdir)
        plain = scores.float_table(workdir, found)
        tables = {pair: aware.at_bits(found.rows, pair) for pair in found.rows.bits[::-1]}
        picks = {pair: aware.picks(plain, own) for pair, own in tables.items()}
        subnets = dict.fromkeys(subnet for one in picks.values() for subnet in one[1:])
        drawn = [Drawn("picked", subnet) for subnet in subnets]
        reached = trained.train(workdir, found, drawn, [config.seed])[0]["quantized"][:, 0]
        accuracies = dict(zip(subnets, reached.tolist(), strict=True))
        rows = [
            _row(pair, aware.compare(plain, own), picks[pair], accuracies)
            for pair, own in tables.items()
        ]
        artefacts.write_json(workdir / "audit" / "aware.json", {"bits": rows})
    metric = found.begun.problem.task.metric.title
    print(f"{'bits':>6} {'tau by block':44} {'regret mean':>11} {'most':>7}  {metric}: float, own")
    for row in rows:
        print(_line(row))


def _line(row: dict[str, Any]) -> str:
    taus = " ".join(f"{block['tau']:6.3f}" for block in row["blocks"])
    mean, most = (100 * row["regret"][name] for name in ("mean", "most"))
    accuracies = ", ".join(f"{value:.2f}" for value in row["accuracy"])
    return f"{row['bits']:>6} {taus:44} {mean:9.2f} % {most:5.1f} %  {accuracies}"


def _row(
    pair: Bits, compared: dict[str, Any], picked: aware.Picked, accuracies: dict[Subnet, float]
) -> dict[str, Any]:
    """A pair of bitwidths as JSON."""
    return {
        "bits": "w{}a{}".format(*pair),
        **compared,
        "budget": picked.budget,
        "picked": [format_subnet(subnet) for subnet in picked[1:]],
        "accuracy": [accuracies[subnet] for subnet in picked[1:]],
    }

"""Shows how many images a LUT needs: its ranking and its front, from n images and from all.

    qnas enough_images --workdir runs/streets

Reads `lut/` of a run. The smaller lut.images_per_pass was, the finer the curve. Writes
`lut/enough_images.svg` and `lut/enough_images.csv`.
"""

import dataclasses

import numpy as np
from absl import flags

from qnas_jax.bwnas import search_front
from qnas_jax.bwnas.lut import agreement, table
from qnas_jax.errors import InputError
from qnas_jax.report import figures
from qnas_jax.run import artefacts, paths
from qnas_jax.run.stage import read_json, reading

_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of a run.", required=True)
DRAWS = 5  # random choices of n images


def main() -> None:
    """Prints, writes and draws the curve."""
    folder = paths.folder("--workdir", _WORKDIR.value) / "lut"
    rows = table.load(folder / "lut.npz")
    with reading(folder / "by_chunk.npy") as file:
        by_chunk = np.load(file).astype(np.float64)
    made = read_json(folder / "lut.json")
    chunks, per_chunk = len(by_chunk), made["images_per_pass"]
    if chunks < 2:
        raise InputError(f"{folder}: has only one pass; lower lut.images_per_pass in a new run")
    whole = _subnets(rows, by_chunk.mean(0))
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n < chunks]
    lines, curve = ["images,tau_mean,tau_least,front_overlap"], []
    print("images  tau, mean of blocks   least   share of the front found")
    for count in counts:
        taus, shares = [], []
        for draw in range(DRAWS):
            picked = np.random.default_rng((draw, count)).choice(chunks, count, replace=False)
            nsr = by_chunk[picked].mean(0)
            taus.append(agreement.block_taus(rows, nsr, by_chunk.mean(0)))
            shares.append(len(_subnets(rows, nsr) & whole) / len(whole))
        mean, least, share = np.mean(taus), np.min(np.mean(taus, 0)), np.mean(shares)
        images = count * per_chunk
        curve.append((images, mean, least, share))
        lines.append(f"{images},{mean:.4f},{least:.4f},{share:.4f}")
        print(f"{images:6d} {mean:20.3f} {least:7.3f} {share:12.0%}")
    artefacts.write(folder / "enough_images.csv", "\n".join(lines) + "\n")
    drawn = figures.enough_images(curve, chunks * per_chunk)
    artefacts.write(folder / "enough_images.svg", drawn)
    print(f"curve: {folder / 'enough_images.svg'}")


def _subnets(rows: table.Table, nsr: np.ndarray) -> set[str]:
    found = search_front.search(dataclasses.replace(rows, nsr=nsr.astype(np.float32)))
    return {point.subnet for point in found}

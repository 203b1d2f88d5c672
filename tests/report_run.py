"""A run as its stages leave it, and the page that is made of it."""

import html.parser
import json

import numpy as np
import pytest

from qnas_jax import metrics
from qnas_jax.bwnas import config
from qnas_jax.data import labels
from qnas_jax.data.batching import Batch
from qnas_jax.report import figures, page
from qnas_jax.run import artefacts
from qnas_jax.search import front

TEACHER = {
    "subnet": "_".join(["k3e6-k3e6.w8a8"] * 6),
    "fp32": 61.5,
    "quantized": 60.0,
    "size_bytes": 200_000,
    "encoder_size_bytes": 120_000,
}
# (subnet, nsr, mIoU in float, quantized, size): out of order by size, as a run may give them.
SUBNETS = (
    ("_".join(["k3e3-k7e6-k5e6.w8a8"] * 6), 1.25, 65.0, 64.25, 230_000),  # larger
    ("_".join(["k3e3-k5e6.w4a8"] * 6), 2.5, 59.0, 58.5, 100_000),  # less accurate
    ("_".join(["k3e6-k5e3.w8a8"] * 5 + ["k7e3w4a8-k3e6w8a8"]), 1.5, 62.0, 60.0, 150_000),  # both
)
DOMINATING = SUBNETS[2][0]
SIZES = ("size_bytes", "encoder_size_bytes")
FIGURES = ("fp32", "quantized", *SIZES)
CURVE = {10: 2.0, 20: 1.25, 30: 0.5}  # the first block's NSR
# Of each block: training, largest, smallest, random.
NSR = [(0.5 + i / 10, 0.4, 0.6, (0.25, 0.75, 1.25)) for i in range(5)] + [(None, 0.1, 0.2, (0.3,))]
MIOU = (metrics.MIOU, labels.NAMES)
SECONDS = {"teacher": 200.4, "lut": 7500.0}
HEIGHT, WIDTH, IMAGES = 8, 16, 3


def write_network(folder, number, found):
    """What a trained network leaves; its predictions are all of class `number`."""
    iou = [None, *range(number, number + 18)]  # the first class never occurs
    extra = {"class_iou_fp32": iou, "class_iou_quantized": iou, "macs": 10**6}
    scores = {f"miou_{name}": found[name] for name in ("fp32", "quantized")}
    held = {name: value for name, value in found.items() if name not in ("fp32", "quantized")}
    held |= {**scores, **extra, "float_size_bytes": 10**6}
    artefacts.write_json(folder / "metrics.json", held)
    maps = np.full((IMAGES, HEIGHT, WIDTH), number, np.uint8)
    np.savez(folder / "samples.npz", fp32=maps * 0, quantized=maps)


def write_supernet(workdir):
    """Its training's metrics behind another stage's, and the NSR of single paths."""
    logged = [{"stage": "teacher", "step": 10, "loss": 3.0}]
    for step, nsr in CURVE.items():
        logged.append({"stage": "supernet", "step": step, "nsr_block1": nsr, "nsr_block2": 1.0})
    lines = [json.dumps(line) for line in logged]
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    blocks = [
        {
            "training": training,
            "largest": {"path": "k7e6-k7e6", "nsr": largest},
            "smallest": {"path": "k3e3-k3e3", "nsr": smallest},
            "random": [{"path": "k3e6-k5e3", "nsr": nsr} for nsr in random],
        }
        for training, largest, smallest, random in NSR
    ]
    artefacts.write_json(workdir / "supernet" / "nsr.json", {"images": 32, "blocks": blocks})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, its report, and the class maps that the report was drawn from."""
    workdir = tmp_path_factory.mktemp("runs") / "<run> & co"
    settings = config.Config(seed=7)
    settings.space.w_bits, settings.space.a_bits = (8, 4), (8, 8)
    artefacts.write_json(workdir / "config.json", settings)
    write_network(workdir / "teacher", 0, TEACHER)
    write_supernet(workdir)
    networks, points = [], []
    for number, (subnet, nsr, fp32, quantized, size) in enumerate(SUBNETS, 1):
        found = {"subnet": subnet, "nsr": nsr, "fp32": fp32, "quantized": quantized}
        found |= {"size_bytes": size, "encoder_size_bytes": size - 80_000}
        networks.append(workdir / "retrain" / subnet)
        write_network(networks[-1], number, found)
        sizes = {name: found[name] for name in SIZES}
        points.append(front.Point(number - 1, nsr, subnet, sizes))
    front.write(workdir / "search" / "front.csv", points)
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, HEIGHT, WIDTH, 3))
    samples = Batch(
        images.astype(np.uint8), np.full((IMAGES, HEIGHT, WIDTH), 18, np.uint8)
    )  # fmt: skip
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        draw = figures.samples
        patch.setattr(figures, "samples", lambda *args: drawn.append(args) or draw(*args))
        results = page.write(workdir, *MIOU, SECONDS, networks, samples)
    return workdir, results, drawn[0]


class Page(html.parser.HTMLParser):
    """The rows of the page's first table and all that it loads."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.marked, self.loads, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [v for k, v in attributes if k in ("src", "href", "xlink:href")]
        if tag == "tr":
            self.rows.append([])
            self.marked.append(("class", "better") in attributes)

    def handle_data(self, data):
        if self.rows and data.strip():
            self.rows[-1].append(data.strip())

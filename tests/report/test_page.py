import base64
import html.parser
import io
import itertools
import json
import re
import shutil

import numpy as np
import pytest
from matplotlib import cbook
from PIL import Image

from qnas_jax import metrics
from qnas_jax.bwnas import config
from qnas_jax.data import labels
from qnas_jax.data.batching import Batch
from qnas_jax.errors import InputError
from qnas_jax.report import exports, figures, outcome, page
from qnas_jax.run import artefacts
from qnas_jax.run.stage import Stage, read_json
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
    told = config.Config(seed=7)
    told.space.w_bits, told.space.a_bits = (8, 4), (8, 8)
    artefacts.write_json(workdir / "config.json", told)
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


def test_exported_files_are_told_in_the_report_and_its_figures(run):
    workdir, results, _ = run
    names = ["teacher", *(subnet["subnet"] for subnet in results["subnets"])]
    told = [exports.File(1050 + n, 1000, 20.5, 99.9871, 2.0 + n, 1.0) for n in range(len(names))]
    networks = [workdir / "retrain" / name for name in names[1:]]
    images = np.zeros((IMAGES, HEIGHT, WIDTH, 3), np.uint8)
    samples = Batch(images, images[..., 0])
    given = dict(zip(names, told, strict=True))
    again = page.write(workdir, *MIOU, SECONDS, networks, samples, files=given)
    assert again["teacher"]["file"] == {**told[0]._asdict(), "ratio": 2.0}
    assert [subnet["file"]["ratio"] for subnet in again["subnets"]] == [3.0, 4.0, 5.0]
    text = (workdir / "report" / "index.html").read_text()
    row = "".join(
        f"<td>{cell}</td>"
        for cell in ("subnet 1", "1.1", "+5.1 %", "20.50", "99.987 %", "3", "1", "3.00")
    )
    assert f"<tr>{row}</tr>" in text
    page.write(workdir, *MIOU, SECONDS, networks, samples)
    assert "model.onnx" not in (workdir / "report" / "index.html").read_text()


def test_scores_after_training_under_bitwidths_stand_beside_and_are_compared(run):
    workdir, results, _ = run
    networks = [workdir / "retrain" / subnet for subnet, *_ in SUBNETS]
    aware = {}
    for number, folder in enumerate([workdir / "teacher", *networks]):
        aware[folder.name] = workdir / "qat" / folder.name
        figures = read_json(folder / "metrics.json") | {"fp32": 50.0, "quantized": 70.0 - number}
        write_network(aware[folder.name], 0, figures)
    images = np.zeros((IMAGES, HEIGHT, WIDTH, 3), np.uint8)
    given = (workdir, *MIOU, SECONDS, networks, Batch(images, images[..., 0]))
    again = page.write(*given, aware=aware)
    assert again["teacher"] == {**results["teacher"], "qat": 70.0}
    by_subnet = {subnet["subnet"]: subnet for subnet in again["subnets"]}
    assert [by_subnet[subnet]["qat"] for subnet, *_ in SUBNETS] == [69.0, 68.0, 67.0]
    assert results["dominating"] and not again["dominating"]  # all are below 70
    text = (workdir / "report" / "index.html").read_text()
    assert "<th>trained quantized</th>" in text and "<td>60.00</td><td>70.00</td>" in text
    header, teacher, *_ = outcome.as_text(again).splitlines()
    assert header.split()[-3:] == ["quantized", "trained", "network"]
    assert teacher.split()[-3:] == ["60.00", "70.00", "teacher"]
    page.write(*given)
    assert "trained quantized" not in (workdir / "report" / "index.html").read_text()


def test_a_retrained_teacher_is_the_one_to_beat(run):
    workdir, results, _ = run
    folder, best = workdir / "retrained_teacher", max(s["quantized"] for s in results["subnets"])
    assert results["dominating"]
    write_network(folder, 0, {**TEACHER, "fp32": 99.0, "quantized": best + 1})
    networks = [workdir / "retrain" / subnet for subnet, *_ in SUBNETS]
    images = np.zeros((IMAGES, HEIGHT, WIDTH, 3), np.uint8)
    given = (workdir, *MIOU, SECONDS, networks, Batch(images, images[..., 0]))
    again = page.write(*given, retrained_teacher=folder)
    assert again["teacher"] == results["teacher"]
    assert again["subnets"] == results["subnets"]
    assert again["retrained_teacher"]["quantized"] == best + 1
    assert set(again["retrained_teacher"]) == set(again["teacher"])
    assert again["dominating"] == []
    assert outcome.as_text(again).splitlines()[2].endswith("  retrained teacher")
    text = (workdir / "report" / "index.html").read_text()
    names = [row[0] for row in Page(text).rows[1:6]]
    assert names == ["teacher", "retrained teacher", "subnet 1", "subnet 2", "subnet 3"]
    assert "dominate both quantized teachers" in text
    assert "an equal start" in text
    page.write(*given)
    assert "retrained teacher" not in (workdir / "report" / "index.html").read_text()


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


@pytest.fixture(scope="module")
def text(run):
    return (run[0] / "report" / "index.html").read_text()


def test_results_hold_the_figures_of_every_network_by_size(run):
    workdir, results, _ = run
    by_size = sorted(SUBNETS, key=lambda subnet: subnet[-1])
    assert results == {
        "metric": "miou",
        "teacher": {name: TEACHER[name] for name in FIGURES},
        "subnets": [
            {
                "subnet": subnet,
                "nsr": nsr,
                "fp32": fp32,
                "quantized": quantized,
                "size_bytes": size,
                "encoder_size_bytes": size - 80_000,
            }
            for subnet, nsr, fp32, quantized, size in by_size
        ],
        "dominating": [DOMINATING],
        "seconds": SECONDS,
        "seed": 7,
    }
    assert json.loads((workdir / "report" / "results.json").read_text()) == results


def test_the_report_is_one_page_with_its_figures_beside_it(run, text):
    workdir, _, _ = run
    exports = {f.name for f in (workdir / "report").iterdir()}
    figures = {"front.svg", "architectures.svg", "supernet.svg", "classes.svg"}
    assert exports == {*figures, "index.html", "results.json", "samples.png"}
    for name in figures:
        drawn = (workdir / "report" / name).read_text()
        assert drawn.startswith("<svg")
        assert drawn in text
    parsed = Page(text)
    assert parsed.tags.count("svg") == 4
    assert not {"link", "script"} & set(parsed.tags)
    loads = {load for load in parsed.loads if not load.startswith("#")}
    assert all(load.startswith("data:image/png;base64,") for load in loads)
    image = (workdir / "report" / "samples.png").read_bytes()
    assert f"data:image/png;base64,{base64.b64encode(image).decode()}" in loads
    assert Image.open(io.BytesIO(image)).format == "PNG"


@pytest.fixture(scope="module")
def priced(run, tmp_path_factory):
    """The same run with the latency of a target, which it does not tell for the teacher."""
    workdir = tmp_path_factory.mktemp("runs") / "priced"
    shutil.copytree(run[0], workdir)
    told = config.Config()
    told.hardware.table = "my <board>.csv"
    artefacts.write_json(workdir / "config.json", told)
    points = front.read(workdir / "search" / "front.csv")
    points = [p._replace(costs={**p.costs, "latency_ms": 10.0 / p.nsr}) for p in points]
    slow = {"size_bytes": 90_000, "encoder_size_bytes": 10_000, "latency_ms": 30.0}
    points.append(front.Point(3, 9.0, "k3e3.w8a8", slow))  # not on the front of the latency
    front.write(workdir / "search" / "front.csv", points)
    networks = [workdir / "retrain" / subnet for subnet, *_ in SUBNETS]
    shape = (IMAGES, HEIGHT, WIDTH)
    samples = Batch(np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8))
    return workdir, lambda **costs: page.write(workdir, *MIOU, SECONDS, networks, samples, costs)


def test_a_target_adds_a_column_and_a_figure_for_each_of_its_costs(priced):
    workdir, write = priced
    results = write()
    assert [s["latency_ms"] for s in results["subnets"]] == [10 / 2.5, 10 / 1.5, 10 / 1.25]
    assert "latency_ms" not in results["teacher"]
    text = (workdir / "report" / "index.html").read_text()
    rows = Page(text).rows
    assert rows[0][6] == "latency, ms"
    assert [row[6 if i else 5] for i, row in enumerate(rows[1:5])] == ["-", "4", "6.667", "8"]
    assert "Latency: sums over the layers by my &lt;board&gt;.csv, for one image." in text
    for name in ("front", "front_latency_ms"):
        assert (workdir / "report" / f"{name}.svg").read_text() in text
    lines = outcome.as_text(results).splitlines()
    assert lines[0].split()[4:6] == ["latency", "ms"]
    assert lines[1].split()[2] == "-"
    assert lines[3].lstrip("* ").split()[2] == "6.667"
    assert len({line.index(line.split()[-1]) for line in lines[1:2] + lines[2:5]}) == 1
    assert write(latency_ms=5.5)["teacher"]["latency_ms"] == 5.5
    rows = Page((workdir / "report" / "index.html").read_text()).rows
    assert rows[1][5] == "5.5"


@pytest.mark.parametrize("known", [True, False])
def test_fronts_are_drawn_over_each_cost(monkeypatch, known):
    drawn = []
    monkeypatch.setattr(figures, "svg", lambda figure: drawn.append(figure) or "<svg")
    points = [front.Point(i, 1.0 + i, "k3e3.w8a8", {"latency_ms": 7.0 - i}) for i in range(3)]
    subnets = [{"nsr": p.nsr, **p.costs, "fp32": 50.0, "quantized": 49.0 + p.rank} for p in points]
    teacher = {"size_bytes": 9500, "fp32": 40.0, "quantized": 39.0}
    teacher |= {"latency_ms": 8.0} if known else {}
    figures.front(points, {"teacher": teacher}, subnets, "mIoU", "latency_ms")
    predicted, measured = drawn[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in predicted.lines}
    assert lines["front"] == [[7.0, 1.0], [6.0, 2.0], [5.0, 3.0]]
    assert ("teacher" in lines) == known
    assert predicted.get_xlabel() == "latency of the quantized network (ms)"
    lines = {line.get_label(): line.get_xydata().tolist() for line in measured.lines}
    assert lines["subnets, quantized"] == [[7.0, 49.0], [6.0, 50.0], [5.0, 51.0]]
    if known:
        assert lines["teacher, float"] == [[8.0, 40.0]]
    else:
        assert [y for _, y in lines["teacher, quantized"]] == [39.0, 39.0], "across all latencies"


STEPS = ((30, 1.0), (20, 2.0), (10, 3.0))  # kB and NSR


def test_the_staircase_of_a_front_promises_nothing_that_no_subnet_has(monkeypatch):
    """Between two sizes the best is the smaller one's NSR."""
    drawn = []
    monkeypatch.setattr(figures, "svg", lambda figure: drawn.append(figure) or "<svg")
    points = [
        front.Point(i, nsr, "k3e3.w8a8", {"size_bytes": kb * 1000})
        for i, (kb, nsr) in enumerate(STEPS)
    ]
    teacher = {"size_bytes": 9500, "fp32": 40.0, "quantized": 39.0}
    figures.front(points, {"teacher": teacher}, [], "mIoU")
    figures.fronts({"INT8": points})
    for figure in drawn:
        stairs = figure.axes[0].lines[0]
        corners = cbook.STEP_LOOKUP_MAP[stairs.get_drawstyle()](*stairs.get_xydata().T)
        assert len(corners[0]) == 5
        for kb, nsr in zip(*corners, strict=True):
            assert nsr >= min(n for k, n in STEPS if k <= kb)


def test_the_table_has_a_row_for_each_network_and_marks_those_that_dominate(text):
    parsed = Page(text)
    header, teacher, *subnets = zip(parsed.rows[:5], parsed.marked[:5], strict=True)
    assert header[0][0] == "network"
    assert teacher == (
        ["teacher", "200.0", "100.0 %", "120.0", "100.0 %", "61.50", "60.00", TEACHER["subnet"]],
        False,
    )
    names = ["subnet 1", "subnet 2", "subnet 3"]
    assert [cells[0] for cells, _ in subnets] == names
    assert [marked for _, marked in subnets] == [False, True, False]
    assert subnets[1][0] == [
        *("subnet 2", "1.5000", "150.0", "75.0 %", "70.0", "58.3 %", "62.00", "60.00", DOMINATING),
    ]


def test_single_paths_of_the_supernet_have_a_row_for_each_block(text):
    rows = Page(text).rows
    header = rows.index(
        ["block", "training", "largest", "smallest", "random, mean", "standard deviation"]
    )
    spread = f"{np.sqrt(1 / 6):.4f}"
    assert rows[header + 1][:6] == ["1", "0.5000", "0.4000", "0.6000", "0.7500", spread]
    assert rows[header + 5][:2] == ["5", "0.9000"]
    # Where the log is lost, so is the training's.
    assert rows[header + 6][:5] == ["6", "0.1000", "0.2000", "0.3000", "0.0000"]


def test_the_training_of_the_supernet_is_drawn_block_by_block(run):
    drawn = (run[0] / "report" / "supernet.svg").read_text()
    for label in ("block 1", "block 2", "training step", "0.5", "2"):
        assert f"<!-- {label} -->" in drawn
    assert "block 3" not in drawn


def test_curves_are_those_of_the_metrics(monkeypatch):
    lines = []
    monkeypatch.setattr(figures, "svg", lambda f: lines.extend(f.axes[0].lines) or "<svg")
    figures.supernet({step: {"nsr_block1": nsr, "other": 7.0} for step, nsr in CURVE.items()})
    (line,) = lines
    assert dict(line.get_xydata().tolist()) == CURVE
    assert line.axes.get_yscale() == "log"


def test_a_report_without_a_log_has_no_curves():
    assert figures.supernet({}).startswith("<svg")


def test_a_supernet_whose_paths_were_not_measured_is_refused_with_what_to_do(run, tmp_path):
    """As an older version left it."""
    old = tmp_path / "old"
    shutil.copytree(run[0], old)
    Stage(old / "supernet", {}).finish()
    (old / "supernet" / "nsr.json").unlink()
    message = r"nsr\.json: is missing; delete made_from\.json next to it, then repeat the command"
    with pytest.raises(InputError, match=message):
        page.write(old, *MIOU, SECONDS, [], Batch(np.zeros(0), np.zeros(0)))


def test_the_page_tells_what_was_run(text):
    assert "<h1>&lt;run&gt; &amp; co</h1>" in text
    assert "streets, 1024 x 2048; bitwidths w8a8, w4a8; seed 7; 3 subnets on the front" in text
    assert "1 of 3 retrained subnets dominate the quantized teacher." in text
    assert "<tr><td>teacher</td><td>3m20s</td></tr><tr><td>lut</td><td>2h05m</td></tr>" in text
    assert not re.search(r"\$\w", text), "a place of the template was left empty"


def test_predictions_are_those_of_the_teacher_and_of_the_most_accurate_subnet(run):
    images, maps, _ = run[2]
    assert images.shape == (IMAGES, HEIGHT, WIDTH, 3)
    # The most accurate subnet was written first, and is the third by size.
    assert [(name, np.unique(values).tolist()) for name, values in maps.items()] == [
        ("labels", [18]),
        ("teacher", [0]),
        ("subnet 3", [1]),
    ]


def test_results_as_text_are_a_line_for_each_network(run):
    header, teacher, *subnets, legend = outcome.as_text(run[1]).splitlines()
    assert header.split("  ")[-1] == "network"
    assert teacher.split() == ["200.0", "120.0", "61.50", "60.00", "teacher"]
    by_size = sorted(SUBNETS, key=lambda subnet: subnet[-1])
    for line, (subnet, _, fp32, quantized, size) in zip(subnets, by_size, strict=True):
        cells = [f"{size / 1e3:.1f}", f"{size / 1e3 - 80:.1f}", f"{fp32:.2f}", f"{quantized:.2f}"]
        assert line.removeprefix("*").split() == [*cells, subnet]
        assert line.startswith("*") == (subnet == DOMINATING)
    assert len({line.index(line.split()[-1]) for line in (teacher, *subnets)}) == 1, "columns"
    assert legend == "* dominates the quantized teacher"


def test_a_subnet_dominates_if_nothing_is_worse_and_something_better():
    teacher = {"size_bytes": 100, "quantized": 60.0}
    found = {
        (size, miou): outcome.dominates({"size_bytes": size, "quantized": miou}, teacher)
        for size, miou in itertools.product((99, 100, 101), (59.9, 60.0, 60.1))
    }
    assert {pair for pair, better in found.items() if better} == {
        (99, 60.0), (99, 60.1), (100, 60.1),
    }  # fmt: skip

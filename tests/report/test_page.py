import base64
import io
import re
import shutil

import numpy as np
import pytest
from matplotlib import cbook
from PIL import Image

from qnas_jax.bwnas import config
from qnas_jax.data.batching import Batch
from qnas_jax.errors import InputError
from qnas_jax.report import figures, outcome, page
from qnas_jax.run import artefacts
from qnas_jax.run.stage import Stage
from qnas_jax.search import front
from report_run import (
    CURVE,
    DOMINATING,
    HEIGHT,
    IMAGES,
    MIOU,
    SECONDS,
    SUBNETS,
    TEACHER,
    WIDTH,
    Page,
    run,
)

__all__ = ["run"]


@pytest.fixture(scope="module")
def text(run):
    return (run[0] / "report" / "index.html").read_text()


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
    settings = config.Config()
    settings.hardware.table = "my <board>.csv"
    artefacts.write_json(workdir / "config.json", settings)
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

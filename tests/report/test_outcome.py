"""The figures of a run, as data and as text."""

import itertools
import json

import numpy as np

from qnas_jax.data.batching import Batch
from qnas_jax.report import exports, outcome, page
from qnas_jax.run.stage import read_json
from report_run import (
    DOMINATING,
    FIGURES,
    HEIGHT,
    IMAGES,
    MIOU,
    SECONDS,
    SUBNETS,
    TEACHER,
    WIDTH,
    Page,
    run,
    write_network,
)

__all__ = ["run"]


def test_the_report_and_its_figures_have_the_exported_files(run):
    workdir, results, _ = run
    names = ["teacher", *(subnet["subnet"] for subnet in results["subnets"])]
    files = [exports.File(1050 + n, 1000, 20.5, 99.9871, 2.0 + n, 1.0) for n in range(len(names))]
    networks = [workdir / "retrain" / name for name in names[1:]]
    images = np.zeros((IMAGES, HEIGHT, WIDTH, 3), np.uint8)
    samples = Batch(images, images[..., 0])
    given = dict(zip(names, files, strict=True))
    again = page.write(workdir, *MIOU, SECONDS, networks, samples, files=given)
    assert again["teacher"]["file"] == {**files[0]._asdict(), "ratio": 2.0}
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

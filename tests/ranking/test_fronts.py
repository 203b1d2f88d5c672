"""Fronts of several searches side by side, and a whole audit, on networks of a second."""

import json

import pytest

import small_audit
from qnas_jax.bwnas import pipeline as bwnas
from qnas_jax.ranking import fronts, pipeline, scores


def test_the_area_is_the_share_of_the_box_that_is_dominated():
    corner = {"size_bytes": 50.0, "accuracy": 75.0}  # half of the size, half of the accuracies
    assert fronts.area([corner], 100.0, 100.0) == pytest.approx(0.25)
    small = {"size_bytes": 25.0, "accuracy": 60.0}
    assert fronts.area([corner, small], 100.0, 100.0) == pytest.approx(0.25 + 0.25 * 0.2)
    beyond = [{"size_bytes": 110.0, "accuracy": 99.0}, {"size_bytes": 10.0, "accuracy": 49.0}]
    assert fronts.area(beyond, 100.0, 100.0) == 0
    assert fronts.area([{"size_bytes": 0.0, "accuracy": 110.0}], 100.0, 100.0) > 1


def written(folder):
    """When the scores and the figures of each network were written."""
    kinds = ("**/scores.json", "**/metrics.json")
    files = [file for kind in kinds for file in folder.glob(kind) if file.is_file()]
    return {file: file.stat().st_mtime_ns for file in files}


@pytest.mark.slow
def test_fronts_and_an_audit_share_a_folder_and_are_made_once(tmp_path):
    own = {"subnets": 8, "seeds": 1, "front": 2, "candidates": 6}
    given = small_audit.given(**own)
    scores.check(given)
    first = fronts.compare(tmp_path, bwnas.search(given, tmp_path))
    assert list(first["fronts"]) == list(fronts.TITLES)
    for one in first["fronts"].values():
        assert 1 <= len(one["networks"]) <= 2
        assert one["supernet_seconds"] > 0
    assert [first["fronts"][name]["scored"] for name in ("spos", "fairnas")] == [6, 6]
    audited = pipeline.run(given, tmp_path)
    assert len(audited["subnets"]) == 8
    assert [row["kind"] for row in audited["teachers"]] == ["teacher", "teacher, trained on"]
    assert {"nsr", "spos", "fairnas", "size"} <= audited["scores"].keys()
    assert json.loads((tmp_path / "audit" / "results.json").read_text()) == audited
    made = written(tmp_path)
    assert len(made) > 10
    again = fronts.compare(tmp_path, bwnas.search(given, tmp_path))
    assert again["fronts"] == first["fronts"]
    assert pipeline.run(given, tmp_path) == audited
    assert written(tmp_path) == made, "nothing is trained or scored again"

"""A whole run of HQNAS on a tiny network."""

import json

import pytest

import small_hqnas
from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.hqnas import pipeline
from qnas_jax.stages import fit


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("hqnas")
    return workdir, pipeline.run(small_hqnas.small(exports=False), workdir)


@pytest.mark.slow
def test_a_record_has_what_was_found(finished):
    workdir, results = finished
    assert results == json.loads((workdir / "hqnas" / "results.json").read_text())
    (record,) = results["records"]
    assert record["method"] == "hqnas"
    assert record["adapted_from"] == ""
    assert record["budget"] == pytest.approx(0.6 * record["teacher_cost"])
    assert record["latency_ms"] <= record["budget"] * (1 + 1e-5)
    assert record["scored"][0][1] == pytest.approx(record["latency_ms"])
    assert record["search_accuracy"] == record["scored"][0][2]
    subnet = space.parse_subnet(record["subnet"])
    assert [len(block) for block in subnet] == [1] * 6
    assert {c.w_bits for block in subnet for c in block} <= {2, 4, 8}
    assert (workdir / "report" / "index.html").exists()


@pytest.mark.slow
def test_a_finished_run_is_not_run_again(finished):
    workdir, results = finished
    assert pipeline.run(small_hqnas.small(exports=False), workdir) == results


def test_a_budget_below_the_smallest_subnet_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"hqnas.budgets=0.02.*the fastest subnet takes"):
        pipeline.run(small_hqnas.small(budgets=(0.02,)), tmp_path)
    assert not any(tmp_path.iterdir())


def test_an_unknown_cost_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"hqnas.cost='energy_mj'.*knows size_bytes, latency_ms"):
        pipeline.run(small_hqnas.small(cost="energy_mj"), tmp_path)


@pytest.mark.slow
def test_a_resumed_search_has_the_same_logits(finished, tmp_path, monkeypatch):
    """The run breaks off in the search, at a step after its second checkpoint."""
    workdir, _ = finished
    given = small_hqnas.small(exports=False)
    searches = tmp_path / "hqnas" / "bismo_edge-latency_ms-0.6-s0"
    batches, begun = fit.batches, []

    def breaking(*how):
        make = batches(*how)
        begun.append(make)

        def batch(step):
            if len(begun) == 2 and step == 5:  # the first are those of the warm-up
                raise RuntimeError("broken off")
            return make(step)

        return batch

    with monkeypatch.context() as patched:
        patched.setattr(fit, "batches", breaking)
        with pytest.raises(RuntimeError, match="broken off"):
            pipeline.run(given, tmp_path)
    assert (searches / "checkpoint").is_dir()
    assert not (searches / "subnets.json").exists()
    pipeline.run(given, tmp_path)
    name = "hqnas/bismo_edge-latency_ms-0.6-s0/subnets.json"
    whole, resumed = (json.loads((at / name).read_text()) for at in (workdir, tmp_path))
    assert resumed == whole


@pytest.mark.slow
def test_files_compute_what_was_evaluated(finished):
    workdir, _ = finished
    pipeline.run(small_hqnas.small(), workdir)
    (folder,) = (workdir / "export").iterdir()
    parity = json.loads((folder / "parity.json").read_text())
    scores = parity["top1"]
    assert scores["model.onnx"] == scores["model.tflite"] == scores["simulation"]

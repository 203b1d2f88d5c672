"""A whole one-shot search on a tiny network."""

import json

import numpy as np
import pytest

import small_oneshot
from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.oneshot import coding, pipeline, searching
from qnas_jax.oneshot.experiment import Begun
from qnas_jax.run.stage import Stage
from qnas_jax.stages import budgets, fit
from qnas_jax.stages.candidates import Scores
from qnas_jax.stages.experiment import prepare

NSGA2 = {"search": "nsga2", "sampling": "fair"}


def begun_of(given):
    """A run as `begin` gives it, without a teacher that is trained."""
    config, problem, deployed = prepare(given)
    coded = coding.Coding(problem.space, config.space.bits, config.space.bits_per == "layer")
    costs = coding.known_costs(deployed, coded)
    teacher = budgets.teacher_cost(deployed, problem, config.oneshot.cost)
    bounds = {share: share * teacher for share in config.oneshot.budgets}
    unused = (None, None)
    return Begun(config, problem, None, deployed, *unused, coded, costs, teacher, bounds)


class BySize:
    """More bits are more accurate; breaks off after some subnets."""

    def __init__(self, most=10**6):
        self.asked, self.most = [], most

    def __call__(self, subnets):
        self.asked += map(space.format_subnet, subnets)
        if len(self.asked) > self.most:
            raise RuntimeError("broken off")
        return Scores(
            np.array(
                [sum(c.w_bits + c.op.expansion for b in s for c in b) for s in subnets], float
            ),
            np.zeros((len(subnets), 0)),
        )


@pytest.mark.parametrize("settings", [{}, NSGA2], ids=["evolution", "nsga2"])
def test_a_search_that_was_stopped_finds_the_same(tmp_path, settings):
    begun = begun_of(small_oneshot.small(candidates=70, **settings))
    share = 0.0 if settings else 0.8
    supernet, whole = Stage(tmp_path / "supernet", {}), BySize()
    expected = searching.found(tmp_path / "whole", begun, supernet, whole, share)
    assert len(expected.scored) == len(set(whole.asked)) == len(whole.asked) == 70
    broken, rest = BySize(most=60), BySize()
    with pytest.raises(RuntimeError, match="broken off"):
        searching.found(tmp_path / "again", begun, supernet, broken, share)
    found = searching.found(tmp_path / "again", begun, supernet, rest, share)
    assert (found.scored, found.chosen) == (expected.scored, expected.chosen)
    assert len(rest.asked) == 10
    again = searching.found(tmp_path / "again", begun, supernet, BySize(most=0), share)
    assert again.scored == found.scored
    if share:
        assert all(one.cost <= begun.budgets[share] for one in found.scored)
        (best,) = found.chosen
        assert best.accuracy == max(one.accuracy for one in found.scored)
    else:
        assert [c.cost for c in found.chosen] == sorted(c.cost for c in found.chosen)
        assert len(found.chosen) == begun.config.retrain.subnets


def test_another_search_is_not_taken_for_this_one(tmp_path):
    supernet, begun = Stage(tmp_path / "supernet", {}), begun_of(small_oneshot.small())
    searching.found(tmp_path, begun, supernet, BySize(), 0.8)
    other = begun_of(small_oneshot.small(candidates=7))
    with pytest.raises(InputError, match=r"candidates: 6, now 7"):
        searching.found(tmp_path, other, supernet, BySize(), 0.8)


def test_a_budget_below_the_smallest_subnet_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"oneshot.budgets=0.02.*the smallest subnet has") as error:
        pipeline.run(small_oneshot.small(budgets=(0.8, 0.02)), tmp_path)
    assert "\n" not in str(error.value)
    assert not any(tmp_path.iterdir())


def test_an_unknown_cost_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"oneshot.cost='energy_mj'.*knows size_bytes"):
        pipeline.run(small_oneshot.small(cost="energy_mj"), tmp_path)


def test_fair_steps_without_a_change_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"oneshot.steps=5: must be a multiple of the 2 ops"):
        pipeline.run(small_oneshot.small(sampling="fair", steps=5), tmp_path)


def test_a_target_with_one_scale_for_a_layer_is_refused(tmp_path):
    given = small_oneshot.small()
    given.hardware.target = "per_tensor"
    with pytest.raises(InputError, match="has one scale for all weights of a layer"):
        pipeline.run(given, tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("oneshot")
    return workdir, pipeline.run(small_oneshot.small(), workdir)


@pytest.mark.slow
def test_a_record_has_what_was_found(finished):
    workdir, results = finished
    for name in ("oneshot", "report"):
        assert results == json.loads((workdir / name / "results.json").read_text())
    (record,) = results["records"]
    assert record["budget"] == pytest.approx(0.8 * results["teacher_cost"])
    assert record["cost"] == record["size_bytes"] <= record["budget"]
    (scored,) = results["scored"].values()
    assert len(scored) == 6
    best = max(scored, key=lambda row: (row[2], -row[1]))
    assert best == [record["subnet"], record["cost"], record["shared_accuracy"]]
    held = json.loads((workdir / "retrain" / record["subnet"] / "metrics.json").read_text())
    assert record["accuracy"] == held["top1_quantized"]
    assert len(pipeline.as_text(results).splitlines()) == 3


@pytest.mark.slow
def test_the_page_has_its_figure_and_no_field_left(finished):
    page = (finished[0] / "report" / "index.html").read_text()
    assert page.count("<svg") == 1
    assert "$" not in page.split("<svg")[0]
    assert finished[1]["records"][0]["subnet"] in page


@pytest.mark.slow
def test_files_compute_what_was_evaluated(finished):
    workdir, results = finished
    (folder,) = (workdir / "export").iterdir()
    scores = json.loads((folder / "parity.json").read_text())["top1"]
    assert scores["model.onnx"] == scores["simulation"]
    assert scores["jax_int8"] == pytest.approx(results["records"][0]["accuracy"])


@pytest.mark.slow
def test_a_finished_run_is_not_run_again(finished, monkeypatch):
    workdir, results = finished

    def never(*_):
        raise AssertionError("a finished search runs again")

    monkeypatch.setattr(searching, "_search", never)
    assert pipeline.run(small_oneshot.small(), workdir) == results


@pytest.mark.slow
def test_a_front_is_searched_per_layer_from_a_fair_supernet(tmp_path, monkeypatch):
    """The run breaks off in the supernet, between two changes of its weights."""
    given = small_oneshot.small(init="random", **NSGA2)
    given.space.bits_per, given.retrain.init = "layer", "scratch"
    batches, begun = fit.batches, []

    def breaking(*how):
        make = batches(*how)
        begun.append(make)

        def batch(step):
            if len(begun) == 2 and step == 1:  # the first are those of the teacher
                raise RuntimeError("broken off")
            return make(step)

        return batch

    with monkeypatch.context() as patched:
        patched.setattr("qnas_jax.oneshot.training.batches", breaking)
        patched.setattr("qnas_jax.stages.train.batches", breaking)
        with pytest.raises(RuntimeError, match="broken off"):
            pipeline.run(given, tmp_path)
    assert not (tmp_path / "oneshot" / "none-size_bytes-front").exists()
    results = pipeline.run(given, tmp_path)
    costs = [record["cost"] for record in results["records"]]
    assert costs == sorted(costs) and 1 <= len(costs) <= 2
    assert results["sampling"] == "fair"

"""A finished search for other devices, budgets and images; and searches within several budgets."""

import json

import pytest

import small_hqnas
from qnas_jax.errors import InputError
from qnas_jax.hqnas import experiment, lifelong, pipeline
from qnas_jax.hqnas.config import Adapt

DARK = (("dark", 0.5),)


def with_adapt(**settings):
    given = small_hqnas.small(exports=False)
    given.adapt = Adapt(**settings)
    return given


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("hqnas")
    return workdir, pipeline.run(small_hqnas.small(exports=False), workdir)


@pytest.mark.slow
def test_an_adaptation_is_a_new_record_and_the_old_one_stays(finished):
    workdir, results = finished
    (old,) = results["records"]
    after = lifelong.run(with_adapt(target="bismo_cloud", budget=0.5), workdir, "cloud")
    assert after["records"][0] == old
    new = after["records"][1]
    assert new["adapted_from"] == old["name"]
    assert new["device"] == "bismo_cloud"
    assert new["latency_ms"] <= 0.5 * new["teacher_cost"] * (1 + 1e-5)
    assert pipeline.run(small_hqnas.small(exports=False), workdir)["records"][1] == new
    with pytest.raises(InputError, match="other settings"):
        lifelong.run(with_adapt(target="bismo_cloud", budget=0.4), workdir, "cloud")


@pytest.mark.slow
def test_what_cannot_be_adapted_is_said_at_once(finished, tmp_path):
    workdir, _ = finished
    with pytest.raises(InputError, match="is not finished; run that search first"):
        lifelong.run(with_adapt(budget=0.5), tmp_path, "early")
    with pytest.raises(InputError, match=r"adapt.budget=0.01.*the fastest subnet takes"):
        lifelong.run(with_adapt(budget=0.01), workdir, "small")
    with pytest.raises(InputError, match="does not know 'energy_mj'; it knows size_bytes"):
        lifelong.run(with_adapt(cost="energy_mj"), workdir, "energy")
    with pytest.raises(InputError, match=r"adapt.target='x86_avx2': weights have at most 7 bits"):
        lifelong.run(with_adapt(target="x86_avx2", cost="size_bytes"), workdir, "avx2")
    with pytest.raises(InputError, match="must be a name"):
        lifelong.run(with_adapt(budget=0.5), workdir, "../up")


@pytest.mark.slow
def test_shared_weights_learn_on_shifted_images(finished):
    workdir, results = finished
    (old,) = results["records"]
    given = with_adapt(corruptions=DARK, steps=3)
    after = lifelong.run(given, workdir, "dark")
    new = after["records"][-1]
    assert after["records"][0] == old
    assert new["adapted_from"] == old["name"]
    assert 0 <= new["unadapted_accuracy"] <= 100
    assert (workdir / "hqnas" / "adapted-dark" / "checkpoint").is_dir()
    assert lifelong.run(given, workdir, "dark")["records"][-1] == new


@pytest.mark.slow
def test_shared_weights_learn_where_classes_are_as_frequent_as_elsewhere(finished):
    workdir, _ = finished
    given = with_adapt(frequencies=(("car", 9.0), ("bus", 0.1)), steps=3)
    new = lifelong.run(given, workdir, "cars")["records"][-1]
    assert (workdir / "hqnas" / "adapted-cars" / "checkpoint").is_dir()
    assert 0 <= new["unadapted_accuracy"] <= 100
    with pytest.raises(InputError, match="there is no class 'cow'"):
        lifelong.run(with_adapt(frequencies=(("cow", 9.0),)), workdir, "cows")


@pytest.mark.slow
def test_a_class_that_the_search_did_not_see_is_learned(tmp_path):
    def without_bus(**adapt):
        given = with_adapt(**adapt)
        given.data.frequencies = (("bus", 0.0),)
        return given

    pipeline.run(without_bus(), tmp_path)
    given = without_bus(frequencies=(("bus", 1.0),), steps=3)
    begun = experiment.begin(given, tmp_path)
    moved = lifelong._shifted(begun)
    bus = begun.problem.train.names.index("bus")
    for old, new in (
        (begun.problem.train, moved.problem.train),
        (begun.problem.val, moved.problem.val),
        (begun.held_out, moved.held_out),
    ):
        assert len(old) >= len(new) > 0
        assert all(old[i][1] != bus for i in range(len(old)))
    assert any(moved.problem.train[i][1] == bus for i in range(len(moved.problem.train)))
    every, held_out = lifelong._with_all_classes(begun)
    trained = {begun.problem.train[i][0].tobytes() for i in range(len(begun.problem.train))}
    assert all(held_out[i][0].tobytes() not in trained for i in range(len(held_out)))
    assert len(every.train) + given.hqnas.score_images == 72
    record = lifelong.run(given, tmp_path, "buses")["records"][-1]
    assert 0 <= record["unadapted_accuracy"] <= 100


@pytest.mark.slow
def test_what_was_learned_flows_on_only_where_it_is_asked_for(finished):
    workdir, results = finished
    lifelong.run(with_adapt(corruptions=DARK, steps=3), workdir, "dark")
    lifelong.run(with_adapt(budget=0.5), workdir, "plain")
    lifelong.run(with_adapt(budget=0.5, after="dark"), workdir, "darker")

    def mark(name):
        return json.loads((workdir / "hqnas" / name / "made_from.json").read_text())

    (old,) = results["records"]
    assert mark("adapted-plain")["made_from"]["after"] == mark(old["name"])["hash"]
    assert mark("adapted-darker")["made_from"]["after"] == mark("adapted-dark")["hash"]
    assert not (workdir / "hqnas" / "adapted-darker" / "checkpoint").exists()


def test_prices_and_shifted_images_are_two_adaptations(tmp_path):
    given = with_adapt(corruptions=DARK, prices=(("latency_ms", 0.5),))
    with pytest.raises(InputError, match="not together; adapt to the images, then"):
        lifelong.run(given, tmp_path, "both")


@pytest.mark.slow
def test_an_adaptation_without_weights_is_no_beginning(finished):
    workdir, _ = finished
    with pytest.raises(InputError, match=r"adapt.after='none': must be a finished adaptation"):
        lifelong.run(with_adapt(budget=0.5, after="none"), workdir, "next")


@pytest.mark.slow
def test_several_budgets_hold_together(tmp_path):
    given = small_hqnas.small(exports=False, limits=(("size_bytes", 0.8),))
    (record,) = pipeline.run(given, tmp_path)["records"]
    assert record["latency_ms"] <= record["budget"] * (1 + 1e-5)
    assert record["size_bytes"] <= record["limits"]["size_bytes"] * (1 + 1e-5)


def test_limits_that_cannot_be_kept_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"hqnas.limits=0.01.*the smallest subnet has"):
        pipeline.run(small_hqnas.small(limits=(("size_bytes", 0.01),)), tmp_path)
    with pytest.raises(InputError, match=r"hqnas.limits='energy_mj'.*knows size_bytes"):
        pipeline.run(small_hqnas.small(limits=(("energy_mj", 0.5),)), tmp_path)
    with pytest.raises(InputError, match=r"must be a cost other than hqnas\.cost"):
        pipeline.run(small_hqnas.small(limits=(("latency_ms", 0.5),)), tmp_path)


@pytest.mark.slow
def test_a_mixture_searches_too(tmp_path):
    given = small_hqnas.small(exports=False, relaxation="mixture")
    (record,) = pipeline.run(given, tmp_path)["records"]
    assert record["latency_ms"] <= record["budget"] * (1 + 1e-5)

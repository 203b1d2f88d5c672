"""Networks that other ways choose, trained as those of a search."""

import jax.numpy as jnp
import numpy as np
import pytest

import small_hqnas
from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.hqnas import fronts, pipeline, relax, rivals
from qnas_jax.hqnas.shared import Shared
from qnas_jax.search import front
from qnas_jax.search.front import Point
from qnas_jax.space import Choice, Op

OPS, BITS = (Op(3, 3), Op(5, 6)), (2, 8)
DESCRIBED = Shared(OPS, BITS, ("a", "b"), (1, 1), {})


def bounds(budget):
    """Each layer costs its place among the ops, plus a tenth of both bitwidths."""
    w, a = np.meshgrid(BITS, BITS, indexing="ij")
    layers = np.arange(2)[:, None, None] + (w + a)[None] / 10
    layers = jnp.asarray(np.stack([layers, layers]), jnp.float32)
    return {"latency_ms": relax.Costs(layers, jnp.float32(0), jnp.float32(budget))}


def subnet(*choices):
    return tuple((choice,) for choice in choices)


def written(path, *rows):
    sizes = {"size_bytes": 1, "encoder_size_bytes": 1}
    points = [Point(i, nsr, space.format_subnet(s), sizes) for i, (nsr, s) in enumerate(rows)]
    front.write(path, points)
    return path


def test_the_lowest_noise_within_the_budget_is_taken(tmp_path):
    large = subnet(Choice(OPS[1], 8, 8), Choice(OPS[1], 8, 8))  # costs 5.2
    middle = subnet(Choice(OPS[1], 8, 2), Choice(OPS[0], 8, 8))  # 2 + 1.6
    small = subnet(Choice(OPS[0], 2, 2), Choice(OPS[0], 2, 2))  # 0.8
    file = written(tmp_path / "front.csv", (0.1, large), (0.2, middle), (0.9, small))
    for budget, expected in ((6.0, large), (5.0, middle), (3.0, small)):
        assert fronts.best(file, DESCRIBED, bounds(budget)) == expected
    with pytest.raises(InputError, match=r"no subnet meets the budgets: latency_ms 0.5"):
        fronts.best(file, DESCRIBED, bounds(0.5))


def test_a_name_without_a_folder_is_a_file_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fronts.file_of(("front.csv",), 3) == tmp_path / "front.csv"
    assert fronts.seconds(fronts.file_of(("front.csv",), 0)) == 0


def test_a_front_of_another_space_is_refused(tmp_path):
    other = subnet(Choice(Op(7, 6), 8, 8), Choice(OPS[0], 8, 8))
    file = written(tmp_path / "front.csv", (0.1, other))
    with pytest.raises(InputError, match="is not in the space of this run"):
        fronts.best(file, DESCRIBED, bounds(9.0))
    with pytest.raises(InputError, match="is missing"):
        fronts.check([str(tmp_path / "none.csv")], DESCRIBED, [bounds(9.0)])


def test_ops_are_searched_at_one_bitwidth():
    logits = rivals._only_ops(DESCRIBED, 1)
    shares = relax.probabilities(logits)
    np.testing.assert_allclose(shares.op, 0.5)
    np.testing.assert_array_equal(shares.w, [[0, 1], [0, 1]])
    costs = relax.at_bits(bounds(1.0)["latency_ms"], 0)
    np.testing.assert_allclose(costs.layers[:, 1], 1.4)


def test_one_choice_of_each_layer_is_allowed():
    values = jnp.full((2, 3), 0.5)
    off = np.inf
    np.testing.assert_array_equal(rivals._fixed(values, 1), [[off, 0, off]] * 2)
    found = rivals._fixed(values, np.array([2, 0], np.uint8))
    np.testing.assert_array_equal(found, [[off, off, 0], [0, off, off]])


def test_rivals_without_a_front_are_refused_at_once(tmp_path):
    with pytest.raises(InputError, match=r"hqnas.fronts: 0 files: must be one file"):
        pipeline.run(small_hqnas.small(rivals=("bwnas",)), tmp_path)
    given = small_hqnas.small(rivals=("bwnas",), fronts=(str(tmp_path / "none.csv"),))
    with pytest.raises(InputError, match="is missing"):
        pipeline.run(given, tmp_path / "run")
    with pytest.raises(InputError, match="'sequential' counts ops at the middle bitwidth"):
        pipeline.run(small_hqnas.small(rivals=("sequential",), budgets=(0.12,)), tmp_path)
    with pytest.raises(InputError, match=r"hqnas.rivals='greedy'"):
        pipeline.run(small_hqnas.small(rivals=("greedy",)), tmp_path)


@pytest.mark.slow
def test_a_run_has_a_record_of_each_way(tmp_path):
    given = small_hqnas.small(exports=False, rivals=("sequential", "bwnas"))
    smallest = tuple((Choice(Op(3, 3), 2, 4),) for _ in range(6))
    file = written(tmp_path / "front.csv", (0.5, smallest))
    given.hqnas.fronts = (str(file),)
    records = pipeline.run(given, tmp_path / "run")["records"]
    assert [row["method"] for row in records] == ["hqnas", "sequential", "bwnas"]
    assert len({row["name"] for row in records}) == 3
    for row in records:
        assert row["latency_ms"] <= row["budget"] * (1 + 1e-5)
        assert row["adapted_from"] == ""
    assert records[2]["subnet"] == space.format_subnet(smallest)
    assert pipeline.run(given, tmp_path / "run")["records"] == records
    # Without rivals the network begins with the weights of its own search: another one.
    given.hqnas.rivals, given.hqnas.fronts = (), ()
    alone = pipeline.run(given, tmp_path / "run")["records"]
    assert len(list((tmp_path / "run" / "retrain").iterdir())) == 4
    assert {row["method"] for row in alone} == {"hqnas", "sequential", "bwnas"}

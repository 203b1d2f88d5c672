"""What an audit says of scores that are known to be good or useless."""

import json

import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.metrics import kendall_tau
from qnas_jax.ranking import results
from qnas_jax.ranking.drawn import Drawn
from qnas_jax.ranking.scores import Scored
from qnas_jax.report import ranking as page

COUNT = 30


def subnet(number):
    bits = (8, 4)[number % 2]
    return ((space.Choice(space.Op(3, 2 + number), bits, bits),),)


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(0)
    truth = np.sort(rng.uniform(40, 50, COUNT))
    reached = {
        name: truth[:, None] + rng.normal(0, 0.2, (COUNT, 2)) for name in ("fp32", "quantized")
    }
    rows = [{"size_bytes": 1000 + 10 * i, "macs": 5 * i} for i in range(COUNT)]
    noise = rng.random((COUNT, 3))
    noise[:, 0] = 60 - truth
    scores = {
        "nsr": Scored("NSR sum", 50 - truth + rng.normal(0, 0.5, COUNT)),
        "spos": Scored("SPOS", rng.random(COUNT), False),
        "size": Scored("size", np.array([row["size_bytes"] for row in rows], float), False),
        "macs": Scored("MACs", np.array([row["macs"] for row in rows], float), False),
        "random": Scored("random", rng.random(COUNT)),
    }
    drawn = [Drawn("random", subnet(i)) for i in range(COUNT)]
    return results.gather(
        drawn, reached, rows, scores, {"nsr": noise}, band=0.03, seeds=range(2)
    ), scores, reached  # fmt: skip


def test_taus_are_scipys_and_lie_in_their_intervals(found):
    content, scores, reached = found
    truth = reached["quantized"].mean(1)
    for name, score in scores.items():
        row = content["scores"][name]
        sign = -1 if score.lower_is_better else 1
        assert row["tau"] == pytest.approx(kendall_tau(sign * score.values, truth))
        assert row["low"] <= row["tau"] <= row["high"]
    assert content["scores"]["nsr"]["low"] > 0.7
    assert content["scores"]["random"]["low"] < 0.3


def test_pairs_of_equal_size_and_bitwidths_are_counted(found):
    content, *_ = found
    sizes = [row["size_bytes"] for row in content["subnets"]]
    pairs = [(a, b) for i, a in enumerate(sizes) for b in sizes[:i]]
    close = sum(abs(a - b) <= 0.03 * max(a, b) for a, b in pairs)
    assert content["pairs"] == {"equal_size": close, "equal_bits": 2 * (15 * 14 // 2)}


def test_the_ceiling_is_the_tau_of_two_seeds(found):
    content, _, reached = found
    assert content["ceiling"]["tau"] == pytest.approx(kendall_tau(*reached["quantized"].T))
    assert content["noise"] == pytest.approx(0.2, rel=0.5)


def test_a_weighted_sum_that_can_be_learned_is(found):
    content, *_ = found
    assert set(content["fitted_on"]["nsr"]) == {"10", "20"}
    assert content["fitted_on"]["nsr"]["20"] > 0.9


def test_the_paragraph_and_the_page_name_the_best_score(found, tmp_path):
    content, *_ = found
    assert "NSR sum" in content["paragraph"] or "size" in content["paragraph"]
    assert "Two trainings" in content["paragraph"]
    teacher = {"kind": "teacher", "size_bytes": 1e3, "fp32": [88.5], "quantized": [87.25]}
    teachers = [{**teacher, "subnet": ""}]
    whole = {"metric": "top1", "title": "top-1 accuracy", "teachers": teachers, **content}
    json.dumps(whole, allow_nan=False)
    page.write(tmp_path, whole)
    text = (tmp_path / "audit" / "index.html").read_text()
    assert "<td>teacher</td><td>1.0</td><td>88.50</td><td>87.25</td>" in text
    assert content["paragraph"] in text
    assert text.count("<tr>") == 2 + len(content["scores"]) + 1 + COUNT + len(teachers)
    assert "best" in results.as_text(whole)


def test_one_seed_has_no_ceiling():
    truth = np.linspace(1, 9, 9)[:, None]
    rows = [{"size_bytes": 1 + i, "macs": i} for i in range(9)]
    scores = {name: Scored(name, truth[:, 0], False) for name in ("nsr", "size")}
    drawn = [Drawn("random", subnet(i)) for i in range(9)]
    reached = {"fp32": truth, "quantized": truth}
    found = results.gather(drawn, reached, rows, scores, {}, band=0.1, seeds=[0])
    assert found["ceiling"] is None
    assert found["noise"] is None
    assert "Two trainings" not in found["paragraph"]

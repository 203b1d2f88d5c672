"""The figures of an audit, on made-up numbers."""

import pytest
import scipy.stats

from qnas_jax.profiling import audit
from qnas_jax.profiling.audit import Audited, Conditions

SUBNETS = [
    Audited("a", 1.0, 1.1, 900, 900, 1000, 1010),
    Audited("b", 2.0, 1.9, 1800, 1800, 2000, 2010),
    Audited("c", 3.0, 4.0, 2700, 2700, 3000, 3030),
    Audited("d", 2.5, 5.0, 3600, 3600, 4000, 4000),
]


def test_the_figures_are_those_of_the_books():
    found = audit.verdict(SUBNETS)
    table, measured = [1.0, 2.0, 3.0, 2.5], [1.1, 1.9, 4.0, 5.0]
    tau = scipy.stats.kendalltau(table, measured).statistic
    assert found["latency_tau"] == pytest.approx(tau, abs=1e-4)
    errors = [1 / 1.1 - 1, 2 / 1.9 - 1, -0.25, -0.5]
    assert found["latency_mape"] == pytest.approx(100 * sum(map(abs, errors)) / 4, abs=1e-3)
    assert found["latency_bias"] == pytest.approx(100 * sum(errors) / 4, abs=1e-3)
    assert (found["size_tau"], found["subnets"]) == (1.0, 4)
    sizes = [10 / 1010, 10 / 2010, 30 / 3030, 0]
    assert found["size_mape"] == pytest.approx(100 * sum(sizes) / 4, abs=1e-3)
    assert found["size_exact"]


def test_a_single_byte_breaks_exactness():
    wrong = [SUBNETS[0]._replace(size_bytes=901), *SUBNETS[1:]]
    assert not audit.verdict(wrong)["size_exact"]


def test_what_is_drawn_are_table_and_truth():
    latency, size = audit.pairs(SUBNETS)
    assert latency[0] == (1.0, 1.1)
    assert size[3] == (4.0, 4.0)


def test_an_audit_that_a_spreadsheet_has_saved_is_read(tmp_path):
    file = tmp_path / "audit.csv"
    conditions = Conditions("onnxruntime", "1.31", "a, b", 1, 96, 192, 0, "12ab")
    audit.write(file, SUBNETS, conditions)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b",\r\n") + b",,\r\n")
    assert audit.read(file, conditions) == SUBNETS

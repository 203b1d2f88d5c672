"""The benchmark that comes with the package is that of the plan, and its card has its figures."""

import pathlib

import numpy as np
import pytest

from qnas_jax import benchmark
from qnas_jax.benchmark import costs, networks, summary, table

CARD = pathlib.Path(table.__file__).with_name("objects.md")


@pytest.fixture(scope="module")
def found():
    return benchmark.load()


def test_it_is_that_of_the_plan(found):
    plan = networks.PLAN
    assert (found.space, found.bits, found.images) == (plan.space, plan.bits, plan.val_images)
    assert found.right.shape == (plan.networks, plan.seeds, plan.policies)
    tables, fixed = costs.tables(plan)
    assert found.fixed_costs == pytest.approx(fixed)
    for name, values in tables.items():
        np.testing.assert_allclose(found.cost_tables[name], values, rtol=1e-9)


def test_its_card_has_its_figures(found):
    card = CARD.read_text()
    for line in summary.as_text(found).splitlines()[2:-1]:
        name, cells = line[:8].strip(), line[8:].split()
        row = next(row for row in card.splitlines() if row.startswith(f"| {name}"))
        assert [cell.strip() for cell in row.split("|")[2:-1]] == cells, name


def test_right_answers_are_fewer_at_fewer_bits(found):
    means = [
        found.right[:, :, np.ravel_multi_index((place,) * 4, (5,) * 4)].mean() for place in range(5)
    ]
    assert sorted(means, reverse=True) == means
    assert 0.08 < means[-1] / found.images < 0.2, "two bits: little more than chance, a twelfth"

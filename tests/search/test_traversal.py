import numpy as np
import pytest

from qnas_jax.search import pareto, traversal


def instance(rng, blocks=5, rows=8, noise=1.0):
    """Random candidates, and a budget that the cheapest meet and the best do not.

    Noise of 1: costs have nothing to do with losses; near 0: what is better costs more.
    """
    tables = [rng.random((rows, 2)) for _ in range(blocks)]
    for table in tables:
        table[:, 1] = noise * table[:, 1] + (1 - noise) * (1 - table[:, 0])
    lowest = sum(table[:, 1].min() for table in tables)
    best = sum(table[table[:, 0].argmin(), 1] for table in tables)
    highest = max(best, lowest + 0.1)
    return tables, lowest + rng.uniform(0.1, 0.9) * (highest - lowest)


def brute(tables, budget):
    """The lowest sum of losses below a budget, of all combinations."""
    sums = np.zeros((1, 2))
    for table in tables:
        sums = (sums[:, None] + table[None]).reshape(-1, 2)
    return sums[sums[:, 1] < budget, 0].min(initial=np.inf)


def by_hand(tables, budget):
    """The published loops for three blocks, written out."""
    (l0, c0), (l1, c1), (l2, c2) = (
        (np.float16(t[t[:, 0].argsort(), 0]).astype(float), t[t[:, 0].argsort(), 1]) for t in tables
    )
    most = [len(l0), len(l1), len(l2)]
    whole, best, found = [*most], np.inf, None
    limits = (budget - c1.min() - c2.min(), budget - c2.min(), budget)
    for i in range(most[0]):
        if c0[i] > limits[0]:
            continue
        for j in range(most[1]):
            if j >= most[1]:
                if most[1] == 0:
                    most[0], most[1] = i, whole[1]
                break
            if c0[i] + c1[j] > limits[1]:
                continue
            for k in range(most[2]):
                if c0[i] + c1[j] + c2[k] < limits[2]:
                    if l0[i] + l1[j] + l2[k] < best:
                        best, found = l0[i] + l1[j] + l2[k], (i, j, k)
                    most[2] = k
                    if k == 0:
                        most[1], most[2] = j, whole[2]
                    break
    return [int(t[:, 0].argsort()[place]) for t, place in zip(tables, found, strict=True)], best


def test_the_rows_are_those_of_the_published_loops():
    rng = np.random.default_rng(1)
    for _ in range(200):
        tables, budget = instance(rng, blocks=3, rows=int(rng.integers(1, 7)))
        found = traversal.traverse(tables, budget)
        rows, loss = by_hand(tables, budget)
        assert found.rows.tolist() == rows
        assert found.loss == pytest.approx(loss, abs=1e-12)


# Of 300 instances: how many missed the optimum, and by which share of it these did on average
# and at worst.
@pytest.mark.parametrize(
    ("noise", "expected"), [(0.2, (252, 0.059, 0.27)), (1.0, (89, 0.251, 1.92))]
)
def test_it_is_never_infeasible_and_misses_what_the_front_never_does(noise, expected):
    rng, excess = np.random.default_rng(0), []
    for _ in range(300):
        tables, budget = instance(rng, noise=noise)
        exact = brute(tables, budget)
        found = traversal.traverse(tables, budget)
        loss, cost = sum(t[row] for t, row in zip(tables, found.rows, strict=True))
        assert cost == pytest.approx(found.cost)
        assert cost < budget
        assert found.loss == pytest.approx(loss, rel=2e-3), "float16"
        excess.append(loss / exact - 1)
        front = pareto.pareto_front(tables).objectives
        best = front[front[:, 1] < budget, 0].min()
        assert best == pytest.approx(exact, rel=1e-12)
    excess = np.array(excess)
    missed = excess > 1e-9
    # As the module's docstring has it.
    figures = (missed.sum(), round(excess[missed].mean(), 3), round(excess.max(), 2))
    assert excess.min() > -1e-9
    assert figures == expected


def test_losses_that_float16_cannot_tell_apart_are_tied():
    tables = [np.array([[1.0001, 5.0], [1.0002, 1.0], [1.0, 9.0]])]
    found = traversal.traverse(tables, 6.0)
    assert (found.rows.tolist(), found.loss, found.cost) == ([0], 1.0, 5.0)


def test_candidates_that_are_not_finite_are_left_out():
    tables = [np.array([[np.nan, 0.0], [2.0, 1.0], [-np.inf, 1.0]]), np.array([[1.0, 1.0]])]
    found = traversal.traverse(tables, 3.0)
    assert (found.rows.tolist(), found.loss) == ([1, 0], 3.0)


def test_a_budget_that_nothing_meets_is_refused():
    tables = [np.array([[1.0, 1.0], [0.0, 2.0]])] * 3
    with pytest.raises(ValueError, match="budget=3: the cheapest subnet costs 3"):
        traversal.traverse(tables, 3.0)
    assert traversal.traverse(tables, 3.1).loss == 3
    with pytest.raises(ValueError, match="there is no block"):
        traversal.traverse([], 3.0)
    with pytest.raises(ValueError, match="costs inf"):
        traversal.traverse([*tables, np.zeros((0, 2))], 9.0)


@pytest.mark.parametrize(("budget", "row"), [(1.5, 0), (2.5, 1)])
def test_one_block_is_a_look_up(budget, row):
    found = traversal.traverse([np.array([[1.0, 1.0], [0.5, 2.0]])], budget)
    assert found.rows.tolist() == [row]

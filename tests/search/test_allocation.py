import itertools

import numpy as np
import pytest

from qnas_jax.errors import InputError
from qnas_jax.search import allocation
from qnas_jax.search.allocation import Choices


def choices_of(rng, lead=(0, 1, 2), pinned=(), budget=np.inf):
    """Three layers of 2 to 4 bits with whole costs, infinite outside of the bounds."""
    least, most = np.full((3, 2), 2), np.full((3, 2), 4)
    for layer, kind in pinned:
        least[layer, kind] = most[layer, kind] = 4
    cost = np.full((3, 9, 9), np.inf)
    bits = np.arange(9)
    by_bits = rng.integers(5, 50, (3, 1, 1)) * bits[:, None] * bits + rng.integers(1, 9) * bits
    cost[:, 2:5, 2:5] = by_bits[:, 2:5, 2:5]
    return Choices(least, most, np.array(lead), cost, budget)


def every_policy(choices):
    """All within the bounds with one choice of activations for all readers of a tensor."""
    bounds = zip(choices.least.ravel(), choices.most.ravel(), strict=True)
    ranges = [range(low, high + 1) for low, high in bounds]
    policies = np.array(list(itertools.product(*ranges))).reshape(-1, 3, 2)
    return np.array([p for p in policies if all(p[i, 1] == p[j, 1] for i, j in readers(choices))])


def readers(choices):
    return [(layer, first) for layer, first in enumerate(choices.lead) if layer != first]


def plain_cost(choices, policy):
    return sum(choices.cost[layer, w, a] for layer, (w, a) in enumerate(policy))


def sums_of(added, choices):
    """A score that is the sum of what each choice adds."""

    def score(policies):
        return np.array([sum(added[(*s, p[tuple(s)])] for s in choices.slots) for p in policies])

    return score


def budgets_of(choices):
    """From what only the cheapest policy meets to what all do."""
    costs = sorted({plain_cost(choices, p) for p in every_policy(choices)})
    return [costs[int(share * (len(costs) - 1))] for share in (0, 0.02, 0.1, 0.3, 0.6, 0.9, 1)]


SHAPES = {
    "free": {},
    "tied": {"lead": (0, 0, 2)},
    "all tied": {"lead": (0, 0, 0)},
    "pinned": {"pinned": [(0, 0), (2, 1)]},
    "tied and pinned": {"lead": (0, 1, 1), "pinned": [(0, 0), (0, 1), (2, 0)]},
}
shapes = pytest.mark.parametrize("shape", SHAPES)


def test_slots_are_what_can_be_chosen():
    choices = choices_of(np.random.default_rng(0), **SHAPES["tied and pinned"])
    assert choices.slots.tolist() == [[1, 0], [1, 1]]


@shapes
def test_costs_are_sums_over_the_layers(shape):
    choices = choices_of(np.random.default_rng(0), **SHAPES[shape])
    policies = every_policy(choices)
    expected = [plain_cost(choices, p) for p in policies]
    assert allocation.costs_of(choices.cost, policies).tolist() == expected


def test_readers_of_a_tensor_are_tied_to_the_first():
    policies = np.random.default_rng(0).integers(2, 9, (5, 4, 2))
    kept = policies.copy()
    found = allocation.tied(np.array([0, 0, 2, 0]), policies)
    np.testing.assert_array_equal(policies, kept)
    np.testing.assert_array_equal(found[..., 0], kept[..., 0])
    np.testing.assert_array_equal(found[..., 1], kept[:, [0, 0, 2, 0], 1])


def test_one_bitwidth_is_that_of_all_layers_but_the_pinned():
    choices = choices_of(np.random.default_rng(0), pinned=[(0, 0)])
    assert allocation.same_bits(choices, 8).tolist() == [[4, 4]] * 3
    assert allocation.same_bits(choices, 1).tolist() == [[4, 2], [2, 2], [2, 2]]


@shapes
def test_uniform_is_the_largest_bitwidth_within_the_budget(shape):
    choices = choices_of(np.random.default_rng(1), **SHAPES[shape])
    same = {bits: allocation.same_bits(choices, bits) for bits in (2, 3, 4)}
    for bits, policy in same.items():
        cost = plain_cost(choices, policy)
        for more in (0, 0.5):
            found = allocation.uniform(choices._replace(budget=cost + more))
            np.testing.assert_array_equal(found, policy)
        below = choices._replace(budget=cost - 0.5)
        if bits > 2:
            np.testing.assert_array_equal(allocation.uniform(below), same[bits - 1])


@shapes
def test_random_policies_are_allowed_and_differ(shape):
    choices = choices_of(np.random.default_rng(2), **SHAPES[shape])
    allowed = {p.tobytes(): plain_cost(choices, p) for p in every_policy(choices)}
    for budget in budgets_of(choices):
        within = choices._replace(budget=budget)
        found = allocation.random(np.random.default_rng(0), within, 60)
        assert found.shape == (60, 3, 2)
        assert all(allowed[np.int64(p).tobytes()] <= budget for p in found)
    assert len(np.unique(found, axis=0)) > 0.3 * min(60, len(allowed))


def plainly_trimmed(choices, policy, order):
    bits = [[w, policy[choices.lead[i]][1]] for i, (w, _) in enumerate(policy.tolist())]
    while True:
        before = plain_cost(choices, bits)
        for layer, kind in order:
            if plain_cost(choices, bits) <= choices.budget:
                return bits
            if bits[layer][kind] > choices.least[layer, kind]:
                bits[layer][kind] -= 1
            for reader, first in readers(choices):
                bits[reader][1] = bits[first][1]
        if plain_cost(choices, bits) == before:
            return bits


@shapes
def test_bits_are_taken_off_in_the_order_until_the_budget_is_met(shape):
    rng = np.random.default_rng(3)
    choices = choices_of(rng, **SHAPES[shape])
    for budget in [*budgets_of(choices), 0]:
        within = choices._replace(budget=budget)
        for policy in rng.permutation(every_policy(choices))[:20]:
            order, kept = rng.permutation(choices.slots), policy.copy()
            found = allocation.trimmed(within, policy, order)
            assert found.tolist() == plainly_trimmed(within, policy, order)
            np.testing.assert_array_equal(policy, kept)
            if plain_cost(choices, policy) <= budget:
                np.testing.assert_array_equal(found, policy)
    np.testing.assert_array_equal(found, choices.least, "nothing meets 0")


@shapes
def test_sensitivities_of_a_sum_are_its_terms(shape):
    rng = np.random.default_rng(4)
    choices = choices_of(rng, **SHAPES[shape])
    added = rng.normal(0.3, 1, (3, 2, 9))
    added[..., 4] = 0
    asked, score = [], sums_of(added, choices)
    found = allocation.sensitivities(lambda p: asked.append(p) or 7 + score(p), choices)
    (policies,) = asked
    assert len(np.unique(policies, axis=0)) == len(policies) == 1 + 2 * len(choices.slots)
    np.testing.assert_array_equal(policies, allocation.tied(choices.lead, policies))
    for layer, kind in itertools.product(range(3), range(2)):
        bits = [2, 3, 4] if [layer, kind] in choices.slots.tolist() else [4]
        np.testing.assert_allclose(found[layer, kind, bits], added[layer, kind, bits], atol=1e-12)
        assert np.isinf(np.delete(found[layer, kind], bits)).all()


@shapes
@pytest.mark.parametrize("seed", range(3))
def test_exact_finds_the_best_of_all_policies(shape, seed):
    rng = np.random.default_rng(seed)
    choices = choices_of(rng, **SHAPES[shape])
    score = sums_of(rng.normal(0.3, 1, (3, 2, 9)), choices)
    added = allocation.sensitivities(score, choices)
    policies = every_policy(choices)
    costs, scores = [plain_cost(choices, p) for p in policies], score(policies)
    for budget in budgets_of(choices):
        found = allocation.exact(added, choices._replace(budget=budget + 0.5))
        best = np.where(np.array(costs) <= budget + 0.5, scores, np.inf).argmin()
        np.testing.assert_array_equal(found, policies[best])


@shapes
@pytest.mark.parametrize("method", ["uniform", "exact", "greedy"])
def test_a_budget_that_nothing_meets_is_told(shape, method):
    choices = choices_of(np.random.default_rng(6), **SHAPES[shape])
    lowest = plain_cost(choices, choices.least)
    below = choices._replace(budget=lowest - 0.5)
    find = {
        "uniform": lambda: allocation.uniform(below),
        "exact": lambda: allocation.exact(np.zeros((3, 2, 9)), below),
        "greedy": lambda: allocation.greedy(lambda p: np.zeros(len(p)), below, 2),
    }[method]
    message = f"no policy meets the budget {below.budget:g}"
    if method == "uniform":
        message = f"the budget is {below.budget:g}, the smallest bitwidths cost {lowest:g}"
    with pytest.raises(InputError) as error:
        find()
    assert str(error.value) == message


def convex(rng):
    """What the bits taken off add: more with each, so the cheapest next one is always right."""
    return np.cumsum(np.cumsum(rng.uniform(0.1, 1, (3, 2, 9)), -1), -1)[..., ::-1]


@pytest.mark.parametrize("shape", ["free", "pinned"])
def test_greedy_is_the_best_where_a_sum_is_convex_and_all_bits_cost_the_same(shape):
    rng, bits = np.random.default_rng(7), np.arange(9.0)
    choices = choices_of(rng, **SHAPES[shape])
    choices = choices._replace(cost=np.broadcast_to(bits[:, None] + bits, (3, 9, 9)))
    policies, score = every_policy(choices), sums_of(convex(rng), choices)
    costs, scores = np.array([plain_cost(choices, p) for p in policies]), score(policies)
    for budget in np.unique(costs).tolist():
        found = allocation.greedy(score, choices._replace(budget=budget), 1)
        best = np.where(costs <= budget, scores, np.inf).argmin()
        np.testing.assert_array_equal(found, policies[best])


@shapes
@pytest.mark.parametrize(("per_round", "share"), [(1, 0.1), (2, 0.15), (5, 0.25)])
def test_greedy_meets_every_budget_and_is_close_to_the_best(shape, per_round, share):
    rng = np.random.default_rng(8)
    choices = choices_of(rng, **SHAPES[shape])
    policies, score = every_policy(choices), sums_of(convex(rng), choices)
    costs, scores = np.array([plain_cost(choices, p) for p in policies]), score(policies)
    worse = []
    for budget in budgets_of(choices):
        found = allocation.greedy(score, choices._replace(budget=budget), per_round)
        (place,) = np.flatnonzero((policies == found).all((1, 2)))
        assert costs[place] <= budget
        within = scores[costs <= budget]
        worse.append((scores[place] - within.min()) / max(np.ptp(within), 1e-12))
    np.testing.assert_array_equal(found, choices.most, "all meet the last")
    assert np.mean(worse) < share, "of the way from the best to the worst"


def test_greedy_takes_off_first_what_saves_most_and_never_what_saves_nothing():
    choices = choices_of(np.random.default_rng(0))
    size = np.array([5.0, 50.0, 1.0])[:, None, None] * np.arange(9)[:, None] + np.zeros(9)
    choices, rounds = choices._replace(cost=size), []

    def score(policies):
        rounds.append(len(policies))
        return np.zeros(len(policies))

    found = allocation.greedy(score, choices._replace(budget=4 * 56.0 - 104), 1)
    assert found.tolist() == [[3, 4], [2, 4], [4, 4]]
    assert rounds == [7, 7, 6], "the network and each bit that can go"
    everything = allocation.greedy(score, choices._replace(budget=2 * 56.0), 1)
    assert everything.tolist() == [[2, 4]] * 3


def test_fewer_bits_never_help_in_monotone_sensitivities():
    added = np.array([[[np.inf, 0.3, -0.2, 0.5, 0.1, 0.0], [np.inf, 2.0, 1.0, 0.5, -0.1, 0.0]]])
    found = allocation.monotone(added)
    expected = [[[np.inf, 0.5, 0.5, 0.5, 0.1, 0.0], [np.inf, 2.0, 1.0, 0.5, 0.0, 0.0]]]
    np.testing.assert_array_equal(found, expected)

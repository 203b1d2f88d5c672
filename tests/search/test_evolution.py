import numpy as np
import pytest

from qnas_jax.search import evolution
from qnas_jax.search.evolution import Evolution

LEAST, MOST = np.full((8, 2), 2), np.full((8, 2), 8)
AIM = np.random.default_rng(9).integers(2, 9, (8, 2))


def drawn(seed, count):
    return np.random.default_rng(seed).integers(LEAST, MOST, endpoint=True, size=(count, 8, 2))


def scores_of(policies):
    return ((policies - AIM) ** 2).sum((1, 2)).astype(float)


def evolved(seed, generations, how=Evolution()):  # noqa: B008
    first = drawn(seed, how.children)
    state = evolution.init(seed, first, scores_of(first))
    for _ in range(generations):
        children = evolution.ask(state, how, LEAST, MOST)
        state = evolution.tell(state, children, scores_of(children))
    return state


def test_a_seed_gives_one_evolution_and_another_seed_another():
    one, again = evolved(3, 5), evolved(3, 5)
    np.testing.assert_array_equal(one.policies, again.policies)
    np.testing.assert_array_equal(one.scores, again.scores)
    state = evolution.init(1, drawn(0, 20), scores_of(drawn(0, 20)))
    other = state._replace(seed=2)
    asked = [evolution.ask(one, Evolution(), LEAST, MOST) for one in (state, other)]
    assert (asked[0] != asked[1]).any()


def test_asking_changes_nothing_and_every_generation_has_other_children():
    state = evolution.init(0, drawn(0, 20), scores_of(drawn(0, 20)))
    kept = state.policies.copy()
    one, again = (evolution.ask(state, Evolution(), LEAST, MOST) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(state.policies, kept)
    after = evolution.tell(state, one, np.full(20, np.inf))
    assert (state.generation, after.generation) == (0, 1)
    np.testing.assert_array_equal(after.policies, kept)
    assert (evolution.ask(after, Evolution(), LEAST, MOST) != one).any()


def test_the_best_come_first_and_of_equal_ones_the_older():
    policies = drawn(0, 4)
    state = evolution.init(0, policies, np.array([3.0, 1.0, 2.0, 1.0]))
    np.testing.assert_array_equal(state.policies, policies[[1, 3, 2, 0]])
    assert state.scores.tolist() == [1, 1, 2, 3]
    children = drawn(1, 2)
    state = evolution.tell(state, children, np.array([1.0, 0.5]))
    expected = [children[1], policies[1], policies[3], children[0], policies[2], policies[0]]
    np.testing.assert_array_equal(state.policies, expected)
    assert state.scores.tolist() == [0.5, 1, 1, 1, 2, 3]


def test_what_has_no_finite_score_never_enters():
    policies, broken = drawn(0, 5), np.array([np.nan, 2.0, np.inf, -np.inf, 1.0])
    state = evolution.init(0, policies, broken)
    np.testing.assert_array_equal(state.policies, policies[[4, 1]])
    children = drawn(1, 5)
    state = evolution.tell(state, children, broken - 0.5)
    expected = [children[4], policies[4], children[1], policies[1]]
    np.testing.assert_array_equal(state.policies, expected)
    assert state.scores.tolist() == [0.5, 1, 1.5, 2]


def test_a_population_without_a_finite_score_is_refused():
    for policies in (drawn(0, 3), drawn(0, 0)):
        state = evolution.init(0, policies, np.full(len(policies), np.nan))
        with pytest.raises(ValueError, match="no policy has a finite score"):
            evolution.ask(state, Evolution(), LEAST, MOST)
    one = drawn(1, 1)
    state = evolution.tell(state, one, np.ones(1))
    assert evolution.ask(state, Evolution(), LEAST, MOST).shape == (20, 8, 2)


def test_children_are_within_their_bounds():
    rng = np.random.default_rng(0)
    least = rng.integers(1, 9, (8, 2))
    most = rng.integers(least, 9)
    policies = rng.integers(least, most, endpoint=True, size=(20, 8, 2))
    state = evolution.init(0, policies, rng.random(20))
    children = evolution.ask(state, Evolution(children=500, mutated=0.5), least, most)
    assert children.shape == (500, 8, 2)
    np.testing.assert_array_equal(children.min(0), least)
    np.testing.assert_array_equal(children.max(0), most)
    assert (least == most).any(), "some bitwidths are kept"


def test_without_mutation_each_bitwidth_is_one_of_two_parents():
    policies = np.stack([np.full((8, 2), bits) for bits in (2, 4, 6, 8)])
    state = evolution.init(0, policies, np.array([4.0, 1.0, 2.0, 3.0]))
    how = Evolution(parents=3, children=200, mutated=0.0)
    children = evolution.ask(state, how, LEAST, MOST)
    assert np.unique(children).tolist() == [4, 6, 8], "the worst is no parent"
    held = [len(np.unique(child)) for child in children]
    assert set(held) == {1, 2}
    mixed = children[np.array(held) == 2]
    shares = (mixed == mixed[:, :1, :1]).mean()
    assert 0.45 < shares < 0.6
    alone = evolution.ask(state, how._replace(parents=1), LEAST, MOST)
    assert (alone == 4).all()


def test_the_share_of_mutated_bitwidths_is_drawn_from_all():
    parent = np.full((1, 8, 2), 5)
    state = evolution.init(0, parent, np.ones(1))
    how = Evolution(children=2000, mutated=0.3)
    children = evolution.ask(state, how, LEAST, MOST)
    counts = np.bincount(children.ravel(), minlength=9)[2:] / children.size
    expected = np.full(7, 0.3 / 7)
    expected[3] += 0.7
    np.testing.assert_allclose(counts, expected, atol=0.01)


def test_it_finds_better_policies_than_as_many_random_ones():
    for seed in range(5):
        state = evolved(seed, generations=19)
        random = scores_of(drawn(seed + 100, 400))
        assert len(state.scores) == 400
        assert state.scores[0] < 0.5 * random.min()
        assert state.scores[0] == scores_of(state.policies[:1])[0]

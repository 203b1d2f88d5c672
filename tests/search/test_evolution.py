import jax
import numpy as np
import pytest

from qnas_jax.search import evolution
from qnas_jax.search.evolution import Evolution

LEAST, MOST = np.full((8, 2), 2), np.full((8, 2), 8)
AIM = np.random.default_rng(9).integers(2, 9, (8, 2))
KEY = jax.random.key(3)


def drawn(seed, count):
    return np.random.default_rng(seed).integers(LEAST, MOST, endpoint=True, size=(count, 8, 2))


def scores_of(genes):
    return ((genes - AIM) ** 2).sum((1, 2)).astype(float)


def small(genes):
    return genes.sum((1, 2)) <= 75


def texts(genes):
    return [one.tobytes() for one in genes]


def evolved(seed, generations, how=Evolution()):  # noqa: B008
    first = drawn(seed, 50)
    state = evolution.init(first, scores_of(first))
    for _ in range(generations):
        children = evolution.ask(jax.random.key(seed), state, how, LEAST, MOST)
        state = evolution.tell(state, children, scores_of(children))
    return state


def test_a_key_gives_one_evolution_and_another_key_another():
    one, again = evolved(3, 5), evolved(3, 5)
    np.testing.assert_array_equal(one.genes, again.genes)
    np.testing.assert_array_equal(one.scores, again.scores)
    state = evolution.init(drawn(0, 20), scores_of(drawn(0, 20)))
    asked = [
        evolution.ask(key, state, Evolution(), LEAST, MOST) for key in (KEY, jax.random.key(4))
    ]
    assert (asked[0] != asked[1]).any()


def test_asking_changes_nothing_and_every_generation_has_other_children():
    state = evolution.init(drawn(0, 20), scores_of(drawn(0, 20)))
    kept = state.genes.copy()
    one, again = (evolution.ask(KEY, state, Evolution(), LEAST, MOST) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(state.genes, kept)
    after = evolution.tell(state, one, np.full(50, np.inf))
    assert (state.generation, after.generation) == (0, 1)
    np.testing.assert_array_equal(after.genes, kept)
    assert not set(texts(evolution.ask(KEY, after, Evolution(), LEAST, MOST))) & set(texts(one))


def test_the_best_come_first_and_of_equal_ones_the_older():
    genes = drawn(0, 4)
    state = evolution.init(genes, np.array([3.0, 1.0, 2.0, 1.0]))
    np.testing.assert_array_equal(state.genes, genes[[1, 3, 2, 0]])
    assert state.scores.tolist() == [1, 1, 2, 3]
    children = drawn(1, 2)
    state = evolution.tell(state, children, np.array([1.0, 0.5]))
    expected = [children[1], genes[1], genes[3], children[0], genes[2], genes[0]]
    np.testing.assert_array_equal(state.genes, expected)
    assert state.scores.tolist() == [0.5, 1, 1, 1, 2, 3]


def test_what_has_no_finite_score_never_wins_and_is_no_parent():
    genes, broken = drawn(0, 5), np.array([np.nan, 2.0, np.inf, -np.inf, 1.0])
    state = evolution.init(genes, broken)
    np.testing.assert_array_equal(state.genes, genes[[4, 1]])
    children = drawn(1, 5)
    state = evolution.tell(state, children, broken - 0.5)
    expected = [children[4], genes[4], children[1], genes[1]]
    np.testing.assert_array_equal(state.genes, expected)
    assert state.scores.tolist() == [0.5, 1, 1.5, 2]
    # A parent of 8 everywhere would show in its children.
    genes = np.stack([np.full((8, 2), value) for value in (2, 3, 8)])
    state = evolution.init(genes, np.array([1.0, 2.0, -np.inf]))
    asked = evolution.ask(KEY, state, Evolution(mutants=0, crossed=200), LEAST, MOST)
    assert np.unique(asked).tolist() == [2, 3]


def test_a_population_without_a_finite_score_is_refused():
    for genes in (drawn(0, 3), drawn(0, 0)):
        state = evolution.init(genes, np.full(len(genes), np.nan))
        with pytest.raises(ValueError, match="no candidate has a finite score"):
            evolution.ask(KEY, state, Evolution(), LEAST, MOST)
    state = evolution.tell(state, drawn(1, 1), np.ones(1))
    assert evolution.ask(KEY, state, Evolution(), LEAST, MOST).shape == (50, 8, 2)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="genes of type float64: must be integers"):
        evolution.init(np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(ValueError, match="3 scores of 2 candidates"):
        evolution.init(np.zeros((2, 3), int), np.zeros(3))
    state = evolution.init(drawn(0, 3), np.zeros(3))
    with pytest.raises(ValueError, match="above the largest"):
        evolution.ask(KEY, state, Evolution(), MOST, LEAST)


def test_children_are_new_different_and_within_bounds_and_budget():
    rng = np.random.default_rng(0)
    least = rng.integers(2, 5, (8, 2))
    most = rng.integers(least, 9)
    fits = lambda genes: genes.sum((1, 2)) <= (least + most).sum() // 2  # noqa: E731
    first = evolution.random(KEY, 50, least, most, fits)
    assert first.shape == (50, 8, 2)
    state = evolution.init(first, rng.random(50))
    for _ in range(5):
        children = evolution.ask(KEY, state, Evolution(mutated=0.5), least, most, fits)
        assert len(children) == 50
        assert (children >= least).all() and (children <= most).all()
        assert fits(children).all()
        state = evolution.tell(state, children, rng.random(50))
    assert len(set(texts(state.seen))) == len(state.seen) == 300
    assert (least == most).any(), "some genes are kept"


def test_a_small_space_is_exhausted_without_a_repetition():
    least, most = np.zeros(3, int), np.full(3, 2)
    state = evolution.init(np.zeros((1, 3), int), np.zeros(1))
    odd = lambda genes: genes.sum(1) % 2 == 1  # noqa: E731
    how = Evolution(mutants=6, crossed=6)
    for _ in range(8):
        children = evolution.ask(KEY, state, how, least, most, odd)
        state = evolution.tell(state, children, children.sum(1).astype(float))
    assert len(state.seen) == len(set(texts(state.seen))) == 1 + 13
    assert evolution.ask(KEY, state, how, least, most, odd).shape == (0, 3)
    assert evolution.random(KEY, 99, least, most, odd).shape == (13, 3)


def test_random_candidates_fill_what_parents_cannot_give():
    state = evolution.init(np.full((1, 8, 2), 5), np.ones(1))
    how = Evolution(mutants=0, crossed=20)  # of one parent there is nothing to cross
    children = evolution.ask(KEY, state, how, LEAST, MOST, small)
    assert len(children) == 20
    assert small(children).all()


def test_without_mutation_each_gene_is_one_of_two_parents():
    genes = np.stack([np.full((8, 2), bits) for bits in (2, 4, 6, 8)])
    state = evolution.init(genes, np.array([4.0, 1.0, 2.0, 3.0]))
    how = Evolution(parents=3, mutants=0, crossed=200)
    children = evolution.ask(KEY, state, how, LEAST, MOST)
    assert np.unique(children).tolist() == [4, 6, 8], "the worst is no parent"
    assert {len(np.unique(child)) for child in children} == {2}
    shares = (children == children[:, :1, :1]).mean()
    assert 0.45 < shares < 0.6


def test_the_share_of_mutated_genes_is_drawn_from_all():
    state = evolution.init(np.full((1, 8, 2), 5), np.ones(1))
    how = Evolution(mutants=2000, crossed=0, mutated=0.3)
    children = evolution.ask(KEY, state, how, LEAST, MOST)
    counts = np.bincount(children.ravel(), minlength=9)[2:] / children.size
    expected = np.full(7, 0.3 / 7)
    expected[3] += 0.7
    np.testing.assert_allclose(counts, expected, atol=0.015)


def test_children_are_repaired_before_they_are_asked_for():
    def to_budget(rng, genes):
        genes = genes.copy()
        for one in genes:
            while not small(one[None])[0]:
                place = tuple(rng.integers((8, 2)))
                one[place] = max(2, one[place] - 1)
        return genes

    first = to_budget(np.random.default_rng(0), drawn(0, 10))
    state = evolution.init(first, scores_of(first))
    children = evolution.ask(KEY, state, Evolution(), LEAST, MOST, repair=to_budget)
    assert len(children) == 50
    assert small(children).all()
    again = evolution.ask(KEY, state, Evolution(), LEAST, MOST, repair=to_budget)
    np.testing.assert_array_equal(children, again)
    alike = lambda rng, genes: np.full_like(genes, 7)  # noqa: E731
    asked = evolution.ask(KEY, state, Evolution(), LEAST, MOST, repair=alike)
    assert asked.tolist() == [np.full((8, 2), 7).tolist()], "they are new after the repair, too"


def test_it_finds_better_candidates_than_as_many_random_ones():
    for seed in range(5):
        state = evolved(seed, generations=8)
        random = scores_of(drawn(seed + 100, 450))
        assert len(state.scores) == 450
        assert state.scores[0] < 0.5 * random.min()
        assert state.scores[0] == scores_of(state.genes[:1])[0]


def test_it_comes_near_the_exact_best_within_a_budget():
    """An additive problem, solved exactly by dynamic programming over the sum of genes."""
    best = {0: 0.0}
    for aim in AIM.ravel():
        after = {}
        for spent, value in best.items():
            for gene in range(2, 9):
                score = value + (gene - aim) ** 2
                after[spent + gene] = min(after.get(spent + gene, np.inf), score)
        best = after
    exact = min(value for spent, value in best.items() if spent <= 75)
    first = evolution.random(KEY, 50, LEAST, MOST, small)
    state = evolution.init(first, scores_of(first))
    for _ in range(60):
        children = evolution.ask(KEY, state, Evolution(), LEAST, MOST, small)
        assert small(children).all()
        state = evolution.tell(state, children, scores_of(children))
    assert exact <= state.scores[0] <= exact + 2

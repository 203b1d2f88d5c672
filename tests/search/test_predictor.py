import itertools

import jax
import numpy as np
import pytest
from scipy.optimize import lsq_linear

from qnas_jax.search import pareto, predictor
from qnas_jax.search.predictor import Features, Training
from qnas_jax.search.ranking import tau
from qnas_jax.space import Choice, Op

OPS, BITS = (Op(3, 3), Op(5, 3), Op(3, 6), Op(5, 6)), (4, 6, 8)
KEY = jax.random.key(0)


def networks(seed, count, blocks=6, noise=0.3):
    """Noise of blocks of very different size, and accuracies; one block is better with noise."""
    rng = np.random.default_rng(seed)
    features = rng.random((count, blocks)) * 10.0 ** -np.arange(blocks)[None]
    weights = rng.uniform(1, 5, blocks) * 10.0 ** np.arange(blocks)
    weights[2] *= -1
    return features, 70 - features @ weights + noise * rng.normal(size=count)


def bounded(features, targets):
    """Weights and bias as one bounded problem."""
    columns = np.concatenate([-features, np.ones((len(features), 1))], 1)
    least = np.append(np.zeros(features.shape[1]), -np.inf)
    found = lsq_linear(columns, targets, (least, np.inf), method="bvls", tol=1e-14).x
    return found[:-1], found[-1]


def test_weights_are_those_of_a_bounded_least_squares():
    for seed in range(20):
        features, targets = networks(seed, 25)
        fit = predictor.fit_linear(features, targets)
        weights, bias = bounded(features, targets)
        np.testing.assert_allclose(fit.weights, weights, rtol=1e-6, atol=1e-9)
        assert fit.bias == pytest.approx(bias, rel=1e-9)
        assert (fit.weights >= 0).all()
        assert fit.weights[2] == 0
        expected = [
            bias - sum(w * x for w, x in zip(weights, row, strict=True)) for row in features
        ]
        np.testing.assert_allclose(predictor.predict(fit, features), expected, rtol=1e-8)


def test_without_noise_the_weights_are_found_and_rank_as_a_plain_weighted_sum():
    rng = np.random.default_rng(0)
    tables = [rng.random((4, 1)) * scale for scale in (1.0, 1e-3, 50.0)]
    weights = np.array([3.0, 2000.0, 0.1])
    rows = np.array(list(itertools.product(range(4), repeat=3)))
    features = np.stack([table[row, 0] for table, row in zip(tables, rows.T, strict=True)], 1)
    fit = predictor.fit_linear(features[::3], 70 - features[::3] @ weights)
    np.testing.assert_allclose(fit.weights, weights, rtol=1e-9)
    assert fit.bias == pytest.approx(70)
    # The exact search over weighted tables finds what is predicted to be best.
    cost = np.zeros((4, 1))
    weighted = [
        np.concatenate([w * table, cost], 1) for w, table in zip(fit.weights, tables, strict=True)
    ]
    front = pareto.pareto_front(weighted)
    best = rows[predictor.predict(fit, features).argmax()]
    assert front.rows.tolist() == [best.tolist()]


def test_a_feature_that_never_changes_has_no_weight():
    features, targets = networks(0, 12)
    features[:, 1] = 0.1
    fit = predictor.fit_linear(features, targets)
    assert fit.weights[1] == 0
    others = [0, 2, 3, 4, 5]
    np.testing.assert_allclose(fit.weights[others], bounded(features[:, others], targets)[0], 1e-6)
    alone = predictor.fit_linear(features[:1], targets[:1])
    assert (alone.weights == 0).all() and alone.bias == pytest.approx(targets[0])


def test_each_is_predicted_by_the_fit_of_all_others():
    features, targets = networks(3, 14, blocks=4)
    found = predictor.leave_one_out(features, targets)
    for out in range(14):
        left = [i for i in range(14) if i != out]
        weights, bias = bounded(features[left], targets[left])
        relative = bias - weights @ features[out] - targets[left].mean()
        assert found[out] == pytest.approx(relative, abs=1e-6)
    with pytest.raises(ValueError, match="no other to fit"):
        predictor.leave_one_out(features[:1], targets[:1])


def test_useless_features_rank_next_to_nothing_when_each_is_left_out():
    """With the bias of each fit they would rank the truth backwards."""
    rng, relative, biased = np.random.default_rng(0), [], []
    for _ in range(60):
        features, targets = rng.random((24, 6)), rng.random(24)
        found = predictor.leave_one_out(features, targets)
        means = (targets.sum() - targets) / 23
        relative.append(tau(found, targets, lower_is_better=False))
        biased.append(tau(found + means, targets, lower_is_better=False))
    assert abs(np.mean(relative)) < 0.1
    assert np.mean(relative) > np.mean(biased) + 0.05


def test_what_cannot_be_fitted_is_refused():
    features, targets = networks(0, 5)
    with pytest.raises(ValueError, match=r"features \(5, 6\), targets \(4,\)"):
        predictor.fit_linear(features, targets[:4])
    with pytest.raises(ValueError, match="n above 0"):
        predictor.fit_linear(features[:0], targets[:0])
    for broken in (np.nan, np.inf):
        with pytest.raises(ValueError, match="must be finite"):
            predictor.fit_linear(features, np.append(targets[:4], broken))


def drawn(seed, count):
    """Subnets of two blocks with 3 and 2 layers."""
    rng = np.random.default_rng(seed)

    def choice():
        return Choice(OPS[rng.integers(4)], int(rng.choice(BITS)), int(rng.choice(BITS)))

    return [tuple(tuple(choice() for _ in range(n)) for n in (3, 2)) for _ in range(count)]


def accuracies(subnets, quantized):
    """Additive over layers: larger ops help, some layers more; few bits hurt, weights more."""
    found = []
    for subnet in subnets:
        value = 60.0
        for place, choice in enumerate(itertools.chain(*subnet)):
            value += (place + 1) * (0.3 * choice.op.expansion + 0.2 * choice.op.kernel)
            if quantized:
                value -= 0.25 * (8 - choice.w_bits) + 0.15 * (8 - choice.a_bits)
        found.append(value)
    return np.array(found)


def test_subnets_are_encoded_as_ones_at_their_ops_and_bits():
    subnet = ((Choice(Op(5, 3), 4, 8),), (Choice(Op(3, 3), 8, 6), Choice(Op(5, 6), 6, 6)))
    ops, bits = predictor.encode([subnet, subnet], OPS, BITS)
    assert ops[0].tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]
    expected = [1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0]
    assert bits[1].tolist() == expected
    assert ops.dtype == bits.dtype == np.float32
    with pytest.raises(ValueError, match="op k5e6: must be one of k3e3, k5e3"):
        predictor.encode([subnet], OPS[:2], BITS)
    with pytest.raises(ValueError, match="bitwidth 4: must be one of 6, 8"):
        predictor.encode([subnet], OPS, (6, 8))
    for subnets in ([], [subnet, subnet[:1]]):
        with pytest.raises(ValueError, match="equally many layers"):
            predictor.encode(subnets, OPS, BITS)


HOW = Training(hidden=(64, 64), steps=300)


@pytest.fixture(scope="module")
def floating():
    """A predictor of float accuracies from 400 subnets."""
    subnets = drawn(0, 400)
    features = Features(predictor.encode(subnets, OPS, BITS).ops)
    return predictor.train(KEY, features, accuracies(subnets, False), HOW)


def test_a_network_learns_an_additive_function(floating):
    held = drawn(1, 100)
    found = predictor.forward(floating, Features(predictor.encode(held, OPS, BITS).ops))
    truth = accuracies(held, False)
    assert tau(found, truth, lower_is_better=False) > 0.9
    assert np.abs(found - truth).mean() < 0.2 * truth.std()


def test_its_output_is_that_of_the_layers_written_out(floating):
    subnets = drawn(2, 9)
    features = predictor.encode(subnets, OPS, BITS)
    layers = [(np.asarray(d.weights), np.asarray(d.bias)) for d in floating.layers]
    rng = np.random.default_rng(0)
    bits = predictor.Dense(*map(jax.numpy.float32, (rng.normal(size=(30, 64)), rng.random(64))))
    values = np.maximum(features.ops @ layers[0][0] + layers[0][1], 0)
    values = values + features.bits @ np.asarray(bits.weights) + np.asarray(bits.bias)
    values = np.maximum(values @ layers[1][0] + layers[1][1], 0)
    expected = (values @ layers[2][0] + layers[2][1])[:, 0]
    expected = float(floating.mean) + float(floating.scale) * expected
    found = predictor.forward(floating._replace(bits=bits), features)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_training_is_that_of_the_key(floating):
    subnets = drawn(0, 400)
    features = Features(predictor.encode(subnets, OPS, BITS).ops)
    again = predictor.train(KEY, features, accuracies(subnets, False), HOW)
    jax.tree.map(np.testing.assert_array_equal, again, floating)
    other = predictor.train(jax.random.key(1), features, accuracies(subnets, False), HOW)
    assert (other.layers[0].weights != floating.layers[0].weights).any()


def test_with_bits_it_first_predicts_what_it_did_without(floating):
    subnets = drawn(2, 9)
    features, targets = predictor.encode(subnets, OPS, BITS), accuracies(subnets, True)
    begun = predictor.train(KEY, features, targets, HOW._replace(steps=0), start=floating)
    expected = predictor.forward(floating, Features(features.ops))
    np.testing.assert_array_equal(predictor.forward(begun, features), expected)


def test_transfer_beats_training_from_scratch_on_the_same_few_subnets(floating):
    held = drawn(99, 200)
    features, truth = predictor.encode(held, OPS, BITS), accuracies(held, True)
    for seed in range(3):
        few = drawn(seed + 10, 20)
        given = (predictor.encode(few, OPS, BITS), accuracies(few, True), HOW)
        found = [
            predictor.forward(predictor.train(jax.random.key(seed), *given, start), features)
            for start in (floating, None)
        ]
        transferred, scratch = (tau(one, truth, lower_is_better=False) for one in found)
        assert transferred > scratch + 0.1
        errors = [np.abs(one - truth).mean() for one in found]
        assert errors[0] < errors[1]


def test_features_that_do_not_fit_are_refused(floating):
    subnets = drawn(0, 4)
    features, targets = predictor.encode(subnets, OPS, BITS), accuracies(subnets, True)
    with pytest.raises(ValueError, match=r"features\.bits of width 30: the network reads None"):
        predictor.forward(floating, features)
    with pytest.raises(ValueError, match=r"features\.ops of width 16: the network reads 20"):
        predictor.train(KEY, Features(features.ops[:, :16]), targets, HOW, floating)
    quantized = predictor.train(KEY, features, targets, HOW._replace(steps=1), floating)
    with pytest.raises(ValueError, match=r"features\.bits of width None: the network reads 30"):
        predictor.train(KEY, Features(features.ops), targets, HOW, quantized)
    with pytest.raises(ValueError, match="there must be a hidden layer"):
        predictor.train(KEY, features, targets, Training(hidden=()))
    with pytest.raises(ValueError, match=r"targets \(3,\)"):
        predictor.train(KEY, features, targets[:3], HOW)

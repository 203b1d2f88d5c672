"""Scores that are kept between runs."""

import numpy as np
import pytest

from qnas_jax.run.preempt import Stopped
from qnas_jax.stages import scoring
from qnas_jax.stages.scoring import Scores

POLICIES = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)


def by_sum(policies):
    sums = policies.sum((1, 2)).astype(float)
    return Scores(sums, -sums)


def test_a_stop_before_the_first_score_is_a_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "WORTH_SECONDS", -1.0)

    def stopped(policies):
        raise Stopped("stopped by SIGTERM")

    with pytest.raises(Stopped):
        scoring.remembering(stopped, tmp_path / "scores.npz", "policies")(POLICIES)
    assert not list(tmp_path.iterdir())


def test_what_was_scored_before_a_stop_is_not_scored_again(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "WORTH_SECONDS", -1.0)
    asked = []

    def evaluate(policies):
        if len(asked) == 2:
            raise Stopped("stopped by SIGTERM")
        asked.append(policies.tobytes())
        return by_sum(policies)

    file = tmp_path / "scores.npz"
    with pytest.raises(Stopped):
        scoring.remembering(evaluate, file, "policies")(POLICIES)
    asked = asked[:1]  # so that the last one can be scored
    found = scoring.remembering(evaluate, file, "policies")(POLICIES)
    np.testing.assert_array_equal(found.accuracy, by_sum(POLICIES).accuracy)
    np.testing.assert_array_equal(found.loss, by_sum(POLICIES).loss)
    assert asked[1:] == [POLICIES[2].tobytes()]

"""What an audit refuses before anything is trained."""

import pytest

from qnas_jax.errors import InputError
from qnas_jax.ranking import scores
from small_audit import given


def test_a_good_one_is_not_refused():
    scores.check(given())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 5}, r"audit.steps=5: must be a multiple of the 2 ops"),
        ({"images": 37}, r"audit.images \+ audit.norm_images=41: there are 40 training images"),
        ({"images": 30, "batch": 12}, r"audit.images \+ audit.batch=42: there are 40"),
        ({"lut": {"time_budget_s": 5.0}}, r"lut.time_budget_s=5: must be 0 for an audit"),
        ({"hardware": {"target": "per_tensor"}}, "an audit"),
        ({"subnets": 3}, "audit.subnets=3: must be at least 8"),
    ],
)
def test_what_would_fail_after_hours_is_refused_at_once(settings, message):
    with pytest.raises(InputError, match=message):
        scores.check(given(**settings))

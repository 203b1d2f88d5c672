"""Settings of HQNAS that cannot be used."""

import pytest

import small_hqnas
from qnas_jax.errors import InputError
from qnas_jax.hqnas.config import Adapt

BAD = [
    ({"bits": (1, 8)}, r"hqnas.bits=.*bitwidths lie in \[2, 8\]"),
    ({"bits": (8, 8)}, "each only once"),
    ({"cost": "joules"}, "hqnas.cost='joules'"),
    ({"budgets": (1.5,)}, "above 0, at most 1"),
    ({"budgets": (0.5, 0.5)}, "each only once"),
    ({"batch": 1, "bilevel": True}, "must be at least 2"),
    ({"warmup_steps": 0}, "hqnas.warmup_steps=0: must be at least 1"),
    ({"logit_lr": 0.0}, "hqnas.logit_lr=0.0: must be above 0"),
    ({"relaxation": "exact"}, "must be 'sampled' or 'mixture'"),
    ({"temperature": (0.5, 2.0)}, "must not rise"),
    ({"temperature": (0.5, 0.0)}, "above 0"),
    ({"damping": -1.0}, "must be at least 0"),
    ({"neighbours": -1}, "hqnas.neighbours=-1: must be at least 0"),
    ({"near_images": 0}, "hqnas.near_images=0: must be at least 1"),
    ({"damping": 0.1, "relaxation": "mixture"}, "must be 0 with"),
    ({"limits": (("latency_ms", 0.5),)}, "a cost other than"),
    ({"rivals": ("random",)}, "must be 'sequential' or 'bwnas'"),
    ({"rivals": ("bwnas",)}, "0 files: must be one file, or one for each of 1 seeds"),
    ({"fronts": ("front.csv",)}, "are read for 'bwnas'"),
    ({"score_images": 70}, r"hqnas.score_images \+ hqnas.norm_images"),
    ({"batch": 60}, r"hqnas.score_images \+ hqnas.batch"),
]

ADAPTATIONS = [
    ({"of": 0.3}, r"must be among hqnas.budgets=\(0.6,\)"),
    ({"budget": 1.5}, "adapt.budget=1.5"),
    ({"prices": (("latency_ms", 0.5),), "budget": 0.5}, "has no adapt.budget"),
    ({"prices": (("latency_ms", 0.5),), "frequencies": (("car", 2.0),)}, "not together"),
    ({"corruptions": (("rain", 0.5),)}, "'rain' must be among"),
    ({"frequencies": (("car", -1.0),)}, "'car' must have a number of at least 0"),
    ({"steps": 0}, "adapt.steps=0: must be at least 1"),
    ({"neighbours": -1}, "adapt.neighbours=-1: must be at least 0"),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=str)
def test_a_bad_setting_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        small_hqnas.small(**settings).check()


@pytest.mark.parametrize(("settings", "message"), ADAPTATIONS, ids=str)
def test_a_bad_adaptation_is_refused(settings, message):
    given = small_hqnas.small()
    given.adapt = Adapt(**settings)
    with pytest.raises(InputError, match=message):
        given.check()


def test_the_small_run_is_allowed():
    small_hqnas.small().check()

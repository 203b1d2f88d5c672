"""Settings of a one-shot search that cannot be used."""

import dataclasses

import pytest

import small_oneshot
from qnas_jax.errors import InputError
from qnas_jax.oneshot.config import Config, Oneshot

BAD = [
    ({"sampling": "all"}, "oneshot.sampling='all': must be 'uniform' or 'fair'"),
    ({"steps": 0}, "oneshot.steps=0: must be at least 1"),
    ({"batch": 0}, "oneshot.batch=0: must be at least 1"),
    ({"optimizer": "adam"}, "oneshot.optimizer='adam': must be 'sgd' or 'adamw'"),
    ({"lr": 0.0}, "oneshot.lr=0.0: must be above 0"),
    ({"momentum": 1.0}, "oneshot.momentum=1.0"),
    ({"power": 0.0}, "oneshot.power=0.0: must be above 0"),
    ({"warmup": 4}, r"oneshot.warmup=4: must lie in \[0, oneshot.steps=4\)"),
    ({"weight_decay": -1.0}, "oneshot.weight_decay=-1.0: must be at least 0"),
    ({"clip": -1.0}, "oneshot.clip=-1.0: must be at least 0"),
    ({"compute": "int8"}, "oneshot.compute='int8'"),
    ({"init": "zeros"}, "oneshot.init='zeros': must be 'teacher' or 'random'"),
    ({"images": 0}, "oneshot.images=0: must be at least 1"),
    ({"images_per_pass": 0}, "oneshot.images_per_pass=0: must be at least 1"),
    ({"at_once": 0}, "oneshot.at_once=0: must be at least 1"),
    ({"norm_images": 0}, "oneshot.norm_images=0: must be at least 1"),
    ({"ranges": "max"}, "oneshot.ranges='max'"),
    ({"cost": "joules"}, "oneshot.cost='joules'"),
    ({"search": "random"}, "oneshot.search='random': must be 'evolution' or 'nsga2'"),
    ({"budgets": (1.5,)}, "above 0, at most 1"),
    ({"budgets": (0.5, 0.5)}, "each only once"),
    ({"candidates": 0}, "oneshot.candidates=0: must be at least 1"),
    ({"images": 70}, r"oneshot.images \+ oneshot.norm_images=78: there are 72 training images"),
    ({"batch": 60}, r"oneshot.images \+ oneshot.batch=76: there are 72 training images"),
]

OTHERS = [
    ("network.teacher_width", 0.2, "network.teacher_width=0.2: must be 0"),
    ("retrain.qat_steps", 5, "retrain.qat_steps=5: is for QA-BWNAS"),
    ("retrain.teacher", True, "retrain.teacher=True: is for QA-BWNAS"),
    ("space.expansions", (1, 6), r"space.expansions=\(1, 6\): at least 2"),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=str)
def test_a_bad_setting_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        small_oneshot.small(**settings).check()


def test_every_setting_has_a_value_that_is_refused():
    names = {name for settings, _ in BAD for name in settings}
    assert names == {field.name for field in dataclasses.fields(Oneshot)}


@pytest.mark.parametrize(("setting", "value", "message"), OTHERS, ids=str)
def test_what_other_systems_have_is_refused(setting, value, message):
    given, (section, name) = small_oneshot.small(), setting.split(".")
    setattr(getattr(given, section), name, value)
    with pytest.raises(InputError, match=message) as error:
        given.check()
    assert "\n" not in str(error.value)


def test_a_teacher_of_the_same_width_is_allowed():
    given = small_oneshot.small()
    given.network.teacher_width = given.network.width
    given.check()


def test_retraining_is_longer_than_the_warmup():
    given = small_oneshot.small()
    given.train.optimizer, given.train.warmup, given.retrain.steps = "adamw", 2, 2
    with pytest.raises(InputError, match=r"retrain\.steps=2: must be above train\.warmup=2"):
        given.check()


def test_the_small_run_and_the_defaults_of_the_section_are_allowed():
    small_oneshot.small().check()
    Config().oneshot.check()

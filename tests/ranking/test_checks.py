"""What an audit refuses before anything is trained."""

import dataclasses

import pytest

from qnas_jax.bwnas import config
from qnas_jax.errors import InputError
from qnas_jax.ranking import scores


def given(lut=None, hardware=None, **audit):
    """A config of two ops and 40 training images."""
    own = {"steps": 4, "batch": 4, "images": 20, "norm_images": 4, **audit}
    return config.Config(
        data=config.Data(height=32, width=64, train_images=40, val_images=6),
        network=config.Network(width=0.25, head_channels=16, rates=(1,), dropout=0.0),
        train=config.Train(steps=6, batch=4, lr=0.05, crop=(32, 64)),
        space=config.Space(kernels=(3, 5), expansions=(2,), depths=(1,) * 6),
        lut=dataclasses.replace(config.Lut(calibration_images=4, images=8), **(lut or {})),
        quantize=config.Quantize(images=4),
        hardware=config.Hardware(**(hardware or {})),
        audit=config.Audit(**own),
    )


def test_a_good_one_is_not_refused():
    scores.check(given())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 5}, r"audit.steps=5: must be a multiple of 2"),
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

"""The config of an audit of seconds."""

import dataclasses

from qnas_jax.bwnas import config


def given(lut=None, hardware=None, **audit):
    """A config of two ops and 40 training images."""
    own = {"steps": 4, "batch": 4, "images": 20, "norm_images": 4, **audit}
    return config.Config(
        data=config.Data(height=32, width=64, train_images=40, val_images=6),
        network=config.Network(width=0.25, head_channels=16, rates=(1,), dropout=0.0),
        train=config.Train(steps=6, batch=4, lr=0.05, crop=(32, 64)),
        supernet=config.Supernet(steps=4, batch=4),
        space=config.Space(kernels=(3, 5), expansions=(2,), depths=(1,) * 6),
        lut=dataclasses.replace(config.Lut(calibration_images=4, images=8), **(lut or {})),
        quantize=config.Quantize(images=4),
        hardware=config.Hardware(**(hardware or {})),
        audit=config.Audit(**own),
    )

"""The quickstart: QA-BWNAS in INT8 on rendered street scenes, small enough for a laptop."""

from qnas_jax.config import (
    Config,
    Data,
    Lut,
    Network,
    Quantize,
    Retrain,
    Run,
    Space,
    Supernet,
    Train,
)


def get_config() -> Config:
    """Half of MobileNetV2's width at 96 x 192 pixels."""
    return Config(
        data=Data(height=96, width=192, train_images=480, val_images=100),
        network=Network(
            width=0.5,
            strides=(1, 2, 2, 2, 1, 1, 1),
            dilations=(1, 1, 1, 1, 1, 2, 2),
            head_channels=64,
            rates=(2, 4, 6),
            dropout=0.0,
        ),
        train=Train(steps=500, lr=0.4, crop=(96, 192), scale=(0.8, 1.25)),
        space=Space(depths=(2, 2, 3, 3, 2, 1)),
        supernet=Supernet(steps=150, lr=(0.1,) * 6),
        lut=Lut(calibration_images=16, images=32, images_per_pass=32),
        quantize=Quantize(images=32),
        retrain=Retrain(subnets=3),
        run=Run(save_every=100, log_every=10, eval_batch=10),
    )

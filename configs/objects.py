"""Classification of rendered things: QA-BWNAS in INT8, small enough for a laptop.

    python launch/main.py --config configs/objects.py

Takes a quarter of an hour on two cores. The teacher has 87.7 % top-1; at 6, 5 and 4 bits it would
have 85.6, 80.1 and 61.5 %.
"""

from qnas_jax.bwnas import config


def get_config() -> config.Config:
    """Half of MobileNetV2's width at 48 x 48 pixels, 12 classes."""
    return config.Config(
        data=config.Data(source="objects", height=48, width=48, train_images=8000, val_images=2000),
        network=config.Network(
            width=0.5,
            strides=(1, 2, 2, 2, 1, 1, 1),
            dilations=(1,) * 7,
            head_channels=320,
            dropout=0.0,
        ),
        train=config.Train(
            steps=4000,
            batch=32,
            optimizer="adamw",
            lr=2e-3,
            warmup=100,
            weight_decay=1e-2,
            clip=1.0,
            crop=(48, 48),
            scale=(0.9, 1.2),
        ),
        space=config.Space(depths=(2, 2, 3, 3, 2, 1)),
        supernet=config.Supernet(
            steps=100,
            batch=32,
            optimizer="adamw",
            lr=(1e-3,) * 6,
            warmup=10,
            clip=1.0,
            init="teacher",
        ),
        lut=config.Lut(calibration_images=64, images=128, images_per_pass=128),
        quantize=config.Quantize(images=128, images_per_pass=64),
        retrain=config.Retrain(subnets=3, steps=500, lr=5e-4, teacher=True),
        run=config.Run(save_every=500, log_every=50, eval_batch=50),
    )

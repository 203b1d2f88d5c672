"""Which bits for which layer: HAQ for a classifier of rendered things, on a laptop.

    python launch/main.py --config configs/haq_objects.py

A MobileNetV2 of half width that comes with the project (87.75 % top-1), on two accelerators, at the
latency of 4 bits everywhere.
"""

from qnas_jax.haq import config


def get_config() -> config.Config:
    """Half of MobileNetV2's width at 48 x 48 pixels, 12 classes."""
    return config.Config(
        data=config.Data(source="objects", height=48, width=48, train_images=9000, val_images=2000),
        network=config.Network(
            width=0.5,
            strides=(1, 2, 2, 2, 1, 1, 1),
            dilations=(1,) * 7,
            head_channels=320,
            dropout=0.0,
        ),
        teacher=config.Teacher(checkpoint=config.OBJECTS_TEACHER),
        train=config.Train(steps=4000, batch=32, crop=(48, 48), scale=(0.9, 1.2)),
        quantize=config.Quantize(images=128, images_per_pass=64),
        haq=config.Haq(
            targets=("bismo_edge:latency_ms", "bismo_cloud:latency_ms"),
            budgets=(4.0,),
            ranges="mse",
            order="highest",
            seeds=2,
            episodes=120,
            per_round=64,
            reward_images=250,
            images_per_pass=250,
            norm_images=64,
            final_steps=60,
            final_lr=2e-3,
        ),
        run=config.Run(save_every=50, log_every=10, eval_batch=50),
    )

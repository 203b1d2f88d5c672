"""A network and its bitwidths by gradient, for a classifier of rendered things, on a laptop.

    python launch/main.py --config configs/hqnas_objects.py

The teacher is the MobileNetV2 of half width that comes with the project (87.75 % top-1). Ops and
bits are searched for a third of its latency at 8 bits on BISMO's edge device.
"""

from qnas_jax.hqnas import config


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
        space=config.Space(kernels=(3, 5, 7), expansions=(3, 6), depths=(2, 3, 4, 3, 3, 1)),
        quantize=config.Quantize(images=128, images_per_pass=64),
        hardware=config.Hardware(target="bismo_edge"),
        hqnas=config.Hqnas(
            budgets=(0.35,),
            warmup_steps=200,
            steps=300,
            batch=32,
            score_images=250,
            samples=12,
            final_steps=300,
        ),
        run=config.Run(save_every=50, log_every=10, eval_batch=50),
    )

"""Ops and bits by gradient for segmentation, on rendered street scenes.

    python launch/main.py --config configs/hqnas_streets.py

The teacher is the one of `configs/streets.py`, which comes with the project (52.14 % mIoU). Ops and
bits are searched for 0.55 of its latency at 8 bits on BISMO's edge device. The head keeps 8 bits,
which are most of what is left.
"""

from qnas_jax.hqnas import config


def get_config() -> config.Config:
    """Half of MobileNetV2's width, DeepLabV3, at 96 x 192 pixels."""
    return config.Config(
        data=config.Data(source="streets", height=96, width=192, train_images=1048, val_images=100),
        network=config.Network(
            width=0.5,
            strides=(1, 2, 2, 1, 1, 1, 1),
            dilations=(1,) * 7,
            head_channels=64,
            rates=(2, 4, 6),
            dropout=0.0,
        ),
        teacher=config.Teacher(checkpoint=config.STREETS_TEACHER),
        train=config.Train(steps=100, batch=8, crop=(96, 192), scale=(0.85, 1.2)),
        space=config.Space(kernels=(3, 5, 7), expansions=(3, 6), depths=(2, 3, 4, 3, 3, 1)),
        quantize=config.Quantize(images=32, images_per_pass=8),
        hardware=config.Hardware(target="bismo_edge"),
        hqnas=config.Hqnas(
            budgets=(0.55,),
            warmup_steps=100,
            steps=150,
            batch=8,
            score_images=48,
            images_per_pass=16,
            norm_images=16,
            choice_images=8,
            samples=8,
            final_steps=150,
        ),
        run=config.Run(save_every=25, log_every=10, eval_batch=4),
    )

"""A teacher of rendered street scenes that is trained for longer than the quickstart's.

    python launch/main.py --config configs/streets_teacher.py --until=teacher
    qnas save_weights --config configs/streets_teacher.py --file teacher.safetensors

Features have 1/8 of the image's side. At 1/16, as in `configs/streets.py`, thin things vanish: the
labels themselves, reduced to that size and enlarged again, score 48 % mIoU (at 1/8: 64 %).

Expected time: one to two hours on two cores. This config has not run to its end yet.
"""

from qnas_jax.bwnas import config


def network() -> config.Network:
    """Half of MobileNetV2's width, output stride 8."""
    return config.Network(
        width=0.5,
        strides=(1, 2, 2, 1, 1, 1, 1),
        dilations=(1,) * 7,
        head_channels=64,
        rates=(2, 4, 6),
        dropout=0.0,
    )


def get_config() -> config.Config:
    """6,000 steps of AdamW on 4,000 scenes of 96 x 192 pixels."""
    return config.Config(
        data=config.Data(height=96, width=192, train_images=4000, val_images=200),
        network=network(),
        train=config.Train(
            steps=6_000,
            batch=8,
            optimizer="adamw",
            lr=2e-3,
            warmup=200,
            weight_decay=1e-2,
            clip=1.0,
            crop=(96, 192),
            scale=(0.7, 1.4),
        ),
        quantize=config.Quantize(images=32),
        run=config.Run(save_every=250, log_every=100, eval_batch=10),
    )

"""At which bitwidths a search must know of quantization: the quickstart at 2 to 8 bits.

    qnas aware --config configs/streets_aware.py

Trains what a search in float and one at the bitwidths pick; docs/ranking.md has the figures.
"""

from qnas_jax.bwnas import config


def get_config() -> config.Config:
    """Half of MobileNetV2's width at 96 x 192 pixels, output stride 8."""
    return config.Config(
        data=config.Data(height=96, width=192, train_images=680, val_images=200),
        network=config.Network(
            width=0.5,
            strides=(1, 2, 2, 1, 1, 1, 1),
            dilations=(1,) * 7,
            head_channels=64,
            rates=(2, 4, 6),
            dropout=0.0,
        ),
        teacher=config.Teacher(checkpoint=config.STREETS_TEACHER),
        train=config.Train(
            steps=100,
            optimizer="adamw",
            lr=1e-3,
            warmup=20,
            weight_decay=1e-2,
            clip=1.0,
            crop=(96, 192),
            scale=(0.85, 1.2),
        ),
        space=config.Space(
            depths=(2, 2, 3, 3, 2, 1), w_bits=(8, 6, 5, 4, 3, 2), a_bits=(8, 6, 5, 4, 3, 2)
        ),
        supernet=config.Supernet(
            steps=80, optimizer="adamw", lr=(1e-3,) * 6, warmup=10, clip=1.0, init="teacher"
        ),
        lut=config.Lut(calibration_images=16, images=32, images_per_pass=32, ranges="mse"),
        quantize=config.Quantize(images=32, ranges="mse"),
        retrain=config.Retrain(steps=60, distill=(("logits", 1.0), ("features", 8.0))),
        audit=config.Audit(steps=240, batch=8, images=200, norm_images=16),
        run=config.Run(save_every=100, log_every=20, eval_batch=20),
    )

"""A found network against the INT8 teacher at three quarters of its bytes, on rendered scenes.

    python launch/main.py --config configs/streets_full.py

The quickstart with more training: teacher and found network are trained on for 1,500 steps alike,
then for 300 under their bitwidths; docs/quantization.md has the figures. An hour on two cores that
other programs use, too. The sibling of mixed precision, which was not run, has two thirds of the
bytes:

    python launch/main.py --config configs/streets_full.py --workdir runs/streets_mixed \\
        --config.space.w_bits="(4, 6, 8)" --config.space.a_bits="(8, 8, 8)" \\
        --config.search.budgets="(('size_bytes', 676_000.0),)"
"""

from qnas_jax.bwnas import config


def get_config() -> config.Config:
    """Half of MobileNetV2's width at 96 x 192 pixels, output stride 8."""
    return config.Config(
        data=config.Data(height=96, width=192, train_images=1048, val_images=100),
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
            steps=3000,
            optimizer="adamw",
            lr=1e-3,
            warmup=20,
            weight_decay=1e-2,
            clip=1.0,
            crop=(96, 192),
            scale=(0.85, 1.2),
        ),
        space=config.Space(depths=(2, 2, 3, 3, 2, 1)),
        supernet=config.Supernet(
            steps=200, optimizer="adamw", lr=(1e-3,) * 6, warmup=10, clip=1.0, init="teacher"
        ),
        lut=config.Lut(calibration_images=16, images=32, images_per_pass=32),
        quantize=config.Quantize(images=64),
        search=config.Search(budgets=(("size_bytes", 760_500.0),)),
        retrain=config.Retrain(
            subnets=1,
            steps=1500,
            teacher=True,
            distill=(("logits", 1.0), ("features", 8.0)),
            qat_steps=300,
        ),
        run=config.Run(save_every=200, log_every=50, eval_batch=10),
    )

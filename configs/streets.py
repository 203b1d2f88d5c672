"""The quickstart: QA-BWNAS in INT8 on rendered street scenes, small enough for a laptop.

The teacher comes with the project; `qnas_jax/data/streets/teacher.md` says how it was trained.
"""

from qnas_jax.bwnas import config


def get_config() -> config.Config:
    """Half of MobileNetV2's width at 96 x 192 pixels, output stride 8."""
    return config.Config(
        data=config.Data(height=96, width=192, train_images=480, val_images=100),
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
        space=config.Space(depths=(2, 2, 3, 3, 2, 1)),
        supernet=config.Supernet(
            steps=40, optimizer="adamw", lr=(1e-3,) * 6, warmup=10, clip=1.0, init="teacher"
        ),
        lut=config.Lut(calibration_images=16, images=32, images_per_pass=32),
        quantize=config.Quantize(images=32),
        # Fewer steps, as each also asks the teacher: see docs/quantization.md.
        retrain=config.Retrain(subnets=2, steps=60, distill=(("logits", 1.0), ("features", 8.0))),
        run=config.Run(save_every=100, log_every=10, eval_batch=10),
    )

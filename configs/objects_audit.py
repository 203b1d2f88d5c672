"""What ranks subnets as training does: networks for rendered things at 4, 6 and 8 bits.

    python launch/main.py --config configs/objects_audit.py --audit
    qnas fronts --config configs/objects_audit.py

The first command trains 24 subnets twice, the second one the fronts of QA-BWNAS, SPOS and FairNAS.
Each takes the better part of an hour on two cores; docs/ranking.md has the figures.
"""

from qnas_jax.bwnas import config


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
        train=config.Train(steps=500, batch=32, lr=2e-3, crop=(48, 48), scale=(0.9, 1.2)),
        space=config.Space(depths=(2, 2, 3, 3, 2, 1), w_bits=(8, 6, 4), a_bits=(8, 6, 4)),
        supernet=config.Supernet(
            steps=100,
            batch=32,
            optimizer="adamw",
            lr=(1e-3,) * 6,
            warmup=10,
            clip=1.0,
            init="teacher",
        ),
        lut=config.Lut(calibration_images=64, images=128, images_per_pass=128, ranges="mse"),
        quantize=config.Quantize(images=128, images_per_pass=64, ranges="mse"),
        retrain=config.Retrain(subnets=4, steps=200, lr=1e-3, distill=(("logits", 1.0),)),
        audit=config.Audit(
            subnets=24, steps=600, images=250, norm_images=64, front=4, candidates=300
        ),
        run=config.Run(save_every=100, log_every=25, eval_batch=50),
    )

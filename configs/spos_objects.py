"""SPOS: one supernet with uniform paths, and evolution within a budget, on a laptop.

    python launch/main.py --config configs/spos_objects.py

The teacher is the MobileNetV2 of half width that comes with the project (87.75 % top-1). Ops, and
4, 6 or 8 bits for each block, are searched for 60 % of its size at 8 bits: 300 subnets are scored
with the shared weights, and the best one is trained for 300 steps.

Guo et al., 2020, https://arxiv.org/abs/1904.00420, with MBConv's instead of ShuffleNet's ops.
"""

from qnas_jax.oneshot import config


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
        space=config.Space(depths=(2, 2, 3, 3, 2, 1), w_bits=(4, 6, 8), a_bits=(4, 6, 8)),
        quantize=config.Quantize(images=128, images_per_pass=64),
        oneshot=config.Oneshot(
            sampling="uniform", steps=600, search="evolution", budgets=(0.6,), candidates=300
        ),
        retrain=config.Retrain(steps=300),
        run=config.Run(save_every=100, log_every=25, eval_batch=50),
    )

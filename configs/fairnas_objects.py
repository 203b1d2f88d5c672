"""FairNAS: one supernet in which each op is trained equally often, and NSGA-II, on a laptop.

    python launch/main.py --config configs/fairnas_objects.py

The teacher is the MobileNetV2 of half width that comes with the project (87.75 % top-1). Ops, and
4, 6 or 8 bits for each block, are searched for a front of accuracy and size: 300 subnets are scored
with the shared weights, and three of the front are trained for 300 steps each.

A path counts as a step, and the weights change once for every six: 600 steps are 100 changes.

Chu et al., 2021, https://arxiv.org/abs/1907.01845.
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
        oneshot=config.Oneshot(sampling="fair", steps=600, search="nsga2", candidates=300),
        retrain=config.Retrain(subnets=3, steps=300),
        run=config.Run(save_every=100, log_every=25, eval_batch=50),
    )

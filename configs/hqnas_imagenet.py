"""Ops and bits by gradient on ImageNet, from a TFDS folder.

    python launch/main.py --config configs/hqnas_imagenet.py --config.data.root=/data/tfds \\
        --config.teacher.checkpoint=mobilenet_v2.pth

The network is that of `configs/imagenet.py`, whose docstring says how the images get there. Chen et
al., 2022 (https://arxiv.org/abs/2210.08485) report 1.8 times lower latency at 0.7 points less
accuracy, in a tenth of the usual GPU time; their setting is not public. The first budget is that
latency: a teacher of 8 bits, divided by 1.8. On one NVIDIA H200 a step takes 338 ms
(docs/hqnas.md), so the 80,000 steps of both budgets 7.5 hours, without the reading of images and
the training of the found networks. As a whole this config has not run.
"""

from qnas_jax.hqnas import config

IMAGES, BATCH = 1_281_167, 512


def get_config() -> config.Config:
    """MobileNetV2 at 224 x 224 pixels."""
    return config.Config(
        data=config.Data(
            source="tfds", name="imagenet2012", root="data/tfds", height=224, width=224, threads=16
        ),
        network=config.Network(
            width=1.0,
            strides=(1, 2, 2, 2, 1, 2, 1),
            dilations=(1,) * 7,
            head_channels=1280,
            dropout=0.2,
        ),
        train=config.Train(
            steps=150 * IMAGES // BATCH,
            batch=BATCH,
            lr=0.4,
            weight_decay=4e-5,
            crop=(224, 224),
            scale=(1.0, 3.0),
        ),
        space=config.Space(depths=(2, 3, 4, 3, 3, 1)),
        quantize=config.Quantize(images=512, images_per_pass=64),
        hardware=config.Hardware(target="bismo_edge"),
        hqnas=config.Hqnas(
            budgets=(0.55, 0.35),
            warmup_steps=20_000,
            steps=30_000,
            batch=256,
            samples=64,
            score_images=10_000,
            choice_images=256,
            images_per_pass=250,
            norm_images=256,
            final_steps=40_000,
            final_lr=5e-3,
        ),
        run=config.Run(save_every=1000, log_every=100, eval_batch=100),
    )

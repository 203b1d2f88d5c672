"""Ops and bits by gradient on CIFAR-10, from a TFDS folder.

    qnas prepare --name cifar10 --root /data/tfds
    python launch/main.py --config configs/hqnas_cifar10.py --config.data.root=/data/tfds

Chen et al., 2022 (https://arxiv.org/abs/2210.08485) report a good policy after 4 GPU-hours; their
setting is not public. The network is that of `configs/cifar10.py`, trained here, or taken by
`--config.teacher.checkpoint=runs/cifar10/teacher/checkpoint`.

On one NVIDIA H200 a step takes 83 ms, without the reading of images (docs/hqnas.md): half an hour
for the 20,000 steps of one search with its warm-up, 3.0 hours for three seeds of three budgets. The
teacher, the scores of the derivation and the training of the found networks come to that; as a
whole this config has not run.
"""

from qnas_jax.hqnas import config


def get_config() -> config.Config:
    """MobileNetV2 at 32 x 32 pixels, its first stride at the third group."""
    return config.Config(
        data=config.Data(
            source="tfds", name="cifar10", root="data/tfds", height=32, width=32, threads=8
        ),
        network=config.Network(
            stem_stride=1,
            width=1.0,
            strides=(1, 1, 2, 2, 1, 2, 1),
            dilations=(1,) * 7,
            head_channels=1280,
            dropout=0.2,
        ),
        train=config.Train(
            steps=40_000,
            batch=128,
            optimizer="adamw",
            lr=2e-3,
            warmup=1000,
            weight_decay=5e-2,
            clip=1.0,
            crop=(32, 32),
            scale=(0.8, 1.25),
        ),
        space=config.Space(depths=(2, 3, 4, 3, 3, 1)),
        quantize=config.Quantize(images=512, images_per_pass=128),
        hardware=config.Hardware(target="bismo_edge"),
        hqnas=config.Hqnas(
            budgets=(0.25, 0.35, 0.55),
            seeds=3,
            warmup_steps=8_000,
            steps=12_000,
            batch=128,
            samples=64,
            score_images=2000,
            images_per_pass=500,
            norm_images=256,
            final_steps=8_000,
            final_lr=5e-3,
        ),
        run=config.Run(save_every=1000, log_every=100, eval_batch=200),
    )

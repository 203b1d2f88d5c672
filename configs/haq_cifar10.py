"""HAQ on CIFAR-10, from a TFDS folder: MobileNetV2 on three accelerators.

    qnas prepare --name cifar10 --root /data/tfds
    python launch/main.py --config configs/haq_cifar10.py --config.data.root=/data/tfds

No paper has this setting. The network is that of `configs/cifar10.py`, trained here, or taken by
`--config.teacher.checkpoint=runs/cifar10/teacher/checkpoint`. This config has not run on a GPU yet.
"""

from qnas_jax.haq import config


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
        quantize=config.Quantize(images=512, images_per_pass=128),
        haq=config.Haq(
            ranges="mse",
            targets=("bismo_edge:latency_ms", "bismo_cloud:latency_ms", "bitfusion:latency_ms"),
            budgets=(4.0, 5.0, 6.0),
            reward_images=2000,
            images_per_pass=500,
            policies_per_pass=4,
            norm_images=256,
            steps=20,
            lr=2e-3,
            final_steps=4000,
            final_lr=5e-3,
        ),
        run=config.Run(save_every=50, log_every=10, eval_batch=200),
    )

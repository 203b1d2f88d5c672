"""QA-BWNAS on CIFAR-10 in INT8, from a TFDS folder.

    qnas prepare --name cifar10 --root /data/tfds
    python launch/main.py --config configs/cifar10.py --config.data.root=/data/tfds

No paper has this setting. Training is the usual one of CIFAR-10 with AdamW. This config has not
run on a GPU yet.
"""

from qnas_jax.bwnas import config


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
            steps=40_000,  # 102 epochs
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
        supernet=config.Supernet(steps=8_000, batch=128, lr=(0.05,) * 6, clip=1.0),
        lut=config.Lut(calibration_images=256, images=1024, images_per_pass=256),
        quantize=config.Quantize(images=512, images_per_pass=128),
        run=config.Run(save_every=1000, log_every=100, eval_batch=200),
    )

"""QA-BWNAS on ImageNet in INT8: the setting of DNA on MobileNetV2's blocks.

Paper: Li et al., 2020, https://arxiv.org/abs/1911.13053 (DNA).

    qnas prepare --name imagenet2012 --root /data/tfds
    python launch/main.py --config configs/imagenet.py --config.data.root=/data/tfds

As DNA: six blocks, MBConv with kernels 3, 5 and 7 and expansions 3 and 6, 20 epochs for each
block, learning rates 0.002 for the first and the last block and 0.005 for the others, weight decay
1e-4. Otherwise than DNA: the teacher is MobileNetV2 (DNA: EfficientNet-B7 of twice the student's
width), so blocks end at MobileNetV2's groups; ops have ReLU6 and no squeeze-and-excitation, which
integer hardware runs; SGD with fair paths (DNA: Adam with uniform paths); no random erasing and no
colour jitter. A teacher of torchvision or timm is taken by
`--config.teacher.checkpoint=mobilenet_v2.pth`. This config has not run on a GPU yet.
"""

from qnas_jax.bwnas import config

IMAGES, BATCH = 1_281_167, 512


def get_config() -> config.Config:
    """MobileNetV2 at 224 x 224 pixels, 1000 classes."""
    return config.Config(
        data=config.Data(
            source="tfds",
            name="imagenet2012",
            root="data/tfds",
            height=224,
            width=224,
            threads=16,
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
        space=config.Space(depths=(2, 4, 4, 4, 4, 1)),
        supernet=config.Supernet(
            steps=20 * IMAGES // BATCH,
            batch=BATCH,
            lr=(0.002, 0.005, 0.005, 0.005, 0.005, 0.002),
            weight_decay=1e-4,
            parts=8,
        ),
        lut=config.Lut(calibration_images=256, images=2048, images_per_pass=64),
        quantize=config.Quantize(images=512, images_per_pass=64),
        run=config.Run(save_every=1000, log_every=100, eval_batch=100),
    )

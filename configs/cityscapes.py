"""The published setup: QA-BWNAS on Cityscapes in INT8.

Paper: Lu et al., 2023, https://arxiv.org/abs/2401.12350. The network is DeepLabV3 with
MobileNetV2 at output stride 8, as MMSegmentation's M-V2-D8: only the first layer of a group is
dilated, and around an image lies the mean colour.

    python launch/main.py --config configs/cityscapes.py --config.data.root=/data/cityscapes

Published: 4.05 GPU-hours for the supernet and 14.87 for the LUT on an RTX 8000; INT8 subnets up
to 4.2 points of mIoU above the INT8 teacher, or 25 % smaller. This config has not run on a GPU yet.

The paper leaves these settings open. This config uses:
- paths per training step: fair sampling, six at once (supernet.sampling)
- weight decay: 5e-4 for whole networks as in MMSegmentation, 1e-4 for the supernet as in DNA
- polynomial schedules: power 0.9, down to 0
- augmentation: random scale 0.5 to 2, crop, horizontal flip; no auxiliary head, no colour jitter
- scores: NSR on 500 training images, centre-cropped to the training size; statistics and ranges
  from 32 images
- ranges: min-max; weights per output channel and symmetric, activations per tensor and
  asymmetric; stem and head at 8 bits
- head: 512 channels, which hold 90 % of the network's weights. The published sizes can only be
  those of the encoder (or of a much smaller head), so the report gives both.
"""

from qnas_jax.bwnas import config


def get_config() -> config.Config:
    """Table I of the paper with 512 x 1024 crops and all hyperparameters that the paper gives."""
    return config.Config(
        data=config.Data(
            source="cityscapes", root="data/cityscapes", height=1024, width=2048, threads=8
        ),
        network=config.Network(
            width=1.0,
            strides=(1, 2, 2, 1, 1, 1, 1),
            dilations=(1, 1, 1, 2, 2, 4, 4),
            dilate="first",
            padding=(123.675, 116.28, 103.53),
            head_channels=512,
            rates=(12, 24, 36),
            dropout=0.1,
        ),
        teacher=config.Teacher(checkpoint=""),
        train=config.Train(
            steps=80_000,
            batch=8,
            lr=0.01,
            momentum=0.9,
            power=0.9,
            weight_decay=5e-4,
            crop=(512, 1024),
            scale=(0.5, 2.0),
        ),
        space=config.Space(
            kernels=(3, 5, 7),
            expansions=(3, 6),
            depths=(3, 3, 4, 4, 3, 1),
            w_bits=(8,),
            a_bits=(8,),
        ),
        supernet=config.Supernet(
            steps=13_334,
            batch=8,
            lr=(0.002, 0.005, 0.005, 0.005, 0.005, 0.002),
            momentum=0.9,
            power=0.9,
            weight_decay=1e-4,
            sampling="fair",
        ),
        lut=config.Lut(calibration_images=32, images=500, images_per_pass=8),
        quantize=config.Quantize(images=32, images_per_pass=8),
        retrain=config.Retrain(subnets=5, init="supernet"),
        run=config.Run(save_every=500, log_every=50, eval_batch=1),
    )

"""Classification of real, small images: scikit-learn's handwritten digits, INT8 on a laptop.

    pip install -e '.[digits]' && python launch/main.py --config configs/digits.py

Digits are easy, so they check the path from real data to a file, and say little about bitwidths.
`configs/objects.py` is the harder task. It took 10 minutes beside another run.
"""

from qnas_jax.bwnas import config


def get_config() -> config.Config:
    """A quarter of MobileNetV2's width at 32 x 32 pixels, 10 classes."""
    return config.Config(
        data=config.Data(source="digits", height=32, width=32),
        network=config.Network(
            stem_stride=1,
            width=0.25,
            strides=(1, 2, 2, 2, 1, 1, 1),
            dilations=(1,) * 7,
            head_channels=128,
            dropout=0.0,
        ),
        train=config.Train(
            steps=600,
            batch=32,
            optimizer="adamw",
            lr=2e-3,
            warmup=50,
            weight_decay=1e-2,
            clip=1.0,
            crop=(32, 32),
            scale=(0.9, 1.1),
            flip=False,
        ),
        space=config.Space(depths=(2, 2, 2, 2, 2, 1)),
        supernet=config.Supernet(
            steps=60,
            batch=32,
            optimizer="adamw",
            lr=(1e-3,) * 6,
            warmup=10,
            clip=1.0,
            init="teacher",
        ),
        lut=config.Lut(calibration_images=64, images=128, images_per_pass=128),
        quantize=config.Quantize(images=128, images_per_pass=64),
        retrain=config.Retrain(subnets=3, steps=200, lr=5e-4, teacher=True),
        run=config.Run(save_every=100, log_every=50, eval_batch=40),
    )

"""The quickstart: QA-BWNAS in INT8 on rendered street scenes, small enough for a laptop."""

from qnas_jax.bwnas import config


def get_config() -> config.Config:
    """Half of MobileNetV2's width at 96 x 192 pixels."""
    return config.Config(
        data=config.Data(height=96, width=192, train_images=480, val_images=100),
        network=config.Network(
            width=0.5,
            strides=(1, 2, 2, 2, 1, 1, 1),
            dilations=(1, 1, 1, 1, 1, 2, 2),
            head_channels=64,
            rates=(2, 4, 6),
            dropout=0.0,
        ),
        train=config.Train(steps=500, lr=0.4, crop=(96, 192), scale=(0.8, 1.25)),
        space=config.Space(depths=(2, 2, 3, 3, 2, 1)),
        # A teacher channel may be almost constant. The NSR then weighs its error a hundredfold, and
        # unclipped steps diverge at this learning rate.
        supernet=config.Supernet(steps=150, lr=(0.1,) * 6, clip=1.0),
        lut=config.Lut(calibration_images=16, images=32, images_per_pass=32),
        quantize=config.Quantize(images=32),
        retrain=config.Retrain(subnets=3),
        run=config.Run(save_every=100, log_every=10, eval_batch=10),
    )

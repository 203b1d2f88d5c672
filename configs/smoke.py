"""The end-to-end run of the tests: runs every stage, learns nothing; under 90 s on 2 cores."""

from qnas_jax.bwnas import config


def get_config() -> config.Config:
    """A quarter of MobileNetV2's width, two ops, one layer in most blocks."""
    return config.Config(
        data=config.Data(height=32, width=64, train_images=16, val_images=6),
        network=config.Network(width=0.25, head_channels=16, rates=(1,), dropout=0.0),
        train=config.Train(steps=6, batch=4, lr=0.05, crop=(32, 64)),
        space=config.Space(kernels=(3, 5), expansions=(2,), depths=(2, 1, 1, 1, 1, 1)),
        supernet=config.Supernet(steps=4, batch=4, lr=(0.05,) * 6),
        lut=config.Lut(calibration_images=4, images=8, images_per_pass=4),
        quantize=config.Quantize(images=4),
        retrain=config.Retrain(subnets=2, teacher=True),
        run=config.Run(save_every=2, log_every=1, eval_batch=3),
    )

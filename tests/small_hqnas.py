"""The config of a run of HQNAS that takes seconds."""

from qnas_jax.hqnas import config


def small(**hqnas):
    """Two ops, one layer in each block, a MobileNetV2 of a tenth of the width."""
    defaults = {
        "bits": (2, 4, 8),
        "budgets": (0.6,),
        "warmup_steps": 4,
        "steps": 6,
        "batch": 8,
        "samples": 4,
        "neighbours": 8,
        "near_images": 16,
        "score_images": 16,
        "images_per_pass": 16,
        "norm_images": 8,
        "final_steps": 3,
    }
    return config.Config(
        data=config.Data(source="objects", height=32, width=32, train_images=72, val_images=20),
        network=config.Network(
            width=0.1,
            strides=(1, 2, 2, 1, 1, 1, 1),
            dilations=(1,) * 7,
            head_channels=16,
            dropout=0.0,
        ),
        train=config.Train(steps=4, batch=8, lr=0.05, crop=(32, 32), scale=(1.0, 1.0)),
        space=config.Space(kernels=(3, 5), expansions=(3, 6), depths=(1, 1, 1, 1, 1, 1)),
        quantize=config.Quantize(images=8, images_per_pass=8),
        hardware=config.Hardware(target="bismo_edge"),
        hqnas=config.Hqnas(**{**defaults, **hqnas}),
        export=config.Export(max_drop=100.0),
        run=config.Run(save_every=2, log_every=1, eval_batch=10),
    )

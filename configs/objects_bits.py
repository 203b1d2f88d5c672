"""QA-BWNAS in the space of `configs/hqnas_objects.py`: 2 to 8 bits, chosen by block.

    python launch/main.py --config configs/objects_bits.py

`configs/hqnas_objects.py` can be compared with its front, see `hqnas.fronts`.
"""

from qnas_jax.bwnas import config


def get_config() -> config.Config:
    """Half of MobileNetV2's width at 48 x 48 pixels, 12 classes; as deep as the teacher."""
    return config.Config(
        data=config.Data(source="objects", height=48, width=48, train_images=9000, val_images=2000),
        network=config.Network(
            width=0.5,
            strides=(1, 2, 2, 2, 1, 1, 1),
            dilations=(1,) * 7,
            head_channels=320,
            dropout=0.0,
        ),
        teacher=config.Teacher(checkpoint=config.OBJECTS_TEACHER),
        train=config.Train(steps=500, batch=32, lr=2e-3, crop=(48, 48), scale=(0.9, 1.2)),
        space=config.Space(
            depths=(2, 3, 4, 3, 3, 1),
            w_bits=tuple(w for w, _ in config.NEAR_PAIRS),
            a_bits=tuple(a for _, a in config.NEAR_PAIRS),
        ),
        supernet=config.Supernet(
            steps=200,
            batch=32,
            optimizer="adamw",
            lr=(1e-3,) * 6,
            warmup=10,
            clip=1.0,
            init="teacher",
        ),
        lut=config.Lut(calibration_images=16, images=32, images_per_pass=32, ranges="mse"),
        quantize=config.Quantize(images=128, images_per_pass=64),
        hardware=config.Hardware(target="bismo_edge"),
        search=config.Search(costs=("size_bytes", "latency_ms"), epsilon=0.02),
        retrain=config.Retrain(subnets=3, steps=300),
        run=config.Run(save_every=100, log_every=25, eval_batch=50),
    )

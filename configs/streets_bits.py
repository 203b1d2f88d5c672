"""QA-BWNAS in the space of `configs/hqnas_streets.py`: 2 to 8 bits, chosen by block.

    python launch/main.py --config configs/streets_bits.py

`configs/hqnas_streets.py` can be compared with its front, see `hqnas.fronts`.
"""

from qnas_jax.bwnas import config


def get_config() -> config.Config:
    """Half of MobileNetV2's width, DeepLabV3, at 96 x 192 pixels; as deep as the teacher."""
    return config.Config(
        data=config.Data(source="streets", height=96, width=192, train_images=1048, val_images=100),
        network=config.Network(
            width=0.5,
            strides=(1, 2, 2, 1, 1, 1, 1),
            dilations=(1,) * 7,
            head_channels=64,
            rates=(2, 4, 6),
            dropout=0.0,
        ),
        teacher=config.Teacher(checkpoint=config.STREETS_TEACHER),
        train=config.Train(
            steps=100,
            optimizer="adamw",
            lr=1e-3,
            warmup=20,
            weight_decay=1e-2,
            clip=1.0,
            crop=(96, 192),
            scale=(0.85, 1.2),
        ),
        space=config.Space(
            depths=(2, 3, 4, 3, 3, 1),
            w_bits=tuple(w for w, _ in config.NEAR_PAIRS),
            a_bits=tuple(a for _, a in config.NEAR_PAIRS),
        ),
        supernet=config.Supernet(
            steps=100, optimizer="adamw", lr=(1e-3,) * 6, warmup=10, clip=1.0, init="teacher"
        ),
        lut=config.Lut(calibration_images=8, images=8, images_per_pass=8, ranges="mse"),
        quantize=config.Quantize(images=32),
        hardware=config.Hardware(target="bismo_edge"),
        search=config.Search(costs=("size_bytes", "latency_ms"), epsilon=0.02),
        retrain=config.Retrain(subnets=2),
        run=config.Run(save_every=50, log_every=10, eval_batch=10),
    )

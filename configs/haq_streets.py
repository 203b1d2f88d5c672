"""HAQ for segmentation: which bits for which layer of the teacher of Streets.

    python launch/main.py --config configs/haq_streets.py

The network is the one of `configs/streets.py`, which comes with the project (52.14 % mIoU). A
subnet that QA-BWNAS found is taken instead by

    --config.haq.network=SUBNET --config.space.depths="(...)"
    --config.teacher.checkpoint=runs/streets/retrain/SUBNET/checkpoint
"""

from qnas_jax.haq import config


def get_config() -> config.Config:
    """Half of MobileNetV2's width, DeepLabV3, at 96 x 192 pixels."""
    return config.Config(
        data=config.Data(source="streets", height=96, width=192, train_images=4048, val_images=100),
        network=config.Network(
            width=0.5,
            strides=(1, 2, 2, 1, 1, 1, 1),
            dilations=(1,) * 7,
            head_channels=64,
            rates=(2, 4, 6),
            dropout=0.0,
        ),
        teacher=config.Teacher(checkpoint=config.STREETS_TEACHER),
        train=config.Train(steps=100, batch=8, crop=(96, 192)),
        quantize=config.Quantize(images=32, images_per_pass=8),
        haq=config.Haq(
            ranges="mse",
            targets=("bismo_edge:latency_ms", "bismo_cloud:latency_ms"),
            budgets=(4.0,),
            methods=("haq", "uniform", "exact", "lut"),
            seeds=3,
            order="highest",
            episodes=100,
            reward_images=48,
            images_per_pass=16,
            norm_images=16,
            final_steps=50,
            final_lr=2e-3,
        ),
        run=config.Run(save_every=25, log_every=10, eval_batch=4),
    )

"""HAQ on three accelerators at three latencies, three seeds: the figures of docs/haq.md.

    python launch/main.py --config configs/haq_objects_full.py

27 agents learn side by side.
"""

from qnas_jax.haq import config


def get_config() -> config.Config:
    """The network of `configs/haq_objects.py`."""
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
        train=config.Train(steps=4000, batch=32, crop=(48, 48), scale=(0.9, 1.2)),
        quantize=config.Quantize(images=128, images_per_pass=64),
        haq=config.Haq(
            targets=("bismo_edge:latency_ms", "bismo_cloud:latency_ms", "bitfusion:latency_ms"),
            budgets=(4.0, 5.0, 6.0),
            methods=("haq", "uniform", "exact", "greedy", "lut"),
            ranges="mse",
            order="highest",
            seeds=3,
            episodes=600,
            per_round=48,
            reward_images=250,
            images_per_pass=250,
            norm_images=64,
            final_steps=100,
            final_lr=2e-3,
            exports=False,
        ),
        run=config.Run(save_every=50, log_every=10, eval_batch=50),
    )

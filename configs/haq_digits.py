"""HAQ on real, small images: MobileNetV1 for scikit-learn's handwritten digits, on a laptop.

    pip install -e '.[digits]' && python launch/main.py --config configs/haq_digits.py

Trains a MobileNetV1 of half the width first. Digits are easy: they check the path from real
data to a file, and say little about bits.
"""

from qnas_jax.haq import config


def get_config() -> config.Config:
    """MobileNetV1 at 32 x 32 pixels, 10 classes."""
    return config.Config(
        data=config.Data(source="digits", height=32, width=32),
        network=config.Network(stem_stride=1, width=0.5, dropout=0.0),
        train=config.Train(
            steps=1200,
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
        quantize=config.Quantize(images=128, images_per_pass=64),
        haq=config.Haq(
            network="mobilenet_v1",
            ranges="mse",
            targets=("bitfusion:latency_ms", "bitfusion:energy_mj"),
            budgets=(4.0,),
            seeds=2,
            order="highest",
            episodes=100,
            per_round=24,
            reward_images=200,
            images_per_pass=200,
            norm_images=64,
            final_steps=60,
            final_lr=2e-3,
        ),
        run=config.Run(save_every=50, log_every=10, eval_batch=40),
    )

"""The teacher that `configs/streets.py` starts from, trained on rendered street scenes.

    python launch/main.py --config configs/streets_teacher.py --until=teacher
    python launch/main.py --config configs/streets_teacher.py --until=teacher \
        --workdir runs/streets_teacher2 --config.seed=1 \
        --config.teacher.checkpoint=runs/streets_teacher/teacher/checkpoint \
        --config.teacher.finetune --config.train.steps=4000 --config.train.lr=1e-3 \
        --config.train.warmup=100 --config.train.scale="(0.85, 1.2)"

The first command gives 48.4 % mIoU (5,067 of its steps took 16 minutes on two cores), the second
51.7 % (20 minutes on busy cores).
With the arguments of the second but `--until`, `qnas save_weights --file teacher.safetensors`
writes the file.

Features have 1/8 of the image's side. At 1/16 thin things vanish: the labels themselves, reduced to
that size and enlarged again, score 48 % mIoU (at 1/8: 64 %).
"""

from qnas_jax.bwnas import config


def get_config() -> config.Config:
    """6,000 steps of AdamW on 4,000 scenes of 96 x 192 pixels."""
    return config.Config(
        data=config.Data(height=96, width=192, train_images=4000, val_images=200),
        network=config.Network(
            width=0.5,
            strides=(1, 2, 2, 1, 1, 1, 1),
            dilations=(1,) * 7,
            head_channels=64,
            rates=(2, 4, 6),
            dropout=0.0,
        ),
        train=config.Train(
            steps=6_000,
            batch=8,
            optimizer="adamw",
            lr=2e-3,
            warmup=200,
            weight_decay=1e-2,
            clip=1.0,
            crop=(96, 192),
            scale=(0.7, 1.4),
        ),
        quantize=config.Quantize(images=32),
        run=config.Run(save_every=250, log_every=100, eval_batch=10),
    )

"""HAQ on ImageNet as published: MobileNetV2 at the latency of 4, 5 and 6 bits.

Paper: Wang et al., 2019, https://arxiv.org/abs/1811.08886, table 3, and its code.

    qnas prepare --name imagenet2012 --root /data/tfds
    python launch/main.py --config configs/haq_imagenet.py --config.data.root=/data/tfds \
        --config.teacher.checkpoint=mobilenet_v2.pth

As published: the agent (actor and critic of 300 and 300 units, Adam 1e-4 and 1e-3, gamma 1, tau
0.01, noise 0.5 x 0.99^episode, 20 warm-up episodes, 64 episodes of memory, batches of 64, 600
episodes); bits from 2 to 8, the first and the last layer at 8; clipping ranges by KL divergence; a
reward after an epoch of SGD (momentum 0.9, weight decay 4e-5, learning rate 1e-3) on 20,000 images,
scored on 10,000 images of the training split; 30 epochs at 1e-2 with batches of 256 at the end.
Otherwise than published: the reward's images are of all 1000 classes and are not trained on;
weights have a scale for each output channel; SGD's rate falls linearly; uniform bits (published:
PACT's figures) are run here with the same quantizer. This config has not run yet.
"""

from qnas_jax.haq import config

IMAGES, REWARD_IMAGES, BATCH = 1_281_167, 10_000, 256


def get_config() -> config.Config:
    """MobileNetV2 at 224 x 224 pixels, 1000 classes."""
    return config.Config(
        data=config.Data(
            source="tfds",
            name="imagenet2012",
            root="data/tfds",
            height=224,
            width=224,
            threads=16,
        ),
        network=config.Network(
            width=1.0,
            strides=(1, 2, 2, 2, 1, 2, 1),
            dilations=(1,) * 7,
            head_channels=1280,
            dropout=0.2,
        ),
        train=config.Train(
            steps=150 * IMAGES // BATCH,
            batch=BATCH,
            lr=0.2,
            weight_decay=4e-5,
            crop=(224, 224),
            scale=(1.0, 3.0),
        ),
        quantize=config.Quantize(images=512, images_per_pass=64),
        haq=config.Haq(
            ranges="kl",
            targets=("bismo_edge:latency_ms", "bismo_cloud:latency_ms", "bitfusion:latency_ms"),
            budgets=(4.0, 5.0, 6.0),
            episodes=600,
            reward_images=REWARD_IMAGES,
            images_per_pass=250,
            policies_per_pass=1,
            norm_images=0,
            steps=20_000 // BATCH,
            lr=1e-3,
            final_steps=30 * (IMAGES - REWARD_IMAGES) // BATCH,
            final_lr=1e-2,
        ),
        agent=config.Agent(),
        run=config.Run(save_every=10, log_every=1, eval_batch=100),
    )

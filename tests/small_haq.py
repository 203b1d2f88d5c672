"""A network of five convolutions for tests of HAQ, and the config of a run of seconds."""

import flax.linen as nn

from qnas_jax.haq import config
from qnas_jax.nn.classifier import Classifier
from qnas_jax.nn.conv import LINEAR, ConvBnAct
from qnas_jax.nn.mobilenet import MobileNetV2, teacher_paths
from qnas_jax.nn.units import Add, Input, Mean
from qnas_jax.space import Block


class Small(nn.Module):
    """A stem, a separable layer with a shortcut, a classifier."""

    classes: int

    @nn.compact
    def __call__(self, images, train=False):
        x = Input(name="input")(images)
        x = ConvBnAct(8, kernel=3, stride=4, name="stem")(x, train)
        y = ConvBnAct(8, kernel=3, depthwise=True, name="depthwise")(x, train)
        y = ConvBnAct(8, bounds=LINEAR, name="project")(y, train)
        x = Add(name="add")(x, y)
        x = ConvBnAct(12, name="point")(x, train)
        x = Mean(name="mean")(x)
        return ConvBnAct(self.classes, bounds=LINEAR, norm=False, name="classifier")(x, train)


def build(classes):
    return Small(classes)


def two_blocks():
    """MobileNetV2 with a block of two layers and one of one layer."""
    first = Block(8, 8, stride=1, dilation=1, depth=1)
    blocks = (Block(8, 8, 2, 1, depth=2), Block(8, 12, 1, 1, depth=1))
    encoder = MobileNetV2(8, first, blocks, teacher_paths(blocks))
    return Classifier(encoder, head_channels=16, classes=12)


class Tiny(nn.Module):
    """Nothing but a classifier."""

    @nn.compact
    def __call__(self, images, train=False):
        x = Mean(name="mean")(Input(name="input")(images))
        return ConvBnAct(12, bounds=LINEAR, norm=False, name="classifier")(x, train)


def tiny(classes):
    return Tiny()


def small(**haq):
    """A config whose stages take seconds."""
    defaults = {
        "network": f"{__file__}:build",
        "ranges": "mse",
        "targets": ("bismo_edge:latency_ms",),
        "budgets": (4.0,),
        "seeds": 2,
        "episodes": 12,
        "per_round": 4,
        "reward_images": 24,
        "images_per_pass": 24,
        "norm_images": 8,
        "final_steps": 3,
    }
    return config.Config(
        data=config.Data(source="objects", height=32, width=32, train_images=72, val_images=20),
        train=config.Train(steps=10, batch=8, lr=0.05, crop=(32, 32), scale=(1.0, 1.0)),
        quantize=config.Quantize(images=8, images_per_pass=8),
        haq=config.Haq(**{**defaults, **haq}),
        agent=config.Agent(hidden=(16, 12), warmup=4, batch=8, memory=5),
        export=config.Export(max_drop=100.0),
        run=config.Run(save_every=4, log_every=1, eval_batch=10),
    )

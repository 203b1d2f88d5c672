"""Weights of PyTorch's networks here: names, normalization, refusals. Without torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from in_files import refusal
from qnas_jax import space
from qnas_jax.nn import mobilenet, torch_weights, weights
from qnas_jax.nn.classifier import Classifier
from qnas_jax.nn.deeplab import DeepLabV3

PADDING = tuple(value / 128 - 1 for value in torch_weights.MEAN)
CLASSES = 19
STRIDES, DILATIONS = (1, 2, 2, 1, 1, 1, 1), (1, 1, 1, 2, 2, 4, 4)


def network(kind, width=0.25, classes=CLASSES, padding=PADDING, dilate="first"):
    first, *blocks = space.mobilenet_v2_blocks(width, STRIDES, DILATIONS, dilate)
    paths = mobilenet.teacher_paths(tuple(blocks))
    encoder = mobilenet.MobileNetV2(first.in_channels, first, tuple(blocks), paths, padding)
    if kind is Classifier:
        return Classifier(encoder, 1280, classes)
    return DeepLabV3(encoder, 16 if width < 1 else 512, (12, 24, 36), classes)


def shapes(model):
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


def at(tree, name):
    for part in name.split("/"):
        tree = tree[part]
    return tree


def state(layout, model, linear=True):
    """Random tensors with the layout's names and the shapes of torch."""
    rng, like, found = np.random.default_rng(0), shapes(model), {}
    for unit in layout.units(model):
        for (collection, name), key in torch_weights._sources(unit).items():
            shape = at(like[collection], name).shape
            if len(shape) == 4:
                height, width, inputs, outputs = shape
                shape = (outputs, inputs, height, width)
                if key == "classifier.1.weight" or key == "classifier.weight":
                    shape = shape[:2]
            found[key] = rng.uniform(0.1, 1, shape).astype(np.float32)
    return found


LAYOUTS = {layout.title.split("'")[0]: layout for layout in torch_weights.LAYOUTS}
# As the libraries have them at full width, with 19 classes (torchvision 0.29.1, timm 1.0.31,
# MMSegmentation 1.2.2).
GOLDEN = {
    "torchvision": (
        262,
        {
            "features.0.0.weight": (32, 3, 3, 3),
            "features.0.1.running_mean": (32,),
            "features.1.conv.0.0.weight": (32, 1, 3, 3),
            "features.1.conv.1.weight": (16, 32, 1, 1),
            "features.1.conv.2.bias": (16,),
            "features.2.conv.0.0.weight": (96, 16, 1, 1),
            "features.2.conv.1.0.weight": (96, 1, 3, 3),
            "features.2.conv.2.weight": (24, 96, 1, 1),
            "features.17.conv.3.running_var": (320,),
            "features.18.0.weight": (1280, 320, 1, 1),
            "classifier.1.weight": (19, 1280),
        },
    ),
    "timm": (
        262,
        {
            "conv_stem.weight": (32, 3, 3, 3),
            "blocks.0.0.conv_dw.weight": (32, 1, 3, 3),
            "blocks.0.0.conv_pw.weight": (16, 32, 1, 1),
            "blocks.1.1.conv_pw.weight": (144, 24, 1, 1),
            "blocks.6.0.conv_dw.weight": (960, 1, 3, 3),
            "blocks.6.0.conv_pwl.weight": (320, 960, 1, 1),
            "blocks.6.0.bn3.bias": (320,),
            "conv_head.weight": (1280, 320, 1, 1),
            "bn2.running_mean": (1280,),
            "classifier.bias": (19,),
        },
    ),
    "MMSegmentation": (
        287,
        {
            "backbone.conv1.conv.weight": (32, 3, 3, 3),
            "backbone.layer1.0.conv.0.conv.weight": (32, 1, 3, 3),
            "backbone.layer1.0.conv.1.bn.bias": (16,),
            "backbone.layer4.3.conv.1.conv.weight": (384, 1, 3, 3),
            "backbone.layer7.0.conv.2.conv.weight": (320, 960, 1, 1),
            "decode_head.image_pool.1.conv.weight": (512, 320, 1, 1),
            "decode_head.aspp_modules.3.conv.weight": (512, 320, 3, 3),
            "decode_head.bottleneck.conv.weight": (512, 2560, 3, 3),
            "decode_head.conv_seg.weight": (19, 512, 1, 1),
        },
    ),
}
every_layout = pytest.mark.parametrize("name", LAYOUTS)


def saved(tensors, tmp_path, name="x.safetensors"):
    (tmp_path / name).write_bytes(safetensors.numpy.save(tensors))
    return tmp_path / name


def refused(tensors, model, tmp_path):
    file = saved(tensors, tmp_path)
    message = refusal(lambda: weights.load(file, model, shapes(model)))
    assert message.startswith(f"{file}: ")
    return message.removeprefix(f"{file}: ")


@every_layout
def test_the_names_and_shapes_are_those_of_the_library(name):
    layout, (count, known) = LAYOUTS[name], GOLDEN[name]
    found = {key: value.shape for key, value in state(layout, network(layout.kind, 1.0)).items()}
    assert len(found) == count
    assert {key: found[key] for key in known} == known


@every_layout
def test_every_tensor_has_its_place(name, tmp_path):
    layout = LAYOUTS[name]
    model = network(layout.kind)
    tensors = state(layout, model)
    extra = {"module.auxiliary_head.conv_seg.bias": np.zeros(3, np.float32)}
    extra = extra if name == "MMSegmentation" else {}
    extra["module.any.num_batches_tracked"] = np.array(3)
    wrapped = {f"module.{key}": value for key, value in tensors.items()} | extra
    like = shapes(model)
    found = weights.load(saved(wrapped, tmp_path), model, like)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(
        lambda leaf: leaf.shape, {k: like[k] for k in ("params", "batch_stats")}
    )
    places = [p for unit in layout.units(model) for p in torch_weights._sources(unit).items()]
    assert len(places) == len(jax.tree.leaves(found))
    for (collection, place), key in places:
        value, given = at(found[collection], place), tensors[key]
        if place.endswith("kernel") and not place.startswith("encoder/stem"):
            given = given.reshape(*given.shape[:2], *(given.shape[2:] or (1, 1)))
            o, i, y, x = (n // 2 for n in given.shape)
            assert value[y, x, i, o] == given[o, i, y, x]
        elif place != "encoder/stem/norm/mean" and not place.endswith("kernel"):
            np.testing.assert_array_equal(value, given)


@pytest.mark.parametrize("size", [(8, 10), (7, 9)], ids=["even", "odd"])
def test_the_stem_reads_bytes_as_torch_reads_normalized_images(size, tmp_path):
    """Normalized, padded with zero, convolved and normed by hand in float64."""
    layout, model = LAYOUTS["MMSegmentation"], network(DeepLabV3)
    tensors = state(layout, model)
    found = weights.load(saved(tensors, tmp_path), model, shapes(model))
    images = np.random.default_rng(1).integers(0, 256, (2, *size, 3))
    x = (images - np.array(torch_weights.MEAN)) / np.array(torch_weights.STD)
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = (-(-side // 2) for side in size)
    w, total = np.float64(tensors["backbone.conv1.conv.weight"]), 0
    for i, j in np.ndindex(3, 3):
        seen = x[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2]
        total = total + seen @ w[:, :, i, j].T
    norm = {k: np.float64(tensors[f"backbone.conv1.bn.{k}"]) for k in
            ("weight", "bias", "running_mean", "running_var")}  # fmt: skip
    factor = norm["weight"] / np.sqrt(norm["running_var"] + 1e-5)
    expected = np.clip((total - norm["running_mean"]) * factor + norm["bias"], 0, 6)
    pixels = jnp.asarray(images / 128 - 1, jnp.float32)
    _, seen = jax.jit(
        lambda v, x: model.apply(v, x, capture_intermediates=True, mutable=["intermediates"])
    )(found, pixels)
    stem = seen["intermediates"]["encoder"]["stem"]["__call__"][0]
    assert 0.2 < (expected > 0).mean() and (expected < 6).mean() > 0.2
    np.testing.assert_allclose(stem, expected, atol=1e-5)


def test_missing_and_unknown_tensors_are_listed_together(tmp_path):
    layout, model = LAYOUTS["torchvision"], network(Classifier)
    tensors = state(layout, model)
    del tensors["features.3.conv.2.weight"], tensors["classifier.1.bias"]
    tensors["features.3.conv.5.weight"] = tensors["new"] = np.zeros(1, np.float32)
    assert refused(tensors, model, tmp_path) == (
        "is not torchvision's MobileNetV2 as configured: 2 tensors are missing "
        "(classifier.1.bias, features.3.conv.2.weight); 2 tensors are unknown "
        "(features.3.conv.5.weight, new)"
    )
    many = {name: value for name, value in tensors.items() if ".0.0." in name}
    assert "and 23" in refused(many, model, tmp_path) and len(refused(many, model, tmp_path)) < 700


def test_another_network_is_refused_in_a_line(tmp_path):
    resnet = {"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}
    message = refused(resnet, network(DeepLabV3), tmp_path)
    assert message.startswith("holds another network (it begins with conv1.weight), not ")
    assert message.count("MobileNetV2") == 3
    tensors = state(LAYOUTS["timm"], network(Classifier))
    assert refused(tensors, network(DeepLabV3), tmp_path) == (
        "holds timm's MobileNetV2, must hold MMSegmentation's DeepLabV3 on MobileNetV2"
    )


@every_layout
def test_other_classes_and_widths_are_refused(name, tmp_path):
    layout = LAYOUTS[name]
    tensors = state(layout, network(layout.kind))
    other = network(layout.kind, classes=21)
    assert refused(tensors, other, tmp_path) == "has 19 classes, the task has 21"
    assert "; network.width and " in refused(tensors, network(layout.kind, 0.5), tmp_path)


def test_a_network_that_computes_something_else_is_refused(tmp_path):
    tensors = state(LAYOUTS["MMSegmentation"], network(DeepLabV3))
    message = refused(tensors, network(DeepLabV3, padding=()), tmp_path)
    assert message.endswith("set --config.network.padding='(123.675, 116.28, 103.53)'")
    message = refused(tensors, network(DeepLabV3, dilate="all"), tmp_path)
    assert message.endswith("set --config.network.dilate=first")


@pytest.mark.parametrize("name", ["x.pth", "x.PT", "x.safetensors", "x.SafeTensors", "x", "x.bin"])
def test_files_are_known_by_their_suffix(name, tmp_path):
    assert weights.is_file(tmp_path / name) == (name not in ("x", "x.bin"))

"""Imported weights: the same logits as torch, at even and odd sizes, and in exported files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.export import fold, interpret, runtimes, simulate, tie_free
from qnas_jax.nn import init, mobilenet, torch_files, torch_weights, weights
from qnas_jax.nn.classifier import Classifier
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.train import supervised

pytestmark = pytest.mark.bench

PADDING = tuple(value / 128 - 1 for value in torch_weights.MEAN)
CLASSIFIER = (1, 2, 2, 2, 1, 2, 1), (1,) * 7
OUTPUT_STRIDE_8 = (1, 2, 2, 1, 1, 1, 1), (1, 1, 1, 2, 2, 4, 4), "first"
CLASSES = 19


@pytest.fixture(scope="module")
def networks():
    pytest.importorskip("torch")
    import torch_networks

    return torch_networks


def encoder(width, *shape):
    first, *blocks = space.mobilenet_v2_blocks(width, *shape)
    stem, blocks = first.in_channels, tuple(blocks)
    paths = mobilenet.teacher_paths(blocks)
    return mobilenet.MobileNetV2(stem, first, blocks, paths, PADDING)


def pair(networks, name, width, channels=64, size=(64, 96)):
    """A network in torch and here."""
    if name == "mmseg":
        theirs = networks.Mmseg(CLASSES, width, channels, (12, 24, 36))
        ours = DeepLabV3(encoder(width, *OUTPUT_STRIDE_8), channels, (12, 24, 36), CLASSES)
    else:
        theirs = {"torchvision": networks.Torchvision, "timm": networks.Timm}[name](CLASSES, width)
        ours = Classifier(encoder(width, *CLASSIFIER), 1280, CLASSES)
    return networks.calibrated(theirs, size), ours


def imported(ours, file):
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    like = jax.eval_shape(ours.init, jax.random.key(0), image)
    return weights.load(file, ours, like)


def saved(networks, model, file, **how):
    networks.torch.save(networks.state(model), file, **how)
    return file


def images(shape, seed=0):
    """Smooth, with noise: no plain noise, whose mean over many pixels says nothing."""
    rng = np.random.default_rng(seed)
    height, width = shape
    coarse = rng.integers(0, 256, (2, height // 16 + 1, width // 16 + 1, 3))
    whole = coarse.repeat(16, 1).repeat(16, 2)[:, :height, :width]
    return np.clip(whole + rng.integers(-30, 31, whole.shape), 0, 255).astype(np.uint8)


def compared(networks, theirs, ours, variables, shape):
    given = images(shape)
    run = jax.jit(lambda variables, x: ours.apply(variables, supervised.pixels(x)))
    found, expected = run(variables, jnp.asarray(given)), networks.logits(theirs, given)
    difference = np.abs(np.asarray(found) - expected).max()
    print(f"{shape}: largest difference {difference:.2g} of {np.abs(expected).max():.3g}")
    assert found.shape == expected.shape
    assert np.abs(expected[0] - expected[1]).max() > 0.1, "logits depend on the image"
    return difference


@pytest.mark.parametrize("name", ["torchvision", "timm", "mmseg"])
def test_logits_are_those_of_torch(networks, name, tmp_path):
    theirs, ours = pair(networks, name, 1.0)
    variables = imported(ours, saved(networks, theirs, tmp_path / "x.pth"))
    for shape in ((64, 96), (97, 131), (33, 65)):
        assert compared(networks, theirs, ours, variables, shape) < 1e-4


@pytest.mark.slow
def test_logits_of_the_published_network_at_512_x_1024(networks, tmp_path):
    theirs, ours = pair(networks, "mmseg", 1.0, channels=512, size=(512, 1024))
    with networks.torch.no_grad():  # logits of the size of trained networks', about 10
        theirs.decode_head.conv_seg.weight.mul_(0.2)
    variables = imported(ours, saved(networks, theirs, tmp_path / "x.pth"))
    assert compared(networks, theirs, ours, variables, (512, 1024)) < 1e-4


def test_without_the_padding_or_the_dilation_they_are_not(networks, tmp_path):
    """What the checks of `load` are for."""
    theirs, ours = pair(networks, "mmseg", 0.25, channels=16)
    variables = imported(ours, saved(networks, theirs, tmp_path / "x.pth"))
    assert compared(networks, theirs, ours, variables, (64, 96)) < 1e-4
    grey = ours.clone(encoder=ours.encoder.clone(padding=()))
    assert compared(networks, theirs, grey, variables, (64, 96)) > 1e-3
    first, *blocks = space.mobilenet_v2_blocks(0.25, *OUTPUT_STRIDE_8[:2])
    every = ours.clone(encoder=ours.encoder.clone(first=first, blocks=tuple(blocks)))
    assert compared(networks, theirs, every, variables, (64, 96)) > 1e-1


def test_every_kind_of_file_holds_the_same(networks, tmp_path):
    import safetensors.torch

    torch, model = networks.torch, networks.calibrated(networks.Torchvision(CLASSES, 0.25))
    held = networks.state(model)
    wrapped = {
        "meta": {"epoch": 3, "CLASSES": ("road",), "when": np.float64(2.5), "set": {1, 2}},
        "state_dict": {f"module.{name}": value for name, value in held.items()},
        "optimizer": torch.optim.SGD(model.parameters(), 0.1, 0.9).state_dict(),
    }
    for name, content in (("plain", held), ("wrapped", wrapped)):
        torch.save(content, tmp_path / f"{name}_zip.pth")
        old = tmp_path / f"{name}_legacy.pth"
        torch.save(content, old, _use_new_zipfile_serialization=False)
        assert old.read_bytes()[:2] != b"PK"
    contiguous = {name: value.contiguous().clone() for name, value in held.items()}
    safetensors.torch.save_file(contiguous, tmp_path / "plain.safetensors")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 5
    for file in files:
        found = torch_files.read(file)
        for name, value in held.items():
            stored = f"module.{name}" if "wrapped" in file.name else name
            np.testing.assert_array_equal(found[stored], value.numpy(), err_msg=f"{file} {name}")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_type_and_layout_of_tensors(networks, zipped, tmp_path):
    torch = networks.torch
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    held = {
        "f16": base.half(),
        "f64": base.double(),
        "bf16": base.bfloat16(),
        "i64": torch.tensor(7),
        "u8": torch.arange(5, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "transposed": base.t(),
        "part": base[2:5, 1::3],
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base + 1),
    }
    torch.save(held, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    found = torch_files.read(tmp_path / "x.pth")
    assert set(found) == set(held)
    for name, value in held.items():
        expected = value.detach().float().numpy()
        np.testing.assert_array_equal(found[name].astype(np.float32), expected, err_msg=name)


def test_an_imported_teacher_exports_with_exact_codes(networks, tmp_path):
    """Small, at an odd size: integers, simulation and files agree, and in float with torch."""
    theirs, ours = pair(networks, "mmseg", 0.25, channels=16)
    variables = imported(ours, saved(networks, theirs, tmp_path / "x.pth"))
    given = images((65, 97))
    fresh = init.initialize(ours, jax.random.key(0), (1, *given.shape[1:]))
    pixels = supervised.pixels(jnp.asarray(given))
    run = jax.jit(lambda quant: ours.apply({**variables, "quant": quant}, pixels, mutable="quant"))
    quant, shape = run(fresh["quant"])[1]["quant"], given.shape[1:]
    quant = tie_free.with_agreed_sums(fold.fold(ours, variables, quant, shape, resize=True), quant)
    network, floats = (fold.fold(ours, variables, q, shape, resize=True) for q in (quant, None))
    expected = interpret.run(network, given)
    np.testing.assert_array_equal(simulate.simulator(network)(given), expected["classes"][..., 0])
    for runtime in runtimes.installed():
        codes = runtime.tensors(network, given)
        for conv in network.convs:
            np.testing.assert_array_equal(codes[conv.out.name], expected[conv.out.name])
        runtime.write(floats, tmp_path / "model")
        theirs_at_once = networks.torch.from_numpy(networks.logits(theirs, given))
        resized = networks.functional.interpolate(
            theirs_at_once.permute(0, 3, 1, 2), given.shape[1:3], mode="bilinear"
        )
        classes = runtime.class_maps(tmp_path / "model")(given)
        agree = (classes == resized.argmax(1).numpy()).mean()
        quantized = (expected["classes"][..., 0] == resized.argmax(1).numpy()).mean()
        print(f"{runtime.name}: float {agree:.2%}, INT8 {quantized:.2%} of torch's classes")
        assert agree > 0.9999 and quantized > 0.6

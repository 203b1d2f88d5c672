import math
import re

import numpy as np
import pytest

from qnas_jax import space

OPS = tuple(space.Op(k, e) for k in (3, 5, 7) for e in (3, 6))
OUTPUT_STRIDE_8 = ((1, 2, 2, 1, 1, 1, 1), (1, 1, 1, 2, 2, 4, 4))


def random_subnet(rng):
    def choice():
        return space.Choice(OPS[rng.integers(6)], int(rng.integers(2, 9)), int(rng.integers(2, 9)))

    def block():
        choices = tuple(choice() for _ in range(rng.integers(1, 5)))
        if rng.random() < 0.5:  # else a bitwidth per layer
            choices = tuple(choices[0]._replace(op=c.op) for c in choices)
        return choices

    return tuple(block() for _ in range(rng.integers(1, 7)))


def test_parse_is_the_inverse_of_format():
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(300):
        subnet = random_subnet(rng)
        texts.append(space.format_subnet(subnet))
        assert space.parse_subnet(texts[-1]) == subnet
        assert re.fullmatch(r"[\w.-]+", texts[-1]), "it has to do as a file name"
    assert any("." in text for text in texts)
    assert any(re.search(r"k\de\dw\da\d", text) for text in texts)


def test_shared_bitwidths_stand_once_and_others_behind_each_op():
    k3e6, k5e3 = space.Op(3, 6), space.Op(5, 3)
    shared = (space.Choice(k3e6, 8, 6), space.Choice(k5e3, 8, 6))
    single = (space.Choice(k5e3, 2, 3),)
    mixed = (space.Choice(k3e6, 4, 8), space.Choice(k5e3, 8, 8))
    text = "k3e6-k5e3.w8a6_k5e3.w2a3_k3e6w4a8-k5e3w8a8"
    assert space.format_subnet((shared, single, mixed)) == text
    assert space.parse_subnet(text) == (shared, single, mixed)
    assert space.parse_subnet(" k3e6w8a6-k5e3w8a6\n") == (shared,), "the long form of a short one"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' in '': write k3e6-k5e3.w8a8, or k3e6w4a8-k5e3w8a8"),
        ("k3e6", "'k3e6' in 'k3e6': write "),
        ("k3.w8a8", "'k3' in 'k3.w8a8': write "),
        ("k3e6.w8a8_", "'' in '': write "),
        ("k3e6w8a8-k5e3", "'k5e3' in 'k3e6w8a8-k5e3': write "),
        ("k3e6w8a8.w8a8", "'k3e6w8a8' in 'k3e6w8a8.w8a8': write "),
        ("k3e6.w8a8_k5e3.8", "'8' in 'k5e3.8': bitwidths are written like w8a8"),
        ("k3e6.", "'' in 'k3e6.': bitwidths are written like w8a8"),
    ],
)
def test_text_that_is_no_subnet_is_refused_by_the_part_that_is_wrong(text, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)) as error:
        space.parse_subnet(text)
    assert "\n" not in str(error.value)


def test_table_1_of_the_paper_has_3246_rows_for_each_bitwidth():
    blocks = tuple(space.Block(8, 8, 1, 1, depth) for depth in (3, 3, 4, 4, 3, 1))
    searched = space.Space(blocks, OPS)
    rows = [searched.rows(b) for b in range(6)]
    assert rows == [216, 216, 1296, 1296, 216, 6]
    assert sum(rows) == 3246
    assert math.prod(rows) == 6**18


@pytest.mark.parametrize(
    ("width", "channels"),
    [  # the stem, then the seven groups, as the authors' networks have them
        (0.35, (16, 8, 8, 16, 24, 32, 56, 112)),
        (0.5, (16, 8, 16, 16, 32, 48, 80, 160)),
        (0.75, (24, 16, 24, 24, 48, 72, 120, 240)),
        (1.0, (32, 16, 24, 32, 64, 96, 160, 320)),
        (1.4, (48, 24, 32, 48, 88, 136, 224, 448)),
    ],
)
def test_mobilenet_v2_has_the_published_channels_at_every_width(width, channels):
    blocks = space.mobilenet_v2_blocks(width, *OUTPUT_STRIDE_8)
    assert (blocks[0].in_channels, *(block.channels for block in blocks)) == channels
    assert [block.in_channels for block in blocks[1:]] == [b.channels for b in blocks[:-1]]
    assert [block.depth for block in blocks] == [1, 2, 3, 4, 3, 3, 1]
    assert tuple(block.stride for block in blocks) == OUTPUT_STRIDE_8[0]
    assert tuple(block.dilation for block in blocks) == OUTPUT_STRIDE_8[1]


def test_only_the_first_layer_of_a_block_has_the_stride_and_changes_the_channels():
    block = space.Block(in_channels=16, channels=24, stride=2, dilation=1, depth=3)
    assert [block.layer_shape(i) for i in range(3)] == [(16, 2), (24, 1), (24, 1)]


def test_either_all_layers_of_a_block_are_dilated_or_only_the_first():
    for dilate, expected in (("all", [4, 4, 4]), ("first", [4, 1, 1])):
        block = space.Block(16, 24, 1, 4, 3, dilate)
        assert [block.layer_dilation(i) for i in range(3)] == expected
        layers = space.block_convs(block, (space.Op(3, 2), space.Op(5, 1)), (8, 8))
        for layer, dilation in zip(layers, expected, strict=True):
            assert {conv.dilation for conv in layer if conv.groups > 1} == {dilation}
    # MMSegmentation 1.2.2, `MobileNetV2.make_layer`: dilation=dilation if i == 0 else 1
    groups = space.mobilenet_v2_blocks(1.0, *OUTPUT_STRIDE_8, "first")
    found = [[group.layer_dilation(i) for i in range(group.depth)] for group in groups]
    assert found == [[1], [1, 1], [1, 1, 1], [2, 1, 1, 1], [2, 1, 1], [4, 1, 1], [4]]


def convs_of(block, paths, height, width):
    """The convolutions of a block whose layers take the given ops."""
    convs = []
    for layer, op in enumerate(paths):
        channels, stride = block.layer_shape(layer)
        shape = (height, width, channels)
        how = (block.channels, stride, block.layer_dilation(layer))
        convs += space.mbconv_convs(op, "", shape, *how)
        height, width = -(-height // stride), -(-width // stride)
    return convs


def test_mobilenet_v2_has_the_published_weights_and_macs():
    blocks = space.mobilenet_v2_blocks(1.0, (1, 2, 2, 2, 1, 2, 1), (1,) * 7)
    side, convs = 112, [space.Conv("stem", 3, 2, 1, 1, 3, 32, 224, 224)]
    weights = []
    for number, block in enumerate(blocks):
        expansion = 6 if number else 1
        added = convs_of(block, [space.Op(3, expansion)] * block.depth, side, side)
        weights.append(sum(conv.weights for conv in added))
        convs += added
        side = -(-side // block.stride)
    convs.append(space.Conv("last", 1, 1, 1, 1, 320, 1280, side, side))
    assert weights[1:] == [12_912, 37_392, 177_984, 296_448, 784_320, 469_440]
    # torchvision counts 3,504,872 parameters: 34,112 of them are those of the norms, and
    # 1,281,000 those of the classifier; and 0.301 G MACs.
    assert sum(conv.weights for conv in convs) == 3_504_872 - 34_112 - 1_281_000
    assert sum(conv.macs for conv in convs) + 1280 * 1000 == pytest.approx(0.301e9, rel=0.002)


def test_the_smallest_and_the_largest_encoder_of_table_1():
    blocks = space.mobilenet_v2_blocks(1.0, *OUTPUT_STRIDE_8)[1:]
    depths = (3, 3, 4, 4, 3, 1)

    def weights(op):
        convs = [
            conv
            for block, depth in zip(blocks, depths, strict=True)
            for conv in convs_of(block, [op] * depth, 64, 64)
        ]
        stem = 27 * 32 + 9 * 32 + 32 * 16  # and the first group, which is not searched
        return stem + sum(conv.weights for conv in convs)

    assert weights(space.Op(3, 3)) == pytest.approx(0.953e6, abs=500)
    assert weights(space.Op(7, 6)) == pytest.approx(2.217e6, abs=500)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("expansion", [1, 6])
def test_each_convolution_reads_what_the_one_before_it_writes(stride, expansion):
    convs = space.mbconv_convs(space.Op(5, expansion), "block1/layer0", (33, 71, 8), 16, stride, 2)
    names = ["expand", "depthwise", "project"] if expansion > 1 else ["depthwise", "project"]
    assert [conv.name for conv in convs] == [f"block1/layer0/{name}" for name in names]
    shape = (33, 71, 8)
    for conv in convs:
        assert (conv.in_height, conv.in_width, conv.in_channels) == shape
        rows, columns = range(0, shape[0], conv.stride), range(0, shape[1], conv.stride)
        shape = (len(rows), len(columns), conv.out_channels)
        kernel = (conv.kernel, conv.kernel, conv.in_channels // conv.groups, conv.out_channels)
        assert conv.weights == np.zeros(kernel).size
        assert conv.macs == conv.weights * len(rows) * len(columns)
    assert shape[2] == 16
    depthwise = convs[-2]
    assert depthwise.groups == depthwise.out_channels == 8 * expansion
    assert (depthwise.kernel, depthwise.stride, depthwise.dilation) == (5, stride, 2)
    assert {(c.kernel, c.stride, c.groups) for c in convs if c != depthwise} == {(1, 1, 1)}

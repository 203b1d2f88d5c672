import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.nn import mobilenet, units
from qnas_jax.nn.conv import ConvBnAct
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.nn.mbconv import BlockPath, MBConv
from qnas_jax.nn.trace import trace

FIRST = space.Block(8, 8, 1, 1, 1)
BLOCKS = (space.Block(8, 16, 2, 1, 2), space.Block(16, 16, 1, 2, 1))
PATHS = ((space.Op(3, 6), space.Op(7, 3)), (space.Op(5, 3),))
IMAGE = (33, 47, 3)


@pytest.fixture(scope="module")
def network():
    """A small network, its records and the shapes of its variables."""
    model = DeepLabV3(mobilenet.MobileNetV2(8, FIRST, BLOCKS, PATHS), 4, (2,), 19)
    image = jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32)
    return model, trace(model, IMAGE).convs, jax.eval_shape(model.init, jax.random.key(0), image)


def _kernels(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {"/".join(key.key for key in path): leaf for path, leaf in leaves}
    return {k.removesuffix("/kernel"): v for k, v in named.items() if k.endswith("/kernel")}


def test_there_is_a_record_for_each_kernel_and_it_counts_its_weights(network):
    _, records, variables = network
    kernels = _kernels(variables["params"])
    assert {r.name: r.weights for r in records} == {n: k.size for n, k in kernels.items()}
    assert len(records) == len(kernels)
    for record in records:
        side, _, inputs, features = kernels[record.name].shape
        assert (side, features) == (record.kernel, record.out_channels)
        assert inputs * record.groups == record.in_channels


def test_records_stand_in_the_order_in_which_they_run(network):
    _, records, _ = network
    bottleneck = ["expand", "depthwise", "project"]
    assert [r.name for r in records] == [
        "encoder/stem",
        *(f"encoder/block0/layer0/{part}" for part in bottleneck[1:]),
        *(f"encoder/block1/layer{i}/{part}" for i in (0, 1) for part in bottleneck),
        *(f"encoder/block2/layer0/{part}" for part in bottleneck),
        *(f"aspp/{part}" for part in ("pool", "point", "rate2", "join")),
        "classifier",
    ]


def test_records_of_blocks_are_those_that_the_space_reckons_with(network):
    _, records, _ = network
    found = {r.name: r for r in records}
    height, width = 17, 24  # behind the stem, odd sides rounded up
    for number, (block, path) in enumerate(zip(BLOCKS, PATHS, strict=True), start=1):
        for layer, op in enumerate(path):
            channels, stride = block.layer_shape(layer)
            name = f"encoder/block{number}/layer{layer}"
            expected = space.mbconv_convs(
                *(op, name, (height, width, channels), block.channels, stride),
                block.layer_dilation(layer),
            )
            assert [found[conv.name] for conv in expected] == expected
            height, width = -(-height // stride), -(-width // stride)


def test_records_of_stem_and_head_by_hand(network):
    _, records, _ = network
    found = {r.name: r for r in records}
    assert found["encoder/stem"] == space.Conv("encoder/stem", 3, 2, 1, 1, 3, 8, 33, 47)
    assert found["aspp/pool"] == space.Conv("aspp/pool", 1, 1, 1, 1, 16, 4, 1, 1)
    assert found["aspp/rate2"] == space.Conv("aspp/rate2", 3, 1, 2, 1, 16, 4, 9, 12)
    assert found["aspp/join"] == space.Conv("aspp/join", 3, 1, 1, 1, 12, 4, 9, 12)
    assert found["classifier"] == space.Conv("classifier", 1, 1, 1, 1, 4, 19, 9, 12)


def test_the_output_pixels_of_a_record_are_those_of_the_layer(network):
    model, records, _ = network
    image = jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32)
    key = jax.random.key(0)
    shapes = jax.eval_shape(
        lambda image: model.init_with_output(key, image, capture_intermediates=True, mutable=True),
        image,
    )[1]["intermediates"]
    for record in records:
        part = shapes
        for name in record.name.split("/"):
            part = part[name]
        _, height, width, features = part["__call__"][0].shape
        assert height * width == record.out_pixels and features == record.out_channels
        assert record.macs == record.weights * height * width


@pytest.mark.parametrize("expansion", [1, 3])
def test_a_block_by_itself_has_the_records_of_its_ops(expansion):
    block, op = space.Block(8, 16, 2, 2, 1), space.Op(5, expansion)
    expected = space.mbconv_convs(op, "layer0", (7, 9, 8), 16, 2, 2)
    assert trace(BlockPath(block, (op,)), (7, 9, 8)).convs == expected


def test_only_the_first_layer_of_a_block_may_be_dilated():
    block, ops = space.Block(8, 8, 1, 4, 3, "first"), (space.Op(3, 2),) * 3
    found = trace(BlockPath(block, ops), (9, 9, 8)).convs
    assert [conv.dilation for conv in found if conv.groups > 1] == [4, 1, 1]
    layers = space.block_convs(block, ops[:1], (9, 9))
    assert [c.macs for c in found] == [c.macs for layer in layers for c in layer]


def test_every_unit_says_what_it_reads(network):
    units = trace(network[0], IMAGE).units
    reads = {unit.name: unit.inputs for unit in units}
    assert [unit.name for unit in units if not unit.conv] == [
        "encoder/input",
        "encoder/block0/layer0/add",
        "encoder/block1/layer1/add",
        "encoder/block2/layer0/add",
        *(f"aspp/{part}" for part in ("mean", "broadcast", "concat")),
    ]
    last = "encoder/block2/layer0/add"
    assert reads["encoder/input"] == ("image",)
    assert reads["encoder/stem"] == ("encoder/input",)
    assert reads["encoder/block1/layer0/expand"] == ("encoder/block0/layer0/add",)
    assert reads["encoder/block1/layer1/add"] == (
        "encoder/block1/layer0/project",
        "encoder/block1/layer1/project",
    )
    assert reads["aspp/mean"] == reads["aspp/point"] == reads["aspp/rate2"] == (last,)
    assert reads["aspp/concat"] == ("aspp/broadcast", "aspp/point", "aspp/rate2")
    assert reads["classifier"] == ("aspp/join",)


def test_sites_are_where_the_search_space_has_its_layers(network):
    traced = trace(network[0], IMAGE)
    sites = {unit.name: unit.site for unit in traced.units if unit.site}
    parts = ("expand", "depthwise", "project")
    assert sites == {
        **{f"encoder/block1/layer0/{part}": (0, 0, part) for part in parts},
        **{f"encoder/block1/layer1/{part}": (0, 1, part) for part in (*parts, "add")},
        **{f"encoder/block2/layer0/{part}": (1, 0, part) for part in (*parts, "add")},
    }
    assert {site.layer_name for site in sites.values()} == {
        "block1/layer0",
        "block1/layer1",
        "block2/layer0",
    }
    assert [unit.name for unit in traced.stem] == [
        *("encoder/input", "encoder/stem"),
        *(f"encoder/block0/layer0/{part}" for part in ("depthwise", "project", "add")),
    ]
    assert {unit.name.split("/")[0] for unit in traced.head} == {"aspp", "classifier"}
    assert traced.encoder + traced.head == traced.units


class Renamed(nn.Module):
    """A layer of a search space by a name that says nothing."""

    @nn.compact
    def __call__(self, x):
        return MBConv(space.Op(3, 2), 4, place=(3, 1), name="mine")(x)


def test_sites_do_not_hang_on_names():
    traced = trace(Renamed(), (5, 6, 3))
    assert [unit.site for unit in traced.units] == [
        (3, 1, part) for part in ("expand", "depthwise", "project")
    ]
    assert not any(unit.site for unit in trace(BlockPath(BLOCKS[0], PATHS[0]), (5, 6, 8)).units)


def test_macs_are_those_of_the_convolutions(network):
    traced = trace(network[0], IMAGE)
    assert sum(unit.macs for unit in traced.units) == sum(conv.macs for conv in traced.convs) > 0


def test_several_outputs_are_no_output(network):
    model, *_ = network
    assert trace(model, IMAGE).output == "classifier"
    assert trace(model.encoder, IMAGE).output is None


def test_a_trace_holds_no_abstract_values():
    with jax.checking_leaks():
        traced = trace(Renamed(), (5, 6, 3))
    assert all(unit.module.scope is None for unit in traced.units)


@pytest.mark.parametrize("outer", [True, False], ids=["module", "unit"])
def test_a_name_with_a_slash_is_refused_in_one_line(outer):
    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x):
            name = "conv" if outer else "a/b"
            return ConvBnAct(4, kernel=1, name=name)(units.Input(name="input")(x))

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Inner(name="a/b" if outer else "inner")(x)

    kind = "Inner" if outer else "ConvBnAct"
    with pytest.raises(
        InputError, match=rf"^the name 'a/b' of a {kind}: must have no '/'"
    ) as error:
        trace(Network(), (8, 8, 3))
    assert "\n" not in str(error.value)

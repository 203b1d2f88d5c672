import itertools

from qnas_jax import space
from qnas_jax.hardware import candidates

BLOCKS = (
    space.Block(in_channels=8, channels=16, stride=2, dilation=1, depth=2),
    space.Block(in_channels=16, channels=24, stride=1, dilation=2, depth=1),
)
OPS = (space.Op(3, 1), space.Op(5, 3))
PLACES = candidates.places(BLOCKS, (9, 17))  # odd: strides round up


def test_places_are_the_layers_in_order_with_the_shape_of_their_input():
    assert [str(place) for place in PLACES] == ["block1/layer0", "block1/layer1", "block2/layer0"]
    assert PLACES == (
        (0, 0, 9, 17, 8, 16, 2, 1),
        (0, 1, 5, 9, 16, 16, 1, 1),
        (1, 0, 5, 9, 16, 24, 1, 2),
    )
    convs = itertools.chain.from_iterable(space.block_convs(BLOCKS[0], OPS, (9, 17)))
    shapes = {(c.in_height, c.in_width) for c in convs if c.name.endswith("depthwise")}
    assert shapes == {place[2:4] for place in PLACES[:2]}


def test_the_dilation_of_a_place_is_that_of_its_layer():
    block = space.Block(8, 16, stride=1, dilation=2, depth=3, dilate="first")
    assert [place.dilation for place in candidates.places((block,), (9, 9))] == [2, 1, 1]


def test_a_layer_of_a_search_space_has_a_candidate_for_each_op():
    layers = candidates.layers(PLACES, OPS)
    assert [[one.op for one in layer] for layer in layers] == [list(OPS)] * len(PLACES)
    for place, layer in zip(PLACES, layers, strict=True):
        for one in layer:
            assert (one.place, one.shape) == (str(place), place[2:])
            assert one.convs[0].in_channels == place.in_channels
            assert one.convs[-1].out_channels == place.channels
            (depthwise,) = (conv for conv in one.convs if conv.groups > 1)
            assert depthwise.kernel == one.op.kernel
            assert (depthwise.stride, depthwise.dilation) == (place.stride, place.dilation)


def test_a_given_layer_has_one_candidate_and_the_size_of_its_largest_input():
    pooled = space.Conv("head/pool", 1, 1, 1, 1, 8, 4, 1, 1)
    first = space.Conv("head/conv", 1, 1, 1, 1, 8, 4, 5, 9)
    ((one,), (alone,)) = (
        candidates.given("head", [pooled, first]),
        candidates.given(first.name, [first]),
    )
    assert one == ("head", None, (5, 9), (pooled, first))
    assert alone == ("head/conv", None, (5, 9), (first,))

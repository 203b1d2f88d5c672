import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax.hardware import bismo, published
from qnas_jax.hardware.devices import BISMO_CLOUD, BISMO_EDGE
from qnas_jax.space import Conv

# The published table of MobileNetV2 on the cloud device, in cycles.
TABLE_TOTAL = 39_624_933  # at 8 bits
TABLE_SHARES = {"depthwise": 0.47, "expand": 0.35, "project": 0.12, "stem": 0.04}
# Of all layers of a kind, over 8 bits: halved activations, halved weights.
TABLE_HALVED = {"depthwise": (0.504, 0.988), "expand": (0.504, 0.505), "project": (0.513, 0.802)}


def of_kind(kind):
    return [conv for conv in published.mobilenet_v2_convs() if conv.name.endswith(kind)]


def total(convs, w_bits, a_bits):
    return sum(float(bismo.cycles(BISMO_CLOUD, conv, w_bits, a_bits)) for conv in convs)


@pytest.mark.parametrize(
    ("conv", "w_bits", "a_bits", "cloud", "edge"),
    [
        # 256 products of a dot product at once: (pixels x channels / dot products) x w x a
        (Conv("compute", 1, 1, 1, 1, 32, 64, 56, 56), 8, 8, 802816, 200704),
        # activations through their port: a x pixels x (1 word of 256 bits, 4 of 64)
        (Conv("inputs", 1, 1, 1, 1, 300, 8, 56, 56), 2, 8, 802816, 200704),
        # weights through their port, 16 times
        (Conv("weights", 1, 1, 1, 1, 32, 64, 2, 2), 8, 8, 8192, 32768),
        # 27 taps and channels in one dot product
        (Conv("stem", 3, 2, 1, 1, 3, 32, 224, 224), 8, 8, 1605632, 401408),
        # 9 taps are padded to 16, 25 to 32; weights do not count
        (Conv("3x3", 3, 2, 1, 8, 8, 8, 8, 8), 2, 8, 1024, 256),
        (Conv("5x5", 5, 1, 1, 8, 8, 8, 4, 4), 8, 8, 2048, 512),
        # a fully connected layer: its weights pass once, whatever the batch
        (Conv("classifier", 1, 1, 1, 1, 1280, 1000, 1, 1), 8, 3, 40000, 160000),
    ],
    ids=lambda value: value.name if isinstance(value, Conv) else None,
)
def test_cycles_by_hand(conv, w_bits, a_bits, cloud, edge):
    assert bismo.cycles(BISMO_CLOUD, conv, w_bits, a_bits) == cloud
    assert bismo.cycles(BISMO_EDGE, conv, w_bits, a_bits) == edge


def test_latency_is_that_of_a_batch():
    conv = Conv("a", 1, 1, 1, 1, 32, 64, 56, 56)
    expected = 802816 / BISMO_CLOUD.clock_hz * 1e3
    assert bismo.latency_ms(BISMO_CLOUD, conv, 8, 8) == pytest.approx(expected)


def test_the_published_table_is_met():
    convs = published.mobilenet_v2_convs()
    assert len(convs) == 53
    everything = total(convs, 8, 8)
    assert 1.004 < TABLE_TOTAL / everything < 1.098
    for kind, share in TABLE_SHARES.items():
        assert total(of_kind(kind), 8, 8) / everything == pytest.approx(share, abs=0.015)
    for kind, (fewer_a, fewer_w) in TABLE_HALVED.items():
        full = total(of_kind(kind), 8, 8)
        assert total(of_kind(kind), 8, 4) / full == pytest.approx(fewer_a, abs=0.02)
        assert total(of_kind(kind), 4, 8) / full == pytest.approx(fewer_w, abs=0.02)


@pytest.mark.parametrize("device", [BISMO_EDGE, BISMO_CLOUD], ids=["edge", "cloud"])
def test_tables_equal_their_entries_and_more_bits_take_no_less(device):
    w_bits, a_bits = np.arange(1, 9)[:, None], np.arange(1, 9)
    for conv in published.mobilenet_v2_convs():
        table = bismo.cycles(device, conv, w_bits, a_bits)
        entries = [[bismo.cycles(device, conv, w, a) for a in a_bits] for w in w_bits.ravel()]
        np.testing.assert_array_equal(np.broadcast_to(table, (8, 8)), entries)
        assert (np.diff(table, axis=0) >= 0).all()
        assert (np.diff(table, axis=1) >= 0).all()


def test_arrays_of_jax_pass():
    conv = Conv("a", 1, 1, 1, 1, 32, 64, 56, 56)
    found = bismo.cycles(BISMO_CLOUD, conv, jnp.array([4, 8]), jnp.array([8, 8]))
    np.testing.assert_array_equal(found, [401408, 802816])

import numpy as np
import pytest

from qnas_jax.errors import InputError
from qnas_jax.hardware import roofline
from qnas_jax.hardware.devices import Roofline
from qnas_jax.space import Conv

# 8 x 8 x 16 -> 8 x 8 x 32: 512 weights, 32768 MACs, 3072 numbers in and out.
CONV = Conv("a", 1, 1, 1, 1, 16, 32, 8, 8)


def device(bandwidth_bytes_per_s=1e6, on_chip_bytes=0, peaks=(4e6, 1e6)):
    return Roofline((4, 8), peaks, bandwidth_bytes_per_s, on_chip_bytes, "made up")


def test_without_a_cache_all_operands_cross_the_bus():
    assert roofline.traffic_bytes(device(), CONV, 8, 8) == 512 + 3072
    assert roofline.traffic_bytes(device(), CONV, 4, 8) == 256 + 3072
    assert roofline.traffic_bytes(device(), CONV, 4, 4) == 256 + 1536


@pytest.mark.parametrize(("room", "features"), [(512, 3072), (1512, 2072), (3584, 0), (9999, 0)])
def test_features_that_fit_beside_the_weights_stay(room, features):
    assert roofline.traffic_bytes(device(on_chip_bytes=room), CONV, 8, 8) == 512 + features


def test_the_slower_of_arithmetic_and_memory_decides():
    assert roofline.latency_ms(device(), CONV, 8, 8) == pytest.approx(2 * 32768 / 1e6 * 1e3)
    slow = device(bandwidth_bytes_per_s=1e3)
    assert roofline.latency_ms(slow, CONV, 8, 8) == pytest.approx((512 + 3072) / 1e3 * 1e3)


def test_the_wider_operand_sets_the_peak_and_nothing_is_narrower_than_the_device():
    wide = roofline.latency_ms(device(), CONV, 8, 8)
    assert roofline.latency_ms(device(), CONV, 4, 8) == wide
    assert roofline.latency_ms(device(), CONV, 5, 5) == wide
    assert roofline.latency_ms(device(), CONV, 4, 4) == pytest.approx(wide / 4)
    assert roofline.latency_ms(device(), CONV, 2, 3) == pytest.approx(wide / 4)


def test_wider_operands_than_the_device_has_are_refused():
    with pytest.raises(InputError, match=r"w_bits=16.*1 to 8 bits"):
        roofline.latency_ms(device(), CONV, 16, 8)


def test_tables_equal_their_entries():
    w_bits, a_bits = np.arange(2, 9)[:, None], np.arange(2, 9)
    slow = device(bandwidth_bytes_per_s=4e4, on_chip_bytes=1000)
    table = roofline.latency_ms(slow, CONV, w_bits, a_bits)
    entries = [[roofline.latency_ms(slow, CONV, w, a) for a in a_bits] for w in w_bits.ravel()]
    np.testing.assert_array_equal(table, entries)
    assert len(np.unique(table)) == 3  # by memory, by arithmetic, by memory

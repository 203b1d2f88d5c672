import numpy as np
import pytest

from qnas_jax.errors import InputError
from qnas_jax.hardware import counts
from qnas_jax.space import Conv

DENSE = Conv("a", 3, 2, 1, 1, 4, 6, 7, 5)
DEPTHWISE = Conv("b", 3, 1, 1, 4, 4, 4, 7, 5)
GROUPED = Conv("c", 3, 1, 1, 2, 4, 4, 7, 5)


def test_bitops_count_the_products_of_single_bits():
    products = 0
    for _ in range(4 * 3):  # pixels of a 7 x 5 map at stride 2
        products += 3 * 3 * 4 * 6 * (2 * 5)
    assert counts.bitops(DENSE, 2, 5) == products == 10 * DENSE.macs


def test_bitops_broadcast():
    found = counts.bitops(DEPTHWISE, np.arange(2, 9)[:, None], np.array([4, 8], np.int8))
    assert found.shape == (7, 2)
    assert found[3, 1] == counts.bitops(DEPTHWISE, 5, 8) == 7 * 5 * 9 * 4 * 40


def test_bitops_of_a_large_layer_do_not_overflow_the_type_of_the_bitwidths():
    head = Conv("head", 3, 1, 12, 1, 2048, 512, 64, 128)
    assert int(counts.bitops(head, np.int8(8), np.int8(8))) == head.macs * 64


@pytest.mark.parametrize(
    ("w_bits", "a_bits", "named"), [(0, 8, "w_bits=0"), (4, [8, 9], "a_bits=")]
)
def test_bitwidths_that_no_model_knows_are_refused(w_bits, a_bits, named):
    with pytest.raises(InputError, match=named):
        counts.checked_bits(w_bits, a_bits)


def test_grouped_convolutions_are_refused():
    assert not counts.is_depthwise(DENSE)
    assert counts.is_depthwise(DEPTHWISE)
    with pytest.raises(InputError, match="c: groups=2 of 4 channels"):
        counts.is_depthwise(GROUPED)

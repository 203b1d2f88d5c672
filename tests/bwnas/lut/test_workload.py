import dataclasses

from qnas_jax import space
from qnas_jax.bwnas.lut import workload

OPS = (space.Op(3, 2), space.Op(5, 3))


def test_the_work_is_that_of_every_node_once():
    block = space.Block(in_channels=8, channels=16, stride=2, dilation=1, depth=2)
    ops, pixels = OPS, 4 * 5  # after the stride, of 7 x 10
    layers = [
        sum(
            8 * op.expansion * 7 * 10 + op.kernel**2 * 8 * op.expansion * pixels
            + 8 * op.expansion * 16 * pixels * 1
            if layer == 0
            else (16 + op.kernel**2 + 16) * 16 * op.expansion * pixels
            for op in ops
        )
        for layer in (0, 1)
    ]  # fmt: skip
    layers[0] += sum(8 * op.expansion * (8 - 1) * 70 for op in ops)
    found = workload.work(block, ops, [[(8, 8)], [(8, 8), (4, 4)]], (7, 10))
    assert found.macs == layers[0] + 2 * 2 * layers[1]


def test_int8_moves_a_quarter_of_the_bytes():
    block = space.Block(in_channels=8, channels=16, stride=1, dilation=1, depth=1)
    found = workload.work(block, OPS, [[(8, 8)]], (3, 5))
    values = [3 * 5 * (2 * 8 * op.expansion + 16) for op in OPS]  # by op
    assert (found.values, found.node_values) == (sum(values), sum(values))
    assert found.moved_bytes("float32") == found.node_bytes("float32") == 8 * sum(values)
    assert found.moved_bytes("int8") == found.node_bytes("int8") == 2 * sum(values)


def test_a_fused_layer_keeps_only_what_it_reads_and_gives():
    block = space.Block(in_channels=8, channels=6, stride=2, dilation=1, depth=2)
    found = workload.work(block, OPS, [[(8, 8)], [(8, 8), (4, 4)]], (7, 10))
    assert found.kept_values == 7 * 10 * 8 + 2 * 4 * 5 * 6  # of the first layer
    assert found.fused_node_bytes() == 2 * found.kept_values
    wider = workload.work(dataclasses.replace(block, channels=60), OPS, [[(8, 8)]] * 2, (7, 10))
    assert wider.kept_values == 4 * 5 * 60 + 2 * 4 * 5 * 60  # of the second

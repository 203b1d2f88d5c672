"""Making a benchmark: killed and resumed, as a file, and what its costs are."""

import dataclasses

import jax
import numpy as np
import pytest

import small_benchmark as small
from qnas_jax.benchmark import costs, generate, networks, summary, table
from qnas_jax.errors import InputError
from qnas_jax.hardware import candidates, matrix, size
from qnas_jax.hardware.target import named
from qnas_jax.nn.trace import convs, trace

PLAN = small.PLAN


class Killed(BaseException):
    """A stop that nothing expects."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    found, seconds = generate.generate(PLAN, folder)
    assert seconds > 0
    return found


def same(a, b):
    for field in dataclasses.fields(a):
        jax.tree.map(np.testing.assert_array_equal, getattr(a, field.name), getattr(b, field.name))


def test_a_resumed_benchmark_is_the_uninterrupted_one(made, tmp_path, monkeypatch):
    begun, real = [], generate._network

    def killed_at_the_third(plan, network, train, val):
        begun.append(network)
        if len(begun) > 2:
            raise Killed
        return real(plan, network, train, val)

    monkeypatch.setattr(generate, "_network", killed_at_the_third)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    with pytest.raises(Killed):
        generate.generate(PLAN, tmp_path)
    assert begun == [0, 1, 2]
    monkeypatch.setattr(generate, "_network", lambda *given: begun.append(given[1]) or real(*given))
    found, _ = generate.generate(PLAN, tmp_path)
    assert begun[3:] == [2, 3]  # what was done is not done again
    same(found, made)


def test_other_plans_are_refused_in_the_same_folder(tmp_path):
    folder = tmp_path / "networks"
    folder.mkdir()
    stage = generate.Stage(folder, {"plan": PLAN})
    stage.begin()
    (folder / "network0000.npz").write_bytes(b"")
    with pytest.raises(InputError, match="made from other settings"):
        generate.generate(dataclasses.replace(PLAN, steps=4), tmp_path)


def test_a_file_holds_the_benchmark(made, tmp_path):
    table.save(tmp_path / "found.npz", made)
    found = table.load(tmp_path / "found.npz")
    same(found, made)
    assert "4 networks, 2 trainings each, 4 policies" in summary.as_text(found)


def test_accuracies_are_looked_up_by_ops_bits_and_seed(made):
    ops, bits = np.array([[0, 1], [1, 0]]), np.array([[1, 0], [1, 1]])
    right = made.right[[1, 2], :, [2, 3]]
    np.testing.assert_allclose(made.accuracy(ops, bits, seed=1), 100 * right[:, 1] / 24)
    np.testing.assert_allclose(made.accuracy(ops, bits), 100 * right.mean(1) / 24)
    assert made.accuracy(ops[0], bits[0]) == pytest.approx(100 * right[0].mean() / 24)
    assert made.float_accuracy(ops[1], 0) == pytest.approx(100 * made.float_right[2, 0] / 24)


def test_costs_are_those_of_the_whole_network(made):
    ops, bits = (0, 1), (1, 0)
    chosen = tuple(PLAN.space.ops[place] for place in ops)
    found = made.costs(np.array(ops), np.array(bits))
    traced = trace(networks.classifier(PLAN, chosen), (PLAN.size, PLAN.size, 3))
    assert found["macs"] == sum(conv.macs for conv in traced.convs)
    w_bits = [PLAN.bits[bits[u.site.block]] if u.site else 8 for u in traced.units if u.conv]
    pairs = zip(traced.convs, w_bits, strict=True)
    assert found["size_bytes"] == sum(int(size.conv_bytes(*pair)) for pair in pairs)
    target = named("bitfusion")
    where = candidates.places(PLAN.space.blocks, (6, 6))
    table = matrix.cost_matrix(target, candidates.layers(where, chosen), [(8, 8), (3, 3)])
    parts = {"stem": convs(traced.stem), "head": convs(traced.head)}
    for name in ("latency_ms", "energy_mj"):
        blocks = table[name][0, 0, 1] + table[name][1, 1, 0]
        fixed = sum(matrix.fixed_costs(target, parts)[name].values())
        assert found[f"bitfusion/{name}"] == pytest.approx(blocks + fixed)


def test_every_modelled_device_has_its_costs():
    tables, fixed = costs.tables(PLAN)
    assert set(tables) == set(fixed) == {
        "size_bytes", "macs", "bismo_edge/latency_ms", "bismo_cloud/latency_ms",
        "bitfusion/latency_ms", "bitfusion/energy_mj",
    }  # fmt: skip
    assert all(np.isfinite(each).all() for each in tables.values())


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def changed(name, value):
    def change(path):
        with np.load(path) as archive:
            arrays = {**archive, name: value}
        np.savez(path, **{key: each for key, each in arrays.items() if each is not None})

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"no such file; `qnas benchmark"),
        (cut, r"is no benchmark, or damaged \("),
        (lambda path: path.write_bytes(b"text"), r"is no benchmark, or damaged \("),
        (changed("format", np.int64(2)), r"format 2, must be 1"),
        (changed("nsr", np.zeros((2, 2, 2))), r"nsr has the shape \(2, 2, 2\), must have"),
        (changed("fixed/macs", None), r"fixed/macs"),
        (changed("cost/size_bytes", None), r"it has no cost/size_bytes"),
        (changed("images", np.int64(0)), r"right answers of 0 images"),
        (changed("nsr", np.full((2, 2, 3), np.nan)), r"nsr has values that are negative or not"),
    ],
    ids=["missing", "cut", "text", "format", "shape", "lacks", "no cost", "no images", "NaN"],
)
def test_a_file_that_is_no_benchmark_is_refused_in_one_line(made, tmp_path, damage, message):
    path = tmp_path / "found.npz"
    table.save(path, made)
    damage(path)
    with pytest.raises(InputError, match=message) as caught:
        table.load(path)
    assert "\n" not in str(caught.value)

"""What `import qnas_jax as qn` offers, used as a researcher would."""

import importlib
import inspect
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import optax
import pytest

import qnas_jax as qn
import reference
from qnas_jax.bwnas import distill
from qnas_jax.errors import InputError
from qnas_jax.export import interpret

ROOT = pathlib.Path(__file__).parents[1]
ROOMS = [name for name in qn.__all__ if inspect.ismodule(getattr(qn, name))]
OFFERED = [
    getattr(module, name)
    for module in (qn, *(getattr(qn, room) for room in ROOMS))
    for name in getattr(module, "__all__", ())
    if not inspect.ismodule(getattr(module, name))
]
FUNCTIONS = [found for found in map(inspect.unwrap, OFFERED) if inspect.isfunction(found)]

BLOCKS = (
    qn.Block(in_channels=8, channels=8, stride=1, dilation=1, depth=2),
    qn.Block(in_channels=8, channels=16, stride=2, dilation=1, depth=1),
)
SPACE = qn.Space(BLOCKS, ops=(qn.Op(3, 2), qn.Op(5, 3)))
BITS = ((8, 8), (4, 6))


def maps():
    """A teacher's features at all boundaries."""
    (x, _), (y, z) = (reference.random_maps(block, 4, (12, 16), seed=1) for block in BLOCKS)
    return x, y, z


def run(script):
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_all_that_is_offered_is_there():
    assert {"bwnas", "export", "hardware", "nn", "quant", "search"} <= set(ROOMS)
    assert set(qn.__all__) <= set(dir(qn))
    assert inspect.isfunction(qn.nn.trace)  # not the module of that name


@pytest.mark.parametrize("module", [qn, qn.bwnas], ids=lambda module: module.__name__)
def test_what_is_not_offered_is_named(module):
    with pytest.raises(AttributeError, match=r"no attribute 'anneal'"):
        module.anneal  # noqa: B018


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_function_says_what_it_takes_and_gives(function):
    parameters = inspect.signature(function).parameters
    assert set(function.__annotations__) == {*parameters, "return"}
    assert len(parameters) < 3 or all(f"{name}:" in function.__doc__ for name in parameters)


def test_importing_takes_no_array_library_until_it_is_used():
    script = "import sys, qnas_jax as qn; print(*sys.modules); {}; print(*sys.modules)"
    first, then = run(script.format("qn.search, qn.hardware")).splitlines()
    assert not {"jax", "numpy", "qnas_jax.quant"} & set(first.split())
    assert "numpy" in then.split()
    assert not {"jax", "flax"} & set(then.split())


def in_the_readme(word):
    """The only example that has a word."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = (block for block in blocks if word in block)
    return code


def test_the_readme_searches_the_benchmark_with_every_search():
    lines = [line.split() for line in run(in_the_readme("benchmark.load")).splitlines()]
    names = [line[0].removesuffix(":") for line in lines]
    assert names == [*qn.benchmark.SEARCHES, *qn.benchmark.LEARNERS]
    assert all(0 <= float(line[1]) < 30 for line in lines), "two bits are 40 points worse"


def test_the_readme_scores_a_block_and_prints_its_front():
    lines = [line.split() for line in run(in_the_readme("init_supernet")).splitlines()]
    assert len(lines) > 1
    nsr, sizes = ([float(line[column]) for line in lines] for column in (0, 1))
    assert nsr == sorted(nsr)
    assert sizes == sorted(sizes, reverse=True)
    assert all(len(qn.parse_subnet(line[-1])) == 1 for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("per_layer", [False, True])
def test_a_score_is_that_of_its_path_evaluated_alone(per_layer):
    params = [reference.random_block(block, SPACE.ops) for block in BLOCKS]
    table = qn.bwnas.score(params, SPACE, BITS, maps(), qn.quant.min_max, per_layer)
    assert len(table.nsr) == (16 if per_layer else 8) + 4
    for row in range(0, len(table.nsr), 3):
        block = int(table.block[row])
        x, target = maps()[block : block + 2]
        alone = reference.path_nsr(params[block], BLOCKS[block], table.choices(row), x, x, target)
        assert table.nsr[row] == pytest.approx(alone, rel=1e-4)
    points = qn.bwnas.search(table)
    assert points[0].nsr == pytest.approx(sum(table.nsr[table.block == b].min() for b in (0, 1)))


@pytest.mark.parametrize(
    ("bits", "channels", "message"),
    [
        (((9, 8),), 8, r"bits=\(\(9, 8\),\): bitwidths lie in \[2, 8\]"),
        ((), 8, r"bits=\(\): bitwidths lie in \[2, 8\]"),
        (BITS, 9, r"maps of \[9, 8, 16\] channels: .* have \[8, 8, 16\]"),
    ],
)
def test_what_cannot_be_scored_is_refused(bits, channels, message):
    given = (jnp.zeros((1, 4, 4, channels)), *maps()[1:])
    with pytest.raises(InputError, match=message):
        qn.bwnas.score([], SPACE, bits, given)


def test_steps_of_distillation_begin_where_a_run_does_and_lower_the_nsr():
    optimizers = (optax.sgd(0.02, 0.9),) * 2
    params = qn.bwnas.init_supernet(jax.random.key(0), SPACE)
    state = qn.bwnas.init_state(params, optimizers)
    jax.tree.map(
        np.testing.assert_array_equal,
        state,
        distill.fresh_state(SPACE, optimizers, jax.random.key(0)),
    )
    recipe = qn.bwnas.Recipe(
        lambda teacher, images: images,
        SPACE,
        optimizers,
        qn.bwnas.SAMPLING["fair"],
        jax.random.key(1),
    )
    step, found = qn.bwnas.distill_step(recipe), []
    for number in range(8):
        state, values = step({}, state, maps(), jnp.int32(number))
        found.append([float(values[f"nsr_block{block}"]) for block in (1, 2)])
    assert np.all(np.array(found[-1]) < found[0])


def test_an_exported_file_runs(int8):
    session = onnxruntime.InferenceSession(qn.export.to_onnx(int8.network))
    (found,) = session.run(None, {session.get_inputs()[0].name: int8.images})
    expected = interpret.run(int8.network, int8.images)[int8.network.out.name][..., 0]
    assert np.mean(found == expected) > 0.99


def test_a_tflite_file_is_a_flatbuffer(int8):
    pytest.importorskip("ai_edge_litert")
    assert qn.export.to_tflite(int8.network)[4:8] == b"TFL3"


def test_without_litert_a_tflite_file_is_refused(int8, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"LiteRT is not installed: pip install"):
        qn.export.to_tflite(int8.network)

"""Which form programs are traced in; an accelerator's name and the clock are made up."""

import itertools
import logging

import jax
import jax.numpy as jnp
import pytest
from jax import export

from qnas_jax.kernels import convolution, forms

X, W = jnp.ones((2, 6, 6, 4)), jnp.ones((3, 3, 4))


@pytest.fixture
def accelerator(monkeypatch):
    """A process that has measured nothing yet and takes its device for a GPU."""
    monkeypatch.setattr(forms.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(forms, "_measured", {})
    monkeypatch.setattr(convolution, "MEASURED", ((1, 4, 4, 2), (3, 3, 2)))


def clock(monkeypatch, *durations):
    """Lets each run of a candidate take as long as this; returns how often one was timed."""
    asked, now = [], [0.0]
    given = itertools.chain.from_iterable([d] * forms.REPEATS for d in durations)

    def read():
        asked.append(1)
        if len(asked) % 2 == 0:
            now[0] += next(given)
        return now[0]

    monkeypatch.setattr(forms.time, "perf_counter", read)
    return asked


def traced_again(x, w):
    """A function that no cache knows, with a mapped gradient of a depthwise convolution."""

    def total(x, w):
        return jnp.sum(convolution.depthwise(x, w, 1, 1))

    return jax.jit(jax.vmap(jax.grad(total), (0, None)))(x[None], w)


def test_a_cpu_measures_nothing(monkeypatch):
    monkeypatch.setattr(forms, "shortest_seconds", lambda *_: pytest.fail("measured"))
    assert convolution.depthwise_form() == "cpu"


@pytest.mark.parametrize(
    ("durations", "fastest"), [((0.1, 0.2), "grouped"), ((0.2, 0.1), "shifted")], ids=str
)
def test_an_accelerator_is_measured_once_while_it_traces(
    accelerator, monkeypatch, caplog, durations, fastest
):
    asked = clock(monkeypatch, *durations)
    with caplog.at_level(logging.INFO):
        traced_again(X, W)
        assert convolution.depthwise_form() == fastest
        traced_again(2 * X, W)
    assert len(asked) == 2 * 2 * forms.REPEATS
    (line,) = caplog.messages
    assert line == (
        f"depthwise convolutions: {fastest}, the fastest here "
        f"(grouped {1000 * durations[0]:.3g} ms, shifted {1000 * durations[1]:.3g} ms)"
    )


def test_several_processes_take_the_same_form_unmeasured(accelerator, monkeypatch, caplog):
    monkeypatch.setattr(forms.jax, "process_count", lambda: 2)
    monkeypatch.setattr(forms, "shortest_seconds", lambda *_: pytest.fail("measured"))
    with caplog.at_level(logging.INFO):
        assert convolution.depthwise_form() == "grouped"
    assert "several processes" in caplog.text


def test_another_form_is_traced_again():
    programs = {}
    for form in ("cpu", "grouped", "shifted", "cpu"):
        with forms.given(form):
            programs[form] = str(jax.make_jaxpr(convolution.depthwise, (2, 3))(X, W, 1, 1))
    assert "feature_group_count=4" in programs["grouped"]
    assert "conv_general" not in programs["shifted"] + programs["cpu"]
    assert "custom_vjp" in programs["cpu"] and "custom_vjp" not in programs["shifted"]


@pytest.mark.parametrize("form", ["grouped", "shifted"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_both_forms_and_their_gradients_lower_for_accelerators(form, dtype):
    with forms.given(form):
        lowered = export.export(convolution._typical, platforms=("cuda", "tpu"))
        text = lowered(X.astype(dtype), W.astype(dtype)).mlir_module()
    assert ("stablehlo.convolution" in text) == (form == "grouped")
    assert "stablehlo.while" not in text  # the CPU's form has loops over the pixels

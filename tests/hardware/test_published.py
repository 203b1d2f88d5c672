"""The published figures against what the models say, and the networks that they are of."""

import dataclasses
import itertools

import numpy as np
import pytest

from qnas_jax.errors import InputError
from qnas_jax.hardware import cost, devices, fit, published
from qnas_jax.space import Conv

BITS = (4, 5, 6, 8)


@pytest.fixture(scope="module")
def predictions():
    return fit.predictions(8)


def errors(predictions, device, quantity):
    return [
        abs(found.error)
        for found in predictions
        if (found.figure.device, found.figure.quantity) == (device, quantity) and not found.fitted
    ]


@pytest.mark.parametrize(
    ("name", "layers", "million_macs", "million_weights"),
    [("mobilenet_v1", 28, 569, 4.2), ("mobilenet_v2", 53, 300, 3.4)],
)
def test_networks_have_their_published_cost(name, layers, million_macs, million_weights):
    convs = published.NETWORKS[name]()
    assert len(convs) == len({conv.name for conv in convs}) == layers
    assert sum(conv.macs for conv in convs) / 1e6 == pytest.approx(million_macs, rel=0.005)
    assert sum(conv.weights for conv in convs) / 1e6 == pytest.approx(million_weights, rel=0.025)
    for before, after in itertools.pairwise(convs):
        assert after.in_channels == before.out_channels
        pixels = 1 if after.name == "classifier" else before.out_pixels
        assert after.in_height * after.in_width == pixels


@pytest.mark.parametrize(
    ("device", "quantity", "figures", "most_mean", "most"),
    [
        ("BISMO_EDGE", "latency_ms", 7, 0.02, 0.03),
        ("BISMO_CLOUD", "latency_ms", 7, 0.02, 0.031),
        ("BITFUSION", "latency_ms", 4, 0.02, 0.05),
        ("BITFUSION", "energy_mj", 3, 0.08, 0.115),
    ],
)
def test_figures_that_were_not_fitted_are_predicted(
    predictions, device, quantity, figures, most_mean, most
):
    found = errors(predictions, device, quantity)
    assert len(found) == figures
    assert np.mean(found) < most_mean
    assert np.max(found) < most


def test_all_predictions_together(predictions):
    found = [abs(one.error) for one in predictions if not one.fitted]
    assert len(found) == 21
    assert np.mean(found) < 0.025


def test_what_is_fitted_is_met(predictions):
    fitted = [one for one in predictions if one.fitted]
    assert [one.figure.device for one in fitted] == ["BISMO_EDGE", "BISMO_CLOUD", "BITFUSION"]
    assert [one.error for one in fitted] == pytest.approx([0, 0, 0], abs=1e-9)


def test_the_devices_have_the_fitted_constants():
    found, _ = fit.fitted(8)
    for name, (constant, _) in fit.OPEN.items():
        written = getattr(getattr(devices, name), constant)
        assert written == pytest.approx(getattr(found[name], constant), rel=5e-4)


def test_a_fit_finds_a_constant_that_was_put_in():
    for name, (constant, quantity) in fit.OPEN.items():
        device = getattr(devices, name)
        other = dataclasses.replace(device, **{constant: 1.5 * getattr(device, constant)})
        figure = published.Figure(name, quantity, "mobilenet_v1", 6, 6, 0.0, 0)
        figure = figure._replace(value=fit.total(other, figure))
        found = fit.fit(device, constant, figure)
        assert getattr(found, constant) == pytest.approx(getattr(other, constant))


@pytest.mark.parametrize("bits", [4, 6])
def test_predictions_do_not_depend_on_which_figure_is_fitted(bits):
    found = [abs(one.error) for one in fit.predictions(bits) if not one.fitted]
    assert len(found) == 21
    assert np.mean(found) < 0.03


def test_a_bitwidth_that_was_not_published_is_refused():
    with pytest.raises(InputError, match="bits=5: must be 4, 6 or 8, which were published for "):
        fit.fitted(5)


def test_no_layer_keeps_eight_bits_in_the_published_latencies():
    """Over bitwidth b they are p b^2 + q b; a layer kept at 8 bits would add a constant."""
    for device in ("BISMO_EDGE", "BISMO_CLOUD"):
        for network in published.NETWORKS:
            values = {
                f.w_bits: f.value
                for f in published.BISMO
                if (f.device, f.network) == (device, network)
            }
            assert tuple(values) == BITS
            p, q = np.linalg.solve([[16, 4], [64, 8]], [values[4], values[8]])
            for bits in (5, 6):
                assert p * bits**2 + q * bits == pytest.approx(values[bits], rel=0.01)


def test_the_model_is_picked_by_the_device():
    conv = Conv("a", 1, 1, 1, 1, 16, 32, 8, 8)
    for device in (devices.CPU_VNNI, devices.BISMO_EDGE, devices.BITFUSION):
        assert cost.latency_ms(device, conv, [4, 8], 8).shape == (2,)
    assert cost.energy_mj(devices.BITFUSION, conv, [4, 8], 8).shape == (2,)
    with pytest.raises(InputError, match="Bismo: its energy is not known"):
        cost.energy_mj(devices.BISMO_EDGE, conv, 8, 8)

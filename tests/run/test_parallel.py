import itertools
import socket

import pytest

from qnas_jax.errors import InputError
from qnas_jax.run import parallel

COSTS = (1.5, 0.5, 2.0, 4.0, 2.5, 0.3)


def cost(group):
    return sum(COSTS[i] for i in group)


def test_partitions_are_all_and_each_once():
    # Bell and Stirling numbers.
    assert len(list(parallel.partitions(6, 6))) == 203
    assert len(list(parallel.partitions(6, 2))) == 1 + 31
    found = [frozenset(map(frozenset, groups)) for groups in parallel.partitions(5, 3)]
    assert len(found) == len(set(found)) == 1 + 15 + 25
    assert all(sorted(itertools.chain(*groups)) == list(range(5)) for groups in found)


@pytest.mark.parametrize("devices", range(1, 7))
def test_groups_are_those_of_brute_force(devices):
    groups = parallel.lay_out(cost, 6, devices, parts=1)
    assert groups.replicas == 1
    slowest = min(
        max(sum(c for c, at in zip(COSTS, places, strict=True) if at == d) for d in range(devices))
        for places in itertools.product(range(devices), repeat=6)
    )
    assert parallel.cost_of_slowest(cost, groups.members) == pytest.approx(slowest)


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 6, 8, 12, 64])
@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_more_devices_are_never_slower_and_never_more_than_there_are(devices, parts):
    groups = parallel.lay_out(cost, 6, devices, parts)
    assert parts % groups.replicas == 0
    assert len(groups.members) * groups.replicas <= devices
    here, fewer = (
        parallel.cost_of_slowest(cost, found.members) / found.replicas
        for found in (groups, parallel.lay_out(cost, 6, max(devices - 1, 1), parts))
    )
    assert here <= fewer


def test_one_process_has_all_of_a_batch():
    assert parallel.share(8) == range(8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host:1234", ("host", 1234)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
    ],
)
def test_an_address_is_taken_apart_as_sockets_want_it(text, expected):
    assert parallel.address("--coordinator", text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "host", ":1", "host:", "host:0", "host:70000", "host:-1", "host:x", "host:\u00b2"),
        *("::1", "::1:1234", "[::1]", "[::1]:0", "[::1:1234", "::1]:1234", "[host]:1", "[]:1"),
        *("http://host:1", "a b:1"),
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(InputError, match=r"--coordinator=.*: must be HOST:PORT.*\[::1\]:1234"):
        parallel.address("--coordinator", text)


def test_a_port_is_found_at_an_ipv6_address():
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with listener:
        text = f"[::1]:{listener.getsockname()[1]}"
        parallel.wait_for_port(*parallel.address("--coordinator", text), 0)


def test_a_port_that_nobody_listens_at_and_a_host_that_is_none_are_said():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        with pytest.raises(InputError, match=f"127.0.0.1, port {port}: no answer"):
            parallel.wait_for_port("127.0.0.1", port, 0)
    with pytest.raises(InputError, match="port 80: no answer"):
        parallel.wait_for_port("a..b", 80, 300)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(AssertionError(), "JAX has no plugin for it"), (RuntimeError("no such\nx"), "no such")],
)
def test_devices_that_are_not_here_are_said_in_a_line(monkeypatch, error, reason):
    def devices():
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.delenv("JAX_PLATFORM_NAME", raising=False)
    monkeypatch.setattr(parallel.jax, "devices", devices)
    with pytest.raises(InputError, match="JAX_PLATFORMS=cuda: no such device") as caught:
        parallel.check_devices()
    assert f"({reason})" in str(caught.value) and "\n" not in str(caught.value)

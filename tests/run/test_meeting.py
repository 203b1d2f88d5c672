"""How processes find each other."""

import socket

import pytest

from qnas_jax.errors import InputError
from qnas_jax.run import meeting


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
    assert meeting.address("--coordinator", text) == expected


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
        meeting.address("--coordinator", text)


def test_a_port_is_found_at_an_ipv6_address():
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with listener:
        text = f"[::1]:{listener.getsockname()[1]}"
        meeting.wait_for_port(*meeting.address("--coordinator", text), 0)


def test_a_port_that_nobody_listens_at_and_a_host_that_is_none_are_said():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        with pytest.raises(InputError, match=f"127.0.0.1, port {port}: no answer"):
            meeting.wait_for_port("127.0.0.1", port, 0)
    with pytest.raises(InputError, match="port 80: no answer"):
        meeting.wait_for_port("a..b", 80, 300)


@pytest.mark.parametrize(
    "given",
    [("localhost:1", None, None), ("localhost:1", 2, None), (None, 2, 1), (None, None, 0)],
)
def test_the_three_settings_come_together(given):
    with pytest.raises(InputError, match="give all three or none"):
        meeting.meet(*given)


def test_the_number_of_a_process_is_below_their_number():
    with pytest.raises(InputError, match=r"--process=2: must be below --processes=2"):
        meeting.meet("localhost:1", 2, 2)


def test_nothing_is_waited_for_where_nothing_says_that_there_are_others(monkeypatch):
    for name in ("SLURM_STEP_NODELIST", "KUBERNETES_SERVICE_HOST", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert not meeting.meet(None, None, None)


STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(("tasks", "expected"), [("1", 1), ("12", 12)])
def test_a_step_of_slurm_says_how_many_processes_it_has(monkeypatch, tasks, expected):
    for name, value in {**STEP, "SLURM_NTASKS": tasks}.items():
        monkeypatch.setenv(name, value)
    assert meeting._detected() == expected

import numpy as np
import pytest

from qnas_jax.errors import InputError
from qnas_jax.search import front

SUBNET = "k3e6-k5e3.w8a8"


def point(rank, nsr, size_bytes, encoder_size_bytes, subnet=SUBNET, **costs):
    sizes = {"size_bytes": size_bytes, "encoder_size_bytes": encoder_size_bytes}
    return front.Point(rank, nsr, subnet, {**sizes, **costs})


def test_budgets_that_cannot_be_met_are_refused_with_what_there_is():
    points = [
        point(0, 1.0, 1500, 900, latency_ms=2.5, energy_mj=9.0),
        point(1, 2.0, 1200, 800, latency_ms=4.0, energy_mj=7.25),
    ]
    cases = [
        ({"latency_ms": 2.0}, "a budget of 2 ms: the fastest subnet takes 2.5"),
        ({"energy_mj": 7}, "a budget of 7 mJ: the lowest-energy subnet takes 7.25"),
        (
            {"size_bytes": 1200, "latency_ms": 2.0},
            "a budget of 2 ms: the fastest subnet takes 2.5",
        ),
        (
            {"size_bytes": 1200, "latency_ms": 3.5},
            "budgets of 1200 bytes and 3.5 ms: no subnet meets all; "
            "the nearest has 1200 bytes and 4 ms",
        ),
    ]
    for budgets, message in cases:
        with pytest.raises(InputError) as error:
            front.best_under(points, budgets)
        assert str(error.value) == message
    assert front.within(points, {}) == points


def random_points(seed, costs):
    """A front with no short decimals."""
    rng = np.random.default_rng(seed)
    return [
        point(
            rank, float(nsr), 10**6 - rank, 333333, **{name: float(rng.random()) for name in costs}
        )
        for rank, nsr in enumerate(np.sort(rng.random(9)))
    ]


@pytest.mark.parametrize("costs", [(), ("latency_ms",), ("latency_ms", "energy_mj")])
def test_a_front_is_read_as_it_was_written(tmp_path, costs):
    points = random_points(len(costs), costs)
    front.write(tmp_path / "search" / "front.csv", points)
    assert front.read(tmp_path / "search" / "front.csv") == points
    lines = (tmp_path / "search" / "front.csv").read_text().splitlines()
    assert lines[0] == ",".join(["rank,nsr,size_bytes,encoder_size_bytes", *costs, "subnet"])
    assert len(lines) == 1 + len(points)
    cells = [points[0].nsr, 10**6, 333333, *(points[0].costs[name] for name in costs), SUBNET]
    assert lines[1] == ",".join(map(str, (0, *cells)))
    saved = "\ufeff" + "\r\n".join([*(f"{line}," for line in lines), ",,", ""])  # a spreadsheet
    (tmp_path / "search" / "front.csv").write_bytes(saved.encode())
    assert front.read(tmp_path / "search" / "front.csv") == points


def test_columns_do_not_depend_on_the_order_in_which_costs_are_known(tmp_path):
    points = random_points(0, ("latency_ms", "energy_mj"))
    turned = [one._replace(costs=dict(reversed(one.costs.items()))) for one in points]
    for name, some in (("a", points), ("b", turned)):
        front.write(tmp_path / name, some)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def points_of(sizes):
    return [point(i, 0.1 * i, s, s - 10) for i, s in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "count", "picked"),
    [
        (range(100, -1, -5), 5, [100, 75, 50, 25, 0]),
        ([100, 90, 85, 80, 20, 10, 0], 3, [100, 80, 0]),  # 50: 80 and 20 are as near; the first
        ([100, 99, 98, 97, 0], 4, [100, 98, 97, 0]),  # 33, 67: each point only once
        ([7, 5, 3], 9, [7, 5, 3]),
        ([7], 5, [7]),
    ],
)
def test_subnets_to_retrain_are_spread_by_size(sizes, count, picked):
    found = front.spread(points_of(list(sizes)), count)
    assert [one.costs["size_bytes"] for one in found] == picked
    assert [one.rank for one in found] == sorted(one.rank for one in found)


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"rank,nsr\n0,0.5\n",
        b"rank,nsr,size_bytes,encoder_size_bytes,subnet\n0,low,1,1,k3e6.w8a8\n",
        b"rank,nsr,size_bytes,encoder_size_bytes,subnet\n0,0.5\n",
        b"\xff\xfe\n\n",
    ],
    ids=["missing", "columns", "number", "short", "binary"],
)
def test_what_is_no_front_is_named_in_one_line(tmp_path, content):
    file = tmp_path / "front.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError) as error:
        front.read(file)
    state = "is missing" if content is None else "cannot be read ("
    assert str(error.value).startswith(f"{file}: {state}")
    assert "\n" not in str(error.value)

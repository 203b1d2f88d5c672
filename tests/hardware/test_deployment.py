import pytest

from qnas_jax import hardware, space
from qnas_jax.errors import InputError
from qnas_jax.hardware import deployment

BLOCKS = (space.Block(in_channels=8, channels=16, stride=2, dilation=1, depth=2),)
STEM = [space.Conv("stem", 3, 2, 1, 1, 3, 8, 32, 64)]
OPS, BITS = (space.Op(3, 1), space.Op(5, 3)), ((8, 8), (4, 6))


def deployed(name):
    places = hardware.places(BLOCKS, (16, 32))
    return deployment.Deployment(hardware.named(name), places, {"stem": STEM, "head": STEM})


def test_a_deployment_is_read_for_the_same_and_for_another_target(tmp_path):
    path = tmp_path / "search" / "deployed.json"
    deployment.write(path, deployed("bismo_edge"))
    for name in ("bismo_edge", "bitfusion"):
        found, expected = deployment.read(path, name, table=""), deployed(name)
        assert (found.target, found.places) == (expected.target, expected.places)
        assert found.fixed() == expected.fixed()
        read, made = (one.matrix(OPS, BITS) for one in (found, expected))
        assert {cost: values.tolist() for cost, values in read.items()} == {
            cost: values.tolist() for cost, values in made.items()
        }


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [("gpu", "", "hardware.target='gpu': must be"), ("none", "no.csv", "no.csv: no such file")],
)
def test_a_device_that_there_is_not_is_refused(name, table, message):
    with pytest.raises(InputError, match=f"^{message}"):
        deployment.device(name, table, deployed("none").places)

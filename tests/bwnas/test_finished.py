"""The networks of a finished run, found without training."""

import pytest

import chip
from qnas_jax import space
from qnas_jax.bwnas import finished, train_supernet
from qnas_jax.errors import InputError
from qnas_jax.hardware import size
from qnas_jax.run import artefacts
from qnas_jax.run.stage import read_json
from qnas_jax.stages import experiment
from qnas_jax.stages import train as train_stage

SMALL, LARGE = ("_".join([f"k3e2-{last}.w8a8", *["k3e2.w8a8"] * 5]) for last in ("k3e2", "k5e2"))


@pytest.fixture
def laid_out(tmp_path):
    """A run whose stages are finished, as far as their marks tell."""
    laid_out = chip.prepared(chip.smoke(), tmp_path)
    config, teacher = laid_out.config, chip.teacher_stage(laid_out)
    how = (config.space, config.supernet, config.seed)
    distilled = train_supernet.supernet_stage(tmp_path, teacher, *how)
    stages = [
        train_stage.subnet_stage(tmp_path, distilled, subnet, config.retrain)
        for subnet in (LARGE, SMALL)
    ]
    for stage, subnet in zip((teacher, *stages), ("teacher", LARGE, SMALL), strict=True):
        artefacts.write_json(stage.folder / "metrics.json", {"subnet": subnet})
    for stage in (teacher, distilled, *stages):
        stage.finish()
    return laid_out


def trained(laid_out):
    return finished.trained(laid_out.workdir, laid_out.config, laid_out.problem)


def test_networks_are_found_the_teacher_first_and_subnets_by_their_size(laid_out):
    assert finished.subnets(laid_out.workdir) == sorted([SMALL, LARGE])
    teacher, *subnets = trained(laid_out)
    assert teacher.stage.folder == laid_out.workdir / "teacher"
    assert teacher.subnet == experiment.teacher_subnet(laid_out.problem.teacher)
    assert [space.format_subnet(network.subnet) for network in subnets] == [SMALL, LARGE]
    sizes = [size.subnet_bytes(laid_out.searched.blocks, network.subnet) for network in subnets]
    assert sizes == sorted(sizes)
    for network in subnets:
        assert network.stage.folder.name == space.format_subnet(network.subnet)
        assert network.model == laid_out.problem.student(network.subnet)


@pytest.mark.parametrize("name", ["teacher", f"retrain/{SMALL}"])
def test_a_network_that_is_not_finished_is_refused(laid_out, name):
    place = laid_out.workdir / name / "made_from.json"
    artefacts.write_json(place, {**read_json(place), "done": False})
    with pytest.raises(InputError, match=rf"{name}: is not finished; launch/main\.py resumes it"):
        trained(laid_out)


def test_a_finished_network_whose_checkpoint_is_gone_is_not_trained_again(laid_out):
    """It would be another than the stages behind were made from."""
    with pytest.raises(InputError, match=r"teacher/checkpoint/\d+: is missing; put it back, or"):
        config = laid_out.config
        how = (laid_out.workdir, laid_out.problem, laid_out.how)
        train_stage.train_teacher(*how, config.network, config.teacher)


# As an early version wrote them for `configs/smoke.py`.
TEACHER = {
    "data": {
        "source": "streets", "root": "", "height": 32, "width": 64, "train_images": 16,
        "val_images": 6, "seed": 0,
    },
    "network": {
        "width": 0.25, "strides": [1, 2, 2, 1, 1, 1, 1], "dilations": [1, 1, 1, 2, 2, 4, 4],
        "head_channels": 16, "rates": [1], "dropout": 0.0,
    },
    "train": {
        "steps": 6, "batch": 4, "lr": 0.05, "momentum": 0.9, "power": 0.9, "weight_decay": 0.0005,
        "crop": [32, 64], "scale": [0.5, 2.0], "compute": "float32",
    },
    "teacher": {"checkpoint": ""},
    "quantize": {"images": 4, "images_per_pass": 8},
    "seed": 0,
}  # fmt: skip
SUPERNET = {
    "teacher": "3fe8dacda646",
    "kernels": [3, 5], "expansions": [2], "depths": [2, 1, 1, 1, 1, 1],
    "supernet": {
        "steps": 4, "batch": 4, "lr": [0.05, 0.05, 0.05, 0.05, 0.05, 0.05], "momentum": 0.9,
        "power": 0.9, "weight_decay": 0.0001, "clip": 0.0, "sampling": "fair", "parts": 1,
        "compute": "float32",
    },
    "seed": 0,
}  # fmt: skip
SUBNET = {"supernet": "7c573cdc4773", "subnet": SMALL, "init": "supernet"}
OLDER = {
    "teacher": ("3fe8dacda646", TEACHER),
    "supernet": ("7c573cdc4773", SUPERNET),
    f"retrain/{SMALL}": ("0123456789ab", SUBNET),
}


@pytest.mark.parametrize("removed", [None, ("train", "compute"), ("supernet", "parts")])
def test_networks_of_an_early_version_stay_finished(tmp_path, removed):
    """Also those of a version whose sections had fewer fields."""
    for name, (known, made_from) in OLDER.items():
        if removed and removed[0] in made_from and name in ("teacher", "supernet"):
            section = {k: v for k, v in made_from[removed[0]].items() if k != removed[1]}
            made_from = {**made_from, removed[0]: section}
        mark = {"hash": known, "made_from": made_from, "done": True, "began": 0.0, "seconds": 1.0}
        artefacts.write_json(tmp_path / name / "made_from.json", mark)
        artefacts.write_json(tmp_path / name / "metrics.json", {"subnet": SMALL})
    laid_out = chip.prepared(chip.smoke(), tmp_path)
    assert [network.stage.hash for network in trained(laid_out)] == ["3fe8dacda646", "0123456789ab"]
    laid_out.config.supernet.parts = 2
    with pytest.raises(InputError, match=r"supernet\.parts: 1, now 2"):
        trained(laid_out)

"""The benchmark of the HAQ search: its program on a small network, and figures of known seconds."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

NETWORK = """
import flax.linen as nn
from qnas_jax.nn.conv import LINEAR, ConvBnAct
from qnas_jax.nn.units import Add, Input, Mean


class Small(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, images, train=False):
        x = ConvBnAct(8, 3, 2, name="stem")(Input(name="input")(images), train)
        y = ConvBnAct(8, 3, depthwise=True, name="depthwise")(x, train)
        y = ConvBnAct(8, bounds=LINEAR, name="project")(y, train)
        x = Mean(name="mean")(Add(name="add")(x, y))
        return ConvBnAct(self.classes, bounds=LINEAR, norm=False, name="last")(x, train)


def get(classes):
    return Small(classes)
"""
CONFIG = """
from qnas_jax.haq import config


def get_config():
    return config.Config(
        data=config.Data(source="objects", height=32, width=32, train_images=64, val_images=8),
        train=config.Train(crop=(32, 32)),
        quantize=config.Quantize(images=8, images_per_pass=8),
        haq=config.Haq(
            network=__file__.replace("config.py", "own_network.py:get"),
            ranges="min_max",
            norm_images=4,
            budgets=(6.0,),
        ),
        agent=config.Agent(hidden=(8, 8), batch=4),
    )
"""


@pytest.fixture
def bench(monkeypatch):
    """The benchmark's modules, which lie beside each other."""
    monkeypatch.syspath_prepend(str(ROOT / "launch" / "bench"))
    return importlib.import_module


def figures(folder, *arguments):
    """The JSON file of the subject, with a small network and two agents."""
    (folder / "own_network.py").write_text(NETWORK)
    config, file = folder / "config.py", folder / "figures.json"
    config.write_text(CONFIG)
    command = [sys.executable, "launch/bench/main.py", "haq", "--agents=2", "--episodes=1"]
    command += ["--images=6", "--side-by-side=3", f"--config={config}", f"--json={file}"]
    done = subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())


def check(found):
    assert (found["convolutions"], found["updates_per_episode"]) == (4, 8)
    assert (found["images"], found["norm_images"], found["batch"]) == (6, 4, 4)
    parts = [found[f"{name}_s"] for name in ("propose", "score", "update")]
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(found["episode_s"])
    shares = [found[f"{name}_share"] for name in ("propose", "score", "update")]
    assert sum(shares) == pytest.approx(1)
    assert shares[1] == pytest.approx(found["score_s"] / found["episode_s"])
    assert found["episodes_per_s"] == pytest.approx(2 / found["episode_s"])
    assert found["update_s_per_agent"] == pytest.approx(found["update_s"] / 2)
    (alone,) = found["side_by_side"]
    assert alone["agents"] == 3
    assert alone["update_s_per_agent"] == pytest.approx(alone["update_s"] / 3)


@pytest.mark.slow
def test_episodes_are_measured(tmp_path):
    found = figures(tmp_path, "--no-torch")
    check(found)
    assert not any("torch" in name for name in found)


def test_rates_follow_from_the_seconds(bench):
    first = {"propose_s": 3.0, "score_s": 21.0, "update_s": 1.5, "episode_s": 25.5}
    best = {"propose_s": 0.5, "score_s": 1.0, "update_s": 2.5, "episode_s": 4.0}
    one = {"propose_s": 1.0, "score_s": 2.0, "update_s": 3.0, "episode_s": 6.0}
    all_cores = {"propose_s": 1.0, "score_s": 1.0, "update_s": 8.0, "episode_s": 10.0}
    found = bench("haq")._rated(2, first, best, {"cpu_1_threads": one, "cuda": all_cores})
    assert found["episodes_per_s"] == 0.5, "two agents in four seconds"
    assert found["update_share"] == 0.625
    assert found["compile_s"] == 2.5 + 20, "none where the first is the faster"
    assert found["ratio_torch"] == 3, "above one where torch is slower; of its faster episodes"
    assert found["torch_cuda"]["ratio"] == 5
    assert found["ratio_torch_score"] == 2.0 / 0.5, "for an agent"


@pytest.mark.bench
def test_torchs_network_is_the_same(tmp_path):
    found = figures(tmp_path)
    check(found)
    assert found["max_diff_logits_cpu"] < 1e-4
    assert found["equal_predictions_cpu"] > 0.8
    assert found["ratio_torch"] > 0

"""Files of finished stages that are damaged: whoever reads them tells of each in one line."""

import numpy as np
import pytest

from qnas_jax import metrics
from qnas_jax.bwnas import config
from qnas_jax.data import labels
from qnas_jax.data.batching import Batch
from qnas_jax.errors import InputError
from qnas_jax.report import page
from qnas_jax.run import artefacts
from qnas_jax.run.stage import Stage
from qnas_jax.search import front
from qnas_jax.stages import export as export_stage
from qnas_jax.stages import latency as latency_stage
from qnas_jax.tasks import segmentation

SUBNET = "k3e3.w8a8"


def write_report(workdir):
    samples = Batch(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 8, 8), np.uint8))
    page.write(workdir, metrics.MIOU, labels.NAMES, {}, [workdir / "retrain" / SUBNET], samples)


def check_files(workdir):
    task = segmentation.task(labels.NAMES)
    export_stage.check([workdir / "export" / SUBNET], task, 1.0)


def tell_of_files(workdir):
    export_stage.summary({SUBNET: workdir / "export" / SUBNET}, "miou", {SUBNET: {}})


READERS = {
    "teacher/metrics.json": write_report,
    f"retrain/{SUBNET}/metrics.json": write_report,
    f"retrain/{SUBNET}/samples.npz": write_report,
    "supernet/nsr.json": write_report,
    "latency/latency.json": latency_stage.of_run,
    f"export/{SUBNET}/parity.json": check_files,
    f"export/{SUBNET}/model.json": tell_of_files,
}


@pytest.fixture
def workdir(tmp_path):
    """What some finished stages leave."""
    figures = {"miou_fp32": 50.0, "miou_quantized": 49.0, "size_bytes": 9, "encoder_size_bytes": 8}
    network = {"subnet": SUBNET, "class_iou_quantized": [1.0] * 19, **figures}
    for folder in ("teacher", f"retrain/{SUBNET}"):
        artefacts.write_json(tmp_path / folder / "metrics.json", network)
        np.savez(tmp_path / folder / "samples.npz", quantized=np.zeros((1, 8, 8), np.uint8))
    path = {"nsr": 1.0}
    block = {"training": 1.0, "largest": path, "smallest": path, "random": [path]}
    artefacts.write_json(tmp_path / "supernet" / "nsr.json", {"blocks": [block]})
    sizes = {"size_bytes": 9, "encoder_size_bytes": 8}
    front.write(tmp_path / "search" / "front.csv", [front.Point(0, 1.0, SUBNET, sizes)])
    artefacts.write_json(tmp_path / "latency" / "latency.json", {"networks": {}})
    for name, parts in (
        ("parity", ("miou", "agreement")),
        ("model", ("file_bytes", "graph_bytes")),
    ):
        held: dict = {part: {} for part in parts}
        artefacts.write_json(tmp_path / "export" / SUBNET / f"{name}.json", held)
    for file in READERS:
        Stage((tmp_path / file).parent, {}).finish()
    artefacts.write_json(tmp_path / "config.json", config.Config())
    return tmp_path


@pytest.mark.parametrize("file", READERS)
def test_a_damaged_file_of_a_finished_stage_takes_one_line(workdir, file):
    path, whole = workdir / file, (workdir / file).read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"{}", b"[]", None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(InputError) as error:
            READERS[file](workdir)
        message = str(error.value)
        assert message.startswith(
            f"{path}: {'cannot be read (' if path.exists() else 'is missing; '}"
        )
        what = "delete it and made_from.json" if path.exists() else "delete made_from.json"
        assert message.endswith(
            f"; {what} next to it, then repeat the command of the run that wrote it"
        )
        assert "\n" not in message


def test_whole_files_make_a_report(workdir):
    write_report(workdir)
    assert (workdir / "report" / "index.html").exists()
    latency_stage.of_run(workdir)
    check_files(workdir)

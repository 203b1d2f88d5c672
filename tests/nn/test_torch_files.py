"""Files of PyTorch, written by hand here: what is read, and what is refused. Nothing runs."""

import io
import os
import pathlib
import pickle
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from in_files import refusal
from qnas_jax.nn import torch_files

RNG = np.random.default_rng(0)
HELD = {
    "stem.weight": RNG.normal(0, 1, (4, 3, 3, 3)).astype(np.float32),
    "stem.bias": RNG.normal(0, 1, 4).astype(np.float32),
    "stem.num_batches_tracked": np.array(7, np.int64),
}
KINDS = {"<f4": "FloatStorage", "<i8": "LongStorage"}


class Global:
    """A name in a pickle."""

    def __init__(self, name):
        self.name = name


class Called:
    """What a call gives, in a pickle."""

    def __init__(self, name, *arguments):
        self.name, self.arguments = name, arguments


class Stored:
    """What a persistent id stands for, in a pickle."""

    def __init__(self, key, kind, count, device="cpu"):
        self.identity = ("storage", Global(f"torch.{kind}"), key, device, count)


def written(value):
    """The instructions of protocol 2 that build a value."""
    match value:
        case Global():
            module, _, name = value.name.rpartition(".")
            return b"c" + f"{module}\n{name}\n".encode()
        case Called():
            return written(Global(value.name)) + written(value.arguments) + b"R"
        case Stored():
            extra = (None,) if isinstance(value, Legacy) else ()
            return written((*value.identity, *extra)) + b"Q"
        case bool() | None:
            return {True: b"\x88", False: b"\x89", None: b"N"}[value]
        case int():
            return pickle.dumps(value, 2)[2:-1]
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(written, value)) + b"t"
        case list():
            return b"](" + b"".join(map(written, value)) + b"e"
        case dict():
            items = b"".join(written(k) + written(v) for k, v in value.items())
            return written(Called("collections.OrderedDict")) + b"(" + items + b"u"
    raise TypeError(value)


class Legacy(Stored):
    """A storage of the older format."""


def pickled(value):
    return b"\x80\x02" + written(value) + b"."


def tensors(held, stored=Stored):
    """The tensors of a state dict as PyTorch pickles them, and their storages."""
    tree, storages = {}, {}
    for number, (name, array) in enumerate(held.items()):
        strides = tuple(step // array.itemsize for step in array.strides)
        storage = stored(str(number), KINDS[array.dtype.str], array.size)
        how = (storage, 0, array.shape, strides, False, Called("collections.OrderedDict"))
        tree[name] = Called("torch._utils._rebuild_tensor_v2", *how)
        storages[str(number)] = array.tobytes()
    return tree, storages


def zipped(tree, storages, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled(tree))
        archive.writestr("archive/byteorder", "little")
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return file.getvalue()


def legacy(tree, storages, counts, magic=torch_files._MAGIC):
    info = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = [pickled(one) for one in (magic, 1001, info, tree, list(storages))]
    data = [struct.pack("<q", counts[key]) + one for key, one in storages.items()]
    return b"".join(head + data)


def file_of(kind, held=HELD, wrap=lambda tree: tree):
    if kind == "safetensors":
        return safetensors.numpy.save(held)
    tree, storages = tensors(held, Stored if kind == "zip" else Legacy)
    counts = {str(i): array.size for i, array in enumerate(held.values())}
    tree = wrap(tree)
    return zipped(tree, storages) if kind == "zip" else legacy(tree, storages, counts)


def read(content, tmp_path, name="x.pth"):
    (tmp_path / name).write_bytes(content)
    return torch_files.read(tmp_path / name)


def refused(content, tmp_path, name="x.pth"):
    (tmp_path / name).write_bytes(content)
    message = refusal(lambda: torch_files.read(tmp_path / name))
    assert message.startswith(f"{tmp_path / name}: ") and "\n" not in message
    return message


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_tensors_are_read_bit_by_bit(kind, tmp_path):
    name = "x.safetensors" if kind == "safetensors" else "x.pth"
    found = read(file_of(kind), tmp_path, name)
    assert list(found) == list(HELD) or kind == "safetensors"
    for name, array in HELD.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_what_training_adds_is_passed_over(kind, tmp_path):
    def wrap(tree):
        scalar = Called("numpy.core.multiarray.scalar", "f8")
        history = Called("mmengine.logging.history_buffer.HistoryBuffer", [1, 2])
        return {"meta": {"epoch": 3, "loss": scalar}, "hub": history, "state_dict": tree}

    found = read(file_of(kind, wrap=wrap), tmp_path)
    assert set(found) == set(HELD)


def test_views_and_parameters_are_tensors(tmp_path):
    base = HELD["stem.weight"]
    storage = Stored("0", "FloatStorage", base.size)
    rebuilt = "torch._utils._rebuild_tensor_v2"
    part = Called(rebuilt, storage, 27, (3, 2), (1, 9), False, None)
    tree = {"part": part, "parameter": Called("torch._utils._rebuild_parameter", part, True, None)}
    found = read(zipped(tree, {"0": base.tobytes()}), tmp_path)
    expected = base.reshape(-1)[27 + np.arange(3)[:, None] + 9 * np.arange(2)]
    for name in tree:
        np.testing.assert_array_equal(found[name], expected)


# Each would run if the file were unpickled.
ATTACKS = {
    "os.system": lambda text: Called("posix.system", text),
    "eval": lambda text: Called("builtins.eval", f"__import__('os').system({text!r})"),
    "getattr": lambda text: Called("builtins.getattr", Global("os.path"), "os"),
    "subprocess": lambda text: Called("subprocess.getoutput", text),
    "import": lambda text: Global("some_module.anything"),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_a_file_that_would_run_something_is_refused_and_runs_nothing(attack, kind, tmp_path):
    mark = tmp_path / "ran"
    evil = ATTACKS[attack](f"touch {mark}")
    message = refused(file_of(kind, wrap=lambda tree: {"a": evil, "state_dict": tree}), tmp_path)
    assert "refused, as PyTorch would call or import" in message
    assert not mark.exists()


def test_these_attacks_work_on_pickle(tmp_path):
    """Else the test above says nothing."""
    mark = tmp_path / "ran"
    pickle.loads(pickled(ATTACKS["os.system"](f"touch {mark}")))
    assert mark.exists()


def test_nothing_that_is_named_is_called_or_imported(tmp_path, monkeypatch):
    """Not even what PyTorch itself would call: the classes here need not exist."""
    tree, storages = tensors(HELD)
    tree["extra"] = Called("mmseg.no_such_module.NoSuchClass", 1)
    monkeypatch.setattr(pickle, "loads", None)
    monkeypatch.setattr(pickle, "Unpickler", None)
    assert set(read(zipped(tree, storages), tmp_path)) == set(HELD)


def one(shape, strides, offset=0, count=4, kind="FloatStorage", data=bytes(16)):
    storage = Stored("0", kind, count)
    rebuilt = ("torch._utils._rebuild_tensor_v2", storage, offset, shape, strides, False, None)
    return zipped({"x": Called(*rebuilt)}, {"0": data})


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(one((5,), (1,)), id="too many"),
        pytest.param(one((2, 2), (3, 1)), id="beyond the end"),
        pytest.param(one((2,), (1,), offset=3), id="offset"),
        pytest.param(one((2,), (-1,), offset=3), id="backwards"),
        pytest.param(one((10**12,), (0,)), id="one number, repeated"),
        pytest.param(one((4,), (1,), count=2**60), id="huge"),
        pytest.param(one((4,), (1,), data=bytes(15)), id="short"),
        pytest.param(one((4,), (1,), kind="NoStorage"), id="unknown type"),
        pytest.param(one((2,), (1, 1)), id="strides"),
    ],
)
def test_tensors_that_do_not_fit_their_storage_are_refused(content, tmp_path):
    assert "is no file of weights, or is damaged (" in refused(content, tmp_path)


WHOLE_ZIP, WHOLE_LEGACY = file_of("zip"), file_of("legacy")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>404</html>", id="a web page"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\n", id="a pointer"),
        pytest.param(WHOLE_ZIP[:-40], id="a zip cut short"),
        pytest.param(WHOLE_LEGACY[:-40], id="cut short"),
        pytest.param(WHOLE_LEGACY[:60], id="cut short, early"),
        pytest.param(zipped(*tensors(HELD), zipfile.ZIP_DEFLATED), id="compressed"),
        pytest.param(b"\x80\x02r\xff\xff\xff\xff.", id="memory"),
        pytest.param(b"\x80\x02\x8e" + b"\xff" * 7 + b"\x7f.", id="a long text"),
        pytest.param(b"\x80\x02U\x03abcP1\n.", id="an id as text"),
        pytest.param(b"\x80\x02e.", id="no mark"),
        pytest.param(b"\x80\x02NNR.", id="a call of nothing"),
        pytest.param(legacy({}, {}, {}, magic=5), id="another number first"),
    ],
)
def test_other_and_damaged_files_are_refused_in_one_line(content, tmp_path):
    assert "is no file of weights, or is damaged (" in refused(content, tmp_path)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in a text that was damaged
def test_random_damage_never_ends_in_anything_else(tmp_path):
    """Either the line, or tensors: no other exception, whichever byte is changed."""
    rng = np.random.default_rng(0)
    for whole in (WHOLE_ZIP, WHOLE_LEGACY):
        for _ in range(300):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(whole) * 2 // 3, 3):
                damaged[place] = rng.integers(256)
            (tmp_path / "x.pth").write_bytes(damaged)
            try:
                torch_files.read(tmp_path / "x.pth")
            except torch_files.InputError as error:
                assert "\n" not in str(error)


def test_nested_values_take_no_time(tmp_path):
    """A tuple of itself twice, 200 times, as a key; and a list of lists, 100,000 deep."""
    doubled = b"\x80\x02}K\x00" + b"q\0h\0\x86" * 200 + b"Ns."
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    for content in (doubled, deep):
        refused(content, tmp_path)


def test_a_file_without_names_is_refused(tmp_path):
    whole = Called("torch.nn.modules.container.Sequential")
    for tree in (whole, [1, 2], {"lr": 1}):
        content = zipped(tree, {})
        assert "holds no tensors by name; save model.state_dict()" in refused(content, tmp_path)


def test_damaged_safetensors_are_refused(tmp_path):
    whole = file_of("safetensors")
    for content in (b"", whole[:-1], whole[:20], bytes(100)):
        assert "is no file of weights, or is damaged (" in refused(
            content, tmp_path, "x.safetensors"
        )


def test_missing_files_and_folders_are_refused(tmp_path):
    missing = tmp_path / "none.pth"
    assert refusal(lambda: torch_files.read(missing)) == f"{missing}: no such file"
    os.mkdir(missing)
    assert "is a folder" in refusal(lambda: torch_files.read(pathlib.Path(missing)))

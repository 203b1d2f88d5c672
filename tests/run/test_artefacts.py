"""Files of a run: whole or not at all, and their hashes."""

import dataclasses
import hashlib
import json

import pytest

from qnas_jax.run import artefacts
from qnas_jax.run.stage import read_json


@dataclasses.dataclass(slots=True)
class Inner:
    rates: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    name: str = "a"


def files(folder):
    return {f.name: f.read_bytes() for f in folder.iterdir() if not f.name.startswith(".")}


def test_dataclasses_and_tuples_become_plain_all_the_way_down():
    value = {"x": [Outer(Inner())], 3: (None, (True, 1.5))}
    plain = {"x": [{"inner": {"rates": [1, 2]}, "name": "a"}], "3": [None, [True, 1.5]]}
    assert artefacts.plain(value) == plain
    assert json.loads(json.dumps(artefacts.plain(value))) == plain


def test_a_digest_is_the_hash_of_sorted_json():
    text = '{"a": [1, 2], "b": {"rates": [1, 2]}}'
    expected = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert artefacts.digest({"b": Inner(), "a": (1, 2)}) == expected
    assert artefacts.digest({"a": [1, 2], "b": {"rates": [1, 2]}}) == expected
    others = [{"a": [1, 2], "b": Inner((1, 3))}, {"a": [1, 2]}, {"a": [1, 2], "b": {"rates": "12"}}]
    assert len({expected, *map(artefacts.digest, others)}) == 4


def test_a_file_appears_under_its_name_only_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file.bin"
    with artefacts.writing(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert [f.name for f in path.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_writing_that_fails_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error), artefacts.writing(path) as file:
        file.write(b"new, but not")
        raise error
    assert files(tmp_path) == {"file": b"old"}
    with artefacts.writing(path) as file:
        file.write(b"new")
    assert files(tmp_path) == {"file": b"new"}


def test_json_holds_dataclasses_as_they_are_written(tmp_path):
    artefacts.write_json(tmp_path / "a.json", Outer(Inner((4,))))
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"inner": {"rates": [4]}, "name": "a"}
    assert text.endswith("}\n")
    assert read_json(tmp_path / "a.json") == {"inner": {"rates": [4]}, "name": "a"}

"""Which room may import which. A room is a module or a folder of `qnas_jax`."""

import ast
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "qnas_jax"
MOST_LINES = 330

# A room imports from the lines above its own and from itself, never from its own line or below.
LAYERS = (
    {"errors", "space", "metrics"},
    {"quant"},
    {"run"},
    {"hardware", "kernels", "data", "search"},
    {"nn", "report"},
    {"ptq"},
    {"train", "tasks"},
    {"export"},
    {"profiling"},
    {"stages"},
    {"bwnas", "haq", "hqnas", "oneshot"},
    {"benchmark", "ranking"},
    {"programs"},
    {"__main__"},
)

SYSTEMS = ("bwnas", "haq", "hqnas", "oneshot")

# The only rooms that see a whole config; all others are given values.
READ_CONFIG = {"run", "stages", *SYSTEMS, "ranking", "programs"}

# What rooms may import from outside besides Python's own library.
ARRAYS = {"jax", "numpy", "jaxtyping", "optax"}
OUTSIDE = {
    "errors": set(),
    **{room: {"numpy"} for room in ("space", "hardware")},
    "search": {"numpy", "jax", "optax"},
    "run": {"numpy", "jax", "absl", "ml_collections"},
    "kernels": {"jax", "numpy", "jaxtyping"},
    "nn": ARRAYS | {"flax"},
    **{room: ARRAYS | {"flax"} for room in ("train", "ptq", "stages", *SYSTEMS, "ranking")},
    "benchmark": ARRAYS | {"flax"},
    "export": ARRAYS | {"flax", "onnx", "onnxruntime", "ai_edge_litert", "flatbuffers"},
    "profiling": ARRAYS | {"flax"},
    "data": {"numpy", "PIL"},
    "report": {"numpy", "matplotlib"},
    "programs": {"numpy", "jax", "absl", "ml_collections"},
    "__main__": set(),
}
# What C++ may include besides its standard library.
HEADERS = {"xla/ffi/api/ffi.h", "immintrin.h"}

# Imported inside of functions, because they take seconds or must wait for their moment.
LATE = {
    "train": {"orbax"},
    "run": {"tensorboardX"},
    "metrics": {"scipy"},
    "data": {"tensorflow_datasets", "array_record", "sklearn"},
    "nn": {"safetensors"},
    "search": {"scipy"},
}


def modules(package=PACKAGE):
    """(room, file) of every module; the package's own face is no room."""
    for file in sorted(package.rglob("*.py")):
        first = file.relative_to(package).parts[0].removesuffix(".py")
        if first != "__init__":
            yield first, file


def imports(file, late=True):
    """Whole names of what a file imports; without `late`, of what it imports at once."""
    tree = ast.parse(file.read_text())
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if node in inside and not late:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: imports are written in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_of(names):
    """The rooms among imported names."""
    return {name.split(".")[1] for name in names if name.startswith("qnas_jax.")}


def packages_of(names):
    """The packages from outside among imported names."""
    return {name.split(".")[0] for name in names} - {"qnas_jax", *sys.stdlib_module_names}


def wrong_directions(package):
    places = {room: place for place, layer in enumerate(LAYERS) for room in layer}
    return [
        f"{file.relative_to(package)} imports {other}"
        for room, file in modules(package)
        for other in sorted(rooms_of(imports(file)) - {room})
        if places[other] >= places[room]
    ]


def config_readers(package):
    return {
        room
        for room, file in modules(package)
        if any(name.startswith("qnas_jax.run.config") for name in imports(file))
    }


def strangers(package):
    found = []
    for room, file in modules(package):
        allowed = OUTSIDE.get(room, ARRAYS)
        at_once, ever = packages_of(imports(file, late=False)), packages_of(imports(file))
        wrong = (at_once - allowed) | (ever - allowed - LATE.get(room, set()))
        found += [f"{file.relative_to(package)} imports {name}" for name in sorted(wrong)]
    return found


def uses_cpp(package):
    """Modules that import C++, which only its door may."""
    return [
        file.relative_to(package).as_posix()
        for _, file in modules(package)
        if "qnas_jax.kernels.native" in set(imports(file))
    ]


def cpp(package=PACKAGE):
    return sorted(file for file in package.rglob("*") if file.suffix in (".cc", ".h"))


def headers(file):
    """What a C++ file includes, its standard library left out (which has no `.h`)."""
    found = re.findall(r"^#include [<\"](.+)[>\"]$", file.read_text(), re.MULTILINE)
    return {name for name in found if name.endswith(".h")}


def too_long(package):
    files = [*(file for _, file in modules(package)), *cpp(package)]
    lengths = {file.name: len(file.read_text().splitlines()) for file in files}
    return {name: lines for name, lines in lengths.items() if lines >= MOST_LINES}


def test_every_room_has_a_place():
    places = [room for layer in LAYERS for room in layer]
    assert len(places) == len(set(places))
    assert {room for room, _ in modules()} <= set(places)


def test_rooms_import_only_from_above():
    assert not wrong_directions(PACKAGE)


def test_only_those_who_lay_out_a_run_read_its_config():
    assert config_readers(PACKAGE) <= READ_CONFIG


def test_rooms_import_only_their_packages():
    assert not strangers(PACKAGE)


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.py")), ids=lambda f: f.name)
def test_a_config_needs_nothing_but_its_settings(file):
    names = list(imports(file))
    systems = "|".join(SYSTEMS)
    assert all(re.match(rf"qnas_jax\.({systems})\.config$", name) for name in names)
    assert not packages_of(names)


def test_only_one_door_leads_to_cpp():
    assert uses_cpp(PACKAGE) == ["kernels/int8.py"]
    assert not [file for file in (ROOT / "launch").rglob("*.py") if "native" in file.read_text()]


def test_cpp_is_in_one_room_and_includes_nothing_else():
    assert {file.parent.name for file in cpp()} == {"kernels"}
    assert set().union(*map(headers, cpp())) <= HEADERS | {file.name for file in cpp()}


def test_files_stay_short():
    assert not too_long(PACKAGE)


BROKEN = """
import jax
from qnas_jax import space
from qnas_jax.run import config
def late():
    import flax.linen as nn
    from qnas_jax.nn.conv import ConvBnAct
    from qnas_jax.kernels import native
"""


def test_these_rules_find_what_breaks_them(tmp_path):
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "broken.py").write_text(BROKEN)
    (tmp_path / "search" / "broken.cc").write_text('#include "qnas.h"\n' * MOST_LINES)
    broken = [f"search/broken.py imports {room}" for room in ("kernels", "nn")]
    assert wrong_directions(tmp_path) == broken
    assert uses_cpp(tmp_path) == ["search/broken.py"]
    assert headers(*cpp(tmp_path)) == {"qnas.h"}
    assert too_long(tmp_path) == {"broken.cc": MOST_LINES}
    assert config_readers(tmp_path) == {"search"}
    assert strangers(tmp_path) == [f"search/broken.py imports {name}" for name in ("flax",)]

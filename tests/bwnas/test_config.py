import dataclasses
import math
import pathlib
import runpy

import pytest

from qnas_jax.bwnas import config
from qnas_jax.errors import InputError
from qnas_jax.run import cli, recipes
from qnas_jax.run import config as shared

ABOVE_ZERO = "must have a number above 0"
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"

BAD = [
    ("seed", -1, "must be at least 0"),
    ("data.source", "imagenet", f"must be {' or '.join(map(repr, shared.SOURCES))}"),
    ("data.height", 31, "must be at least 32"),
    ("data.width", 0, "must be at least 32"),
    ("data.train_images", 0, "must be at least 1"),
    ("data.val_images", 0, "must be at least 1"),
    ("data.seed", -1, "must be at least 0"),
    ("data.threads", 0, "must be at least 1"),
    ("data.cache_mb", -1, "must be at least 0"),
    ("data.corruptions", (("dark", 0.5), ("dark", 0.2)), "each name only once"),
    ("data.frequencies", (("car", 4.0), ("car", 2.0)), "each name only once"),
    ("network.width", 0.05, "must lie in [0.1, 4.0]"),
    ("network.width", 4.5, "must lie in [0.1, 4.0]"),
    ("network.width", math.nan, "must be finite numbers"),
    ("network.strides", (1, 2, 2), "must be 7 numbers"),
    ("network.strides", (1, 2, 2, 3, 1, 1, 1), "strides are 1 or 2"),
    ("network.dilations", (1, 1, 1, 2, 2, 4), "must be 7 numbers"),
    ("network.dilations", (1, 1, 1, 2, 2, 4, 0), "at least 1"),
    ("network.dilate", "last", "must be 'all' or 'first'"),
    ("network.padding", (128.0, 128.0), "must be 3 numbers"),
    ("network.padding", (128.0, 256.0, 0.0), "0 to 255"),
    ("network.head_channels", 7, "must be at least 8"),
    ("network.rates", (), "at least 1"),
    ("network.rates", (12, 0), "at least 1"),
    ("network.dropout", 1.0, "must lie in [0.0, 0.9]"),
    ("network.dropout", -0.1, "must lie in [0.0, 0.9]"),
    ("train.steps", 0, "must be at least 1"),
    ("train.batch", 0, "must be at least 1"),
    ("train.parts", 0, "must be at least 1"),
    ("train.parts", 3, "must divide train.batch=4"),
    ("train.lr", 0.0, "must be above 0"),
    ("space.kernels", (3.0, 5.0), "must be whole numbers below 2**31"),
    ("space.w_bits", ((8,),), "must be whole numbers below 2**31"),
    ("train.crop", 64, "must be a tuple, like (512, 1024)"),
    ("train.lr", math.inf, "must be finite numbers"),
    ("train.lr", math.nan, "must be finite numbers"),
    ("train.momentum", 1.0, "must lie in [0.0, 0.999]"),
    ("train.power", 0.0, "must be above 0"),
    ("train.weight_decay", -1e-4, "must be at least 0.0"),
    ("train.crop", (32,), "must be 2 numbers"),
    ("train.crop", (64, 31), "at least 32 pixels"),
    ("network.stem_stride", 3, "must be 1 or 2"),
    ("network.teacher_width", 0.2, "must lie in [network.width=0.25, 4.0], or be 0"),
    ("train.optimizer", "adam", "must be 'sgd' or 'adamw'"),
    ("train.warmup", 2, "must be 0 with train.optimizer='sgd'"),
    ("train.warmup", 6, "must lie in [0, train.steps=6)"),
    ("train.clip", -1.0, "must be at least 0"),
    ("train.flip", 1, "must be True or False"),
    ("train.scale", (0.5, 1.0, 2.0), "must be 2 numbers"),
    ("train.scale", (2.0, 0.5), "smallest, then largest, above 0"),
    ("train.scale", (0.0, 2.0), "smallest, then largest, above 0"),
    ("train.compute", "float16", "must be 'float32' or 'bfloat16'"),
    ("space.kernels", (), "odd, from 3"),
    ("space.kernels", (3, 4), "odd, from 3"),
    ("space.kernels", (1, 3), "odd, from 3"),
    ("space.kernels", (3, 5, 3), "each only once"),
    ("space.expansions", (1, 6), "at least 2"),
    ("space.expansions", (6, 6), "each only once"),
    ("space.depths", (3, 3, 4, 4, 3), "must be 6 numbers"),
    ("space.depths", (3, 3, 7, 4, 3, 1), "depths lie in [1, 6]"),
    ("space.depths", (0, 3, 4, 4, 3, 1), "depths lie in [1, 6]"),
    ("space.w_bits", (1, 4), "bitwidths lie in [2, 8]"),
    ("space.w_bits", (), "bitwidths lie in [2, 8]"),
    ("space.a_bits", (9,), "bitwidths lie in [2, 8]"),
    ("space.bits_per", "network", "must be 'block' or 'layer'"),
    ("supernet.steps", 0, "must be at least 1"),
    ("supernet.batch", -8, "must be at least 1"),
    ("supernet.lr", (0.1,) * 5, "must be 6 numbers"),
    ("supernet.lr", (0.1, 0.1, 0.1, 0.1, 0.1, 0.0), "above 0"),
    ("supernet.momentum", -0.1, "must lie in [0.0, 0.999]"),
    ("supernet.power", -1.0, "must be above 0"),
    ("supernet.weight_decay", math.nan, "must be finite numbers"),
    ("supernet.init", "zeros", "must be 'random' or 'teacher'"),
    ("supernet.optimizer", "adam", "must be 'sgd' or 'adamw'"),
    ("supernet.warmup", 4, "must lie in [0, supernet.steps=4)"),
    ("supernet.clip", -1.0, "must be at least 0"),
    ("supernet.parts", 0, "must be at least 1"),
    ("supernet.parts", 3, "must divide supernet.batch=4"),
    ("supernet.compute", "int8", "must be 'float32' or 'bfloat16'"),
    ("supernet.sampling", "all", "must be 'fair' or 'uniform'"),
    ("lut.calibration_images", 0, "must be at least 1"),
    ("lut.calibration_images", 17, "there are 16 training images"),
    ("lut.images", 0, "must be at least 1"),
    ("lut.images", 17, "there are 16 training images"),
    ("lut.images_per_pass", 0, "must be at least 1"),
    ("lut.nodes_per_pass", -1, "must be at least 0"),
    ("lut.ranges", "max", "must be 'min_max' or 'percentile' or 'mse' or 'kl'"),
    ("lut.a_ranges_per", "layer", "must be 'tensor' or 'channel'"),
    ("lut.compute", "bytes", "must be 'auto' or 'int8' or 'float32'"),
    ("lut.time_budget_s", -1.0, "must be at least 0"),
    ("lut.time_budget_s", math.nan, "must be finite numbers"),
    ("kernels.compile", "always", "must be 'auto' or 'never'"),
    ("quantize.images", 0, "must be at least 1"),
    ("quantize.images", 17, "there are 16 training images"),
    ("quantize.images_per_pass", 0, "must be at least 1"),
    ("quantize.ranges", "max", "must be 'min_max' or 'percentile' or 'mse' or 'kl' or 'best'"),
    ("quantize.weight_ranges", "best", "must be 'min_max' or 'mse' or 'kl'"),
    ("quantize.equalize", 1, "must be True or False"),
    ("quantize.rounding_steps", -1, "must be at least 0"),
    ("quantize.biases", 1, "must be True or False"),
    ("quantize.norms", 1, "must be True or False"),
    ("hardware.image_size", (96,), "must be 2 numbers"),
    ("hardware.image_size", (96, 31), "at least 32 pixels, or (0, 0)"),
    ("hardware.image_size", (0, 192), "at least 32 pixels, or (0, 0)"),
    ("search.costs", (), "must be among ('size_bytes', 'latency_ms', 'energy_mj')"),
    ("search.costs", ("nsr",), "must be among ('size_bytes', 'latency_ms', 'energy_mj')"),
    ("search.costs", ("latency_ms", "latency_ms"), "each only once"),
    ("search.costs", "latency_ms", "must be a tuple, like ('size_bytes',)"),
    ("search.epsilon", -0.01, "must lie in [0.0, 1.0]"),
    ("search.epsilon", math.nan, "must be finite numbers"),
    ("search.budgets", 1.2, "must be a tuple, like ()"),
    ("search.budgets", ("latency_ms", 1.2), "must be pairs, like (('size_bytes', 1.5),)"),
    ("search.budgets", ("latency_ms",), "must be pairs, like (('size_bytes', 1.5),)"),
    (
        "search.budgets",
        (("latency", 1.2),),
        "'latency' must be among ('size_bytes', 'latency_ms', 'energy_mj')",
    ),
    (
        "search.budgets",
        ((["size_bytes"], 1.2),),
        "['size_bytes'] must be among ('size_bytes', 'latency_ms', 'energy_mj')",
    ),
    *(
        ("search.budgets", (("size_bytes", bound),), f"'size_bytes' {ABOVE_ZERO}")
        for bound in (0, -1, math.inf, math.nan, "9", True, None)
    ),
    ("search.budgets", (("size_bytes", 9), ("size_bytes", 8)), "each name only once"),
    ("retrain.subnets", 0, "must be at least 1"),
    ("teacher.finetune", True, "needs teacher.checkpoint"),
    ("retrain.steps", -1, "must be at least 0"),
    ("retrain.lr", -0.1, "must be at least 0"),
    ("retrain.teacher", 1, "must be True or False"),
    ("retrain.distill", (("loss", 1.0),), "'loss' must be among ('logits', 'features')"),
    ("retrain.qat_steps", -1, "must be at least 0"),
    ("retrain.qat_lr", 0.0, "must be above 0"),
    ("retrain.qat_scale_rate", 1.5, "must lie in [0.0, 1.0]"),
    ("retrain.qat_norm_steps", 3, "must lie in [0, retrain.qat_steps=0)"),
    ("retrain.init", "zeros", "must be 'supernet' or 'scratch'"),
    ("audit.subnets", 7, "must be at least 8"),
    ("audit.seeds", 0, "must be at least 1"),
    ("audit.band", 1.5, "must lie in [0.0, 1.0]"),
    ("audit.steps", 0, "must be at least 1"),
    ("audit.batch", 0, "must be at least 1"),
    ("audit.lr", 0.0, "must be above 0"),
    ("audit.images", 0, "must be at least 1"),
    ("audit.norm_images", 0, "must be at least 1"),
    ("audit.front", 0, "must be at least 1"),
    ("audit.candidates", 0, "must be at least 1"),
    ("export.max_drop", -0.1, "must be at least 0.0"),
    ("run.save_every", 0, "must be at least 1"),
    ("run.log_every", 0, "must be at least 1"),
    ("run.per_dispatch", 0, "must be at least 1"),
    ("run.per_dispatch", 3, "must divide run.save_every=2"),
    ("run.eval_batch", 0, "must be at least 1"),
]
# Any text; whether there is such a thing is seen when it is read.
FREE = {"data.root", "data.name", "teacher.checkpoint", "hardware.target", "hardware.table"}


def load(name):
    return runpy.run_path(str(CONFIGS / name))["get_config"]()


def all_settings():
    for section in dataclasses.fields(config.Config):
        value = getattr(config.Config(), section.name)
        if dataclasses.is_dataclass(value):
            yield from (f"{section.name}.{field.name}" for field in dataclasses.fields(value))
        else:
            yield section.name


def with_setting(setting, value):
    """The smoke config, which has 16 training images, with one setting changed."""
    changed = load("smoke.py")
    *section, name = setting.split(".")
    setattr(getattr(changed, section[0]) if section else changed, name, value)
    return changed


def test_the_quickstart_has_the_network_of_its_teacher():
    assert load("streets.py").network == load("streets_teacher.py").network


def test_retraining_is_longer_than_the_warmup():
    changed = load("objects.py")
    changed.retrain.steps = changed.train.warmup
    with pytest.raises(InputError, match=r"retrain\.steps=100: must be above train\.warmup=100"):
        changed.check()


@pytest.mark.parametrize(("setting", "value", "rule"), BAD, ids=lambda v: str(v))
def test_a_bad_value_is_told_with_what_is_allowed(setting, value, rule):
    with pytest.raises(InputError) as error:
        with_setting(setting, value).check()
    shown = repr(value) if isinstance(value, str) else value
    assert str(error.value) == f"{setting}={shown}: {rule}"


def test_every_setting_has_a_value_that_is_refused():
    assert {setting for setting, _, _ in BAD} | FREE == set(all_settings())


def test_cityscapes_needs_a_folder():
    with pytest.raises(InputError) as error:
        with_setting("data.source", "cityscapes").check()
    assert str(error.value) == "data.root='': must be the folder with leftImg8bit/ and gtFine/"


def test_cityscapes_may_take_all_images_there_are():
    changed = with_setting("data.source", "cityscapes")
    changed.data.root = "anywhere"
    changed.data.train_images = changed.data.val_images = 0
    changed.check()


def test_int8_needs_one_range_for_all_channels():
    changed = with_setting("lut.a_ranges_per", "channel")
    for compute in ("auto", "float32"):
        changed.lut.compute = compute
        changed.check()
    changed.lut.compute = "int8"
    with pytest.raises(InputError, match="'int8': must be float32 with lut"):
        changed.check()


def test_bitwidths_of_weights_and_activations_come_in_pairs():
    changed = with_setting("space.w_bits", (4, 8))
    with pytest.raises(InputError) as error:
        changed.check()
    message = str(error.value)
    assert message.startswith("space.w_bits=(4, 8), space.a_bits=(8,): must be as many")
    assert "\n" not in message
    changed.space.a_bits = (8, 8)
    changed.check()
    changed.space.w_bits = (4, 4)
    with pytest.raises(InputError) as error:
        changed.check()
    assert str(error.value) == (
        "space.w_bits with space.a_bits=((4, 8), (4, 8)): each only once"
    )  # fmt: skip


@pytest.mark.parametrize("cost", ["latency_ms", "energy_mj"])
def test_a_budget_needs_its_cost_among_those_that_are_searched(cost):
    changed = with_setting("search.budgets", ((cost, 2.5),))
    with pytest.raises(InputError) as error:
        changed.check()
    assert str(error.value) == (
        f"search.costs=('size_bytes',): must have {cost!r}, which search.budgets bounds by 2.5"
    )
    changed.search.costs = ("size_bytes", cost)
    changed.check()


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.py")))
def test_every_config_of_the_folder_can_be_run(name):
    load(name).check()


def test_the_cityscapes_config_holds_the_published_values():
    published = load("cityscapes.py")
    assert (published.data.source, published.data.height, published.data.width) == (
        "cityscapes", 1024, 2048,
    )  # fmt: skip
    space = published.space
    assert (space.kernels, space.expansions) == ((3, 5, 7), (3, 6))
    assert space.depths == (3, 3, 4, 4, 3, 1)
    assert (space.w_bits, space.a_bits) == ((8,), (8,))
    network = published.network
    assert network.width == 1.0
    assert 2 * math.prod(network.strides) == 8, "output stride; the stem has stride 2"
    assert network.strides[1:] == (2, 2, 1, 1, 1, 1)
    assert network.dilations == (1, 1, 1, 2, 2, 4, 4) and network.dilate == "first"
    supernet = published.supernet
    assert supernet.lr == (0.002, 0.005, 0.005, 0.005, 0.005, 0.002)
    assert (supernet.steps, supernet.batch, supernet.momentum) == (13_334, 8, 0.9)
    train = published.train
    assert (train.steps, train.batch, train.lr, train.momentum) == (80_000, 8, 0.01, 0.9)
    assert train.crop == (512, 1024)


@pytest.mark.parametrize("section", ["network", "train", "space", "supernet", "lut", "quantize"])
def test_the_defaults_are_the_published_setup(section):
    default = getattr(config.Config(), section)
    if section == "network":  # a field that an older run lacks counts as its default
        default = dataclasses.replace(default, dilate="first", padding=(123.675, 116.28, 103.53))
    assert default == getattr(load("cityscapes.py"), section)


def test_settings_are_known_by_their_whole_name():
    assert cli.settings(config.Config()) == list(all_settings())
    assert cli.settings(None) == cli.settings({"seed": 0}) == []


def test_the_sections_are_those_that_all_systems_share():
    given = load("smoke.py")
    for name in shared.Config.__annotations__:
        assert type(getattr(given, name)).__module__ in (
            "builtins",
            shared.__name__,
            recipes.__name__,
        )


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("train.stepps", "config.train.stepps: no such setting; did you mean config.train.steps?"),
        ("sed", "config.sed: no such setting; did you mean config.seed?"),
        ("space.wbits", "config.space.wbits: no such setting; did you mean config.space.w_bits?"),
        ("xyzzy", "config.xyzzy: no such setting"),
    ],
)
def test_an_unknown_setting_suggests_the_nearest(key, message):
    known = cli.settings(config.Config())
    assert str(cli.unknown_setting(key, known)) == message

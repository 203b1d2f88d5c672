"""Prepares Cityscapes, CIFAR-10 or ImageNet for --config.data.source=tfds, without TensorFlow.

    qnas prepare --name=cityscapes --root=data/tfds
    qnas prepare --name=imagenet2012 --root=data/tfds --manual=downloads

Put the official archives into one folder, downloads/manual in the root unless --manual names it:
    cityscapes     leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip
    cifar10        cifar-10-binary.tar.gz
    imagenet2012   ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
They are checked before anything is written, and are not unpacked. After a stop the same command
continues with the first file that is not complete. TFDS itself reads the result.
"""

from absl import flags

from qnas_jax.data.tfds import find, prepare
from qnas_jax.run import paths

_NAME = flags.DEFINE_string("name", None, "cityscapes, cifar10 or imagenet2012.", required=True)
_ROOT = flags.DEFINE_string(
    "root", None, "The folder of prepared data sets: TFDS's data_dir.", required=True
)
_MANUAL = flags.DEFINE_string(
    "manual", None, "The folder with the archives. By default downloads/manual in the root."
)


def main() -> None:
    """Prepares the data set and prints its folder."""
    root = paths.folder("--root", _ROOT.value)
    manual = paths.named("--manual", _MANUAL.value) if _MANUAL.value else root / find.MANUAL
    print(prepare.prepare(_NAME.value, root, manual))

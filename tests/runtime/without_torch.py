"""Runs the command dafast where PyTorch and the packages around it cannot be imported."""

import sys

BLOCKED = {"torch", "torchvision", "transformers", "safetensors", "huggingface_hub", "triton"}


class Block:
    """Finds no module of the blocked packages."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Block())

import dafast  # noqa: E402

try:
    dafast.DepthAnything  # noqa: B018
except ImportError as error:
    print(error)
for name in ("SegmentationModel", "ops", "models"):
    try:
        getattr(dafast, name)
    except ImportError as error:
        assert "needs PyTorch" in str(error)  # noqa: PT017
    else:
        raise AssertionError(name)

from dafast.cli import main  # noqa: E402

for arguments in sys.argv[1:]:
    print("exit", main(arguments.split(" ")), flush=True)
assert not BLOCKED & {name.partition(".")[0] for name in sys.modules}

"""What several tests share."""

import os
import warnings
from pathlib import Path

import pytest
import torch
from skimage import data, util

# Tests run side by side on few cores; two pools of spinning threads slow each other down.
torch.set_num_threads(min(2, torch.get_num_threads()))

ROOT = Path(__file__).resolve().parents[1]


def shared_folder():
    """The folder of the original's numbers and of the benchmarks, which are not part of the repository."""
    return Path(os.environ.get("SELFDEBLUR_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def levin():
    """The folder of the Levin benchmark; skips where it is not at hand."""
    for folder in (ROOT / "datasets" / "levin", shared_folder() / "datasets" / "levin"):
        if (folder / "im1_kernel1_img.png").exists():
            return folder
    reason = "the Levin benchmark is not here; 'python -m selfdeblur fetch levin' gets it"
    warnings.warn(reason, stacklevel=1)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def picture():
    """A sharp grey image (512, 512), range 0 to 1."""
    return util.img_as_float(data.camera())[100:300, 150:350].copy()

"""What several tests share."""

import os
import shutil
import signal
import warnings

# Tests run side by side, one on each core: threads would only wait for each other. It is read where PyTorch is loaded.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import torch

if not torch.cuda.is_available():
    # It is read where the kernels for GPUs are loaded, if Triton is there.
    os.environ["TRITON_INTERPRET"] = "1"

import processes
import pytest
from common import ROOT, SHARED
from skimage import data, util
from thin import make_searches_short, make_thin

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--headless",
]

torch.set_num_threads(1)
# A job in the background of a shell is started with SIGINT ignored, which some tests send.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Mark what is known by what it needs; the markers are those of pyproject.toml."""
    for item in items:
        for marker in ("browser", "octave", "slurm"):
            if marker in item.fixturenames:
                item.add_marker(marker)
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("fuzz")


@pytest.fixture(scope="session")
def levin():
    """The folder of the Levin benchmark; skips where it is not at hand."""
    for folder in (ROOT / "datasets" / "levin", SHARED / "datasets" / "levin"):
        if (folder / "im1_kernel1_img.png").exists():
            return folder
    reason = "the Levin benchmark is not here; 'python -m selfdeblur fetch levin' gets it"
    warnings.warn(reason, stacklevel=1)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def picture():
    """A sharp grey image (200, 200), range 0 to 1."""
    return util.img_as_float(data.camera())[100:300, 150:350].copy()


@pytest.fixture
def thin(monkeypatch):
    """Little arithmetic, see `thin`, in this process."""
    make_thin(monkeypatch.setattr)


@pytest.fixture
def short_search(monkeypatch):
    """Searches for a kernel from one start, in this process."""
    make_searches_short(monkeypatch.setattr)


@pytest.fixture(scope="module")
def browser():
    """Debian's chromium, driven by Playwright."""
    if CHROMIUM is None:
        message = "NOT TESTED: pages in a browser, because chromium is absent (apt-get install chromium)"
        if os.environ.get("SELFDEBLUR_REQUIRE_CHROMIUM"):
            pytest.fail(message)
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    from playwright import sync_api as playwright

    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session", autouse=True)
def _end_processes():
    yield
    processes.end()

"""The package as it is installed: what a wheel holds, what it needs, how soon it answers."""

import ast
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import pytest
from common import ROOT
from test_rooms import imports, table

import selfdeblur

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
# Packages whose modules are called otherwise.
PACKAGES = {"cv2": "opencv-python", "skimage": "scikit-image", "PIL": "pillow"}


def requirements(text):
    """Names of packages, in small letters, of lines or strings like "torch>=2"."""
    return {re.match(r"[\w-]+", line)[0].lower() for line in text if re.match(r"\w", line)}


def declared():
    return requirements(ast.literal_eval(re.search(r"^dependencies = (\[.*?\])", PYPROJECT, re.M | re.S)[1]))


def extras():
    """Names of packages that the extras bring."""
    text = re.search(r"^\[project\.optional-dependencies\]\n(.*?)^\[", PYPROJECT, re.M | re.S)[1]
    return requirements(name for listed in re.findall(r"= (\[.*\])$", text, re.M) for name in ast.literal_eval(listed))


def test_every_package_that_is_imported_is_declared():
    imported = set().union(*(set(targets) for targets in imports().values())) - set(table())
    imported.remove("triton")  # PyTorch for GPUs brings it, and without it another form does the same
    imported -= {"fastapi", "starlette", "uvicorn"}  # Gradio brings them
    assert {PACKAGES.get(name, name).lower() for name in imported} <= declared() | extras()
    assert not declared() & extras()
    assert requirements((ROOT / "requirements.txt").read_text().splitlines()) == declared()


def test_the_constraints_name_what_is_required():
    constrained = requirements((ROOT / "constraints.txt").read_text().splitlines())
    tests = requirements((ROOT / "requirements-test.txt").read_text().splitlines())
    assert declared() | tests <= constrained


def test_the_version_is_told_once():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, re.M)[1] == selfdeblur.__version__
    assert 'dynamic = ["version"]' in PYPROJECT
    assert selfdeblur.__version__ not in PYPROJECT


def test_public_names_are_there_and_no_others():
    assert set(selfdeblur.__all__) <= set(dir(selfdeblur))
    for name in selfdeblur.__all__:
        getattr(selfdeblur, name)  # an AttributeError where it is not there
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        selfdeblur.nothing_of_ours  # noqa: B018


@pytest.mark.processes
@pytest.mark.parametrize("option", ["--version", "--help"])
def test_version_and_help_load_nothing_heavy(option):
    code = (
        "import json, sys, time\n"
        f"sys.argv = ['selfdeblur', {option!r}]\n"
        "from selfdeblur.__main__ import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "print(json.dumps([time.process_time(), sorted(sys.modules)]))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    told, _, last = run.stdout.rstrip().rpartition("\n")
    seconds, loaded = json.loads(last)
    assert told == selfdeblur.__version__ if option == "--version" else "selfdeblur" in told
    assert not {"torch", "cv2", "numpy", "scipy", "skimage"} & set(loaded)
    # Of one core, from the start of Python on; what other programs take of the machine does not count.
    assert seconds < 0.5


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment with the wheel of this checkout, in which the packages of this one are found as well."""
    folder = tmp_path_factory.mktemp("installed")
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, files):
        if name.startswith(("selfdeblur/", "networks/")) or "/" not in name:
            (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "checkout" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheel = ["wheel", folder / "checkout", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder]
    subprocess.run([*pip, *wheel], check=True, capture_output=True)
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    with open(f"{packages}/tests.pth", "w") as file:
        file.write(sysconfig.get_path("purelib") + "\n")
    (built,) = folder.glob("selfdeblur-*.whl")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", built], check=True)
    return folder


@pytest.mark.processes
def test_an_installed_wheel_works_outside_the_checkout(installed):
    def run(*words):
        done = subprocess.run(words, cwd=installed, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    command, python = installed / "env" / "bin" / "selfdeblur", installed / "env" / "bin" / "python"
    assert run(command, "--version").strip() == selfdeblur.__version__
    code = (
        "import numpy, selfdeblur\n"
        "y = numpy.random.default_rng(0).random((40, 48))\n"
        "result = selfdeblur.deblur(y, 5, num_iter=2, device='cpu')\n"
        "print(selfdeblur.__file__, *result.image.shape, *result.kernel.shape)\n"
    )
    where, *sizes = run(python, "-c", code).split()
    assert where.startswith(str(installed))
    assert sizes == ["40", "48", "5", "5"]
    # The files that are no Python: what `fetch` and `report` read.
    run(python, "-c", "from selfdeblur.data.fetch import REGISTRY; assert REGISTRY.is_file()")
    run(python, "-c", "from selfdeblur.scores.report import TEMPLATE; assert TEMPLATE.is_file()")
    assert Path(where).with_name("py.typed").is_file()


@pytest.mark.processes
def test_what_the_wheel_requires_is_here(installed):
    (built,) = installed.glob("selfdeblur-*.whl")
    (found,) = metadata.distributions(path=[str(built)])
    assert requirements(line for line in found.requires if "extra ==" not in line) == declared()
    assert requirements(line for line in found.requires if "extra ==" in line) == extras()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", installed / "env" / "bin" / "python"]
    checked = subprocess.run([*pip, "check"], capture_output=True, text=True, check=False)
    assert not [line for line in checked.stdout.splitlines() if line.startswith("selfdeblur ")]

"""Put a benchmark where the scripts look for it: ``python -m selfdeblur fetch levin|lai``.

``registry.json`` beside this file lists each file of the benchmarks with its
size, its SHA-256 and the place on GitHub that it comes from. A file is written
under its own name only after its content has been found equal to the registry.

The environment variable ``SELFDEBLUR_FETCH_URL`` replaces the address that the
registry's places are relative to, for a mirror of your own.
"""

import contextlib
import hashlib
import http.client
import json
import math
import os
import re
import stat
import struct
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from pathlib import Path

from tqdm import tqdm

from selfdeblur.errors import UserError
from selfdeblur.files.atomic import write_bytes, write_text

REGISTRY = Path(__file__).with_name("registry.json")
URL = "https://raw.githubusercontent.com"

# Folder of the benchmark, the place that its files come from, and the names wanted there.
_SOURCES = {
    "levin": (
        ("", "csdwren/SelfDeblur/e1c79ee528eb333416b032e4bc002337c2d5c0f3/datasets/levin"),
        ("gt", "csdwren/SelfDeblur/e1c79ee528eb333416b032e4bc002337c2d5c0f3/datasets/levin/gt"),
        ("groundk", "gbredell/W_DIP/1a9c8e60fac5d65cbdbebd10a6490b4f32037640/datasets/levin/groundk/w01"),
    ),
    "lai": (
        ("uniform_ycbcr", "SDUer-1/SelfDeblur/e550c266e05b543db67ecd20a008a53d4bca8c52/datasets/lai/uniform_ycbcr"),
        ("ground_truth", "SDUer-1/SelfDeblur/e550c266e05b543db67ecd20a008a53d4bca8c52/datasets/lai/ground_truth"),
    ),
}

_ATTEMPTS = 4
_PAUSE = 0.5  # seconds before the second attempt, doubled before each further one
_TIMEOUT = 30  # seconds without a byte
# A zip file may hold other files of the same sizes; beyond this many times the benchmark's bytes it is no data set.
_ZIP_EXCESS = 8
_ZIP_DIRECTORY = 32 << 20  # bytes; each entry of a zip's directory costs some ten times its size in memory


def load_registry(benchmark):
    """Read what ``registry.json`` says of one benchmark.

    Parameters
    ----------
    benchmark : str
        ``levin`` or ``lai``.

    Returns
    -------
    dict
        Path relative to the benchmark's folder -> ``{"size": bytes, "sha256":
        hex digits, "from": OWNER/REPOSITORY/COMMIT/PATH}``.
    """
    return json.loads(REGISTRY.read_text(encoding="utf-8"))[benchmark]


def build_registry(datasets):
    """Make the registry from trusted copies of the benchmarks.

    Parameters
    ----------
    datasets : str or Path
        Folder that holds ``levin`` and ``lai``.

    Returns
    -------
    dict
        Benchmark -> what `load_registry` returns for it. ``python -c "from
        selfdeblur.data import fetch; fetch.write_registry('datasets')"`` stores it.
    """
    registry = {}
    for benchmark, folders in _SOURCES.items():
        registry[benchmark] = {}
        for folder, place in folders:
            for path in sorted((Path(datasets) / benchmark / folder).glob("*.png")):
                content = path.read_bytes()
                registry[benchmark][f"{folder}/{path.name}" if folder else path.name] = {
                    "size": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "from": f"{place}/{path.name}",
                }
    return registry


def write_registry(datasets):
    """Write `build_registry` of ``datasets`` to ``registry.json``."""
    write_text(REGISTRY, json.dumps(build_registry(datasets), indent=1) + "\n")


def fetch(benchmark, *, folder="datasets", source=None):
    """Bring the files of a benchmark into ``folder``/``benchmark``, each checked against the registry.

    Files that are there and equal the registry are left alone, so a call that
    was interrupted goes on where it stopped.

    Parameters
    ----------
    benchmark : str
        ``levin`` or ``lai``.
    folder : str or Path
        Where the benchmark's folder is made.
    source : str or Path, optional
        A folder or zip file to take the files from, whatever they are called
        in it and wherever they lie in it. By default they are downloaded.

    Returns
    -------
    dict
        Numbers of files: ``present`` before the call, ``fetched``, ``replaced``
        (those of ``fetched`` that stood for a file of other content).

    Raises
    ------
    UserError
        If a file can't be had or written. Files that could be had are in place
        then, all others are as they were.
    """
    registry = load_registry(benchmark)
    root = Path(folder) / benchmark
    wanted, replaced = {}, 0
    for name, entry in registry.items():
        state = _state(root / name, entry)
        if state != "whole":
            wanted[name] = entry
            replaced += state == "other"
    if wanted and source is None:
        _download(root, wanted)
    elif wanted:
        _take(root, wanted, Path(source), registry)
    return {"present": len(registry) - len(wanted), "fetched": len(wanted), "replaced": replaced}


def _state(path, entry):
    """Say whether the file is ``whole``, ``other`` (of other content) or ``absent``."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path}: is not a plain file; move it away")
        if path.stat().st_size != entry["size"]:
            return "other"
        return "whole" if _matches(path.read_bytes(), entry) else "other"
    except FileNotFoundError:
        return "absent"
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _matches(content, entry):
    return len(content) == entry["size"] and hashlib.sha256(content).hexdigest() == entry["sha256"]


# From the network


class _RefusedError(Exception):
    """The server answered, and asking again would not help."""


def _download(root, wanted):
    base = os.environ.get("SELFDEBLUR_FETCH_URL", URL).rstrip("/")
    refused = []
    with tqdm(total=sum(e["size"] for e in wanted.values()), unit="B", unit_scale=True, disable=None) as progress:
        for name, entry in wanted.items():
            url = f"{base}/{urllib.parse.quote(entry['from'])}"
            try:
                write_bytes(root / name, _receive(url, entry))
                progress.update(entry["size"])
            except _RefusedError as error:
                refused.append((url, error))
    if refused:
        url, error = refused[0]
        others = f"; {len(refused) - 1} more files failed" if len(refused) > 1 else ""
        raise UserError(f"{url}: {error}{others}; take a copy that you have with --from FOLDER_OR_ZIP")


def _receive(url, entry):
    """Content of ``url``, equal to the registry; what may pass is tried again from the file's first byte."""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE * 2 ** (attempt - 1))
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "selfdeblur", "Accept-Encoding": "identity"})
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
                content = response.read(entry["size"] + 1)
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"the server answers {error.code} {_one_line(error.reason)}"
            if error.code not in (408, 425, 429) and error.code < 500:
                raise _RefusedError(reason) from error
        except (OSError, http.client.HTTPException) as error:
            reason = _one_line(getattr(error, "reason", None) or error)
        except ValueError as error:
            # A redirection to something that is no address ends here, and so does a mistyped SELFDEBLUR_FETCH_URL.
            raise _RefusedError(_one_line(error)) from error
        else:
            if _matches(content, entry):
                return content
            if len(content) >= entry["size"]:
                raise _RefusedError(f"its content does not match the registry ({entry['size']} bytes expected)")
            reason = f"the connection ended after {len(content)} of {entry['size']} bytes"
    raise UserError(
        f"{url}: cannot be downloaded ({reason}); run the command again to go on, "
        "or take a copy that you have with --from FOLDER_OR_ZIP"
    )


def _one_line(error):
    """Text of an error as one line of printable characters: part of it may come from the server or the zip file."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return "".join(c if c.isprintable() else "?" for c in text)[:200] or type(error).__name__


# From a folder or zip file


def _take(root, wanted, source, registry):
    """Copy the wanted files out of ``source``; they are known by their content, not by their names."""
    # Bytes to unpack at most. A folder's files lie there already and are not unpacked.
    budget = _ZIP_EXCESS * sum(entry["size"] for entry in registry.values()) if source.is_file() else math.inf
    sizes = {entry["size"] for entry in registry.values()}
    known = {entry["sha256"] for entry in registry.values()}
    by_content, by_name = {}, {}
    for name, entry in wanted.items():
        by_content.setdefault(entry["sha256"], []).append(name)
        by_name.setdefault(Path(name).name, set()).add(name)
    other_content = set()
    with _candidates(source) as candidates:
        for label, size, read in candidates:
            digest = None
            if size in sizes:
                budget -= size
                if budget < 0:
                    raise UserError(f"{source}: holds far more data than the benchmark; refused as a zip bomb")
                content = read(size)
                digest = hashlib.sha256(content).hexdigest()
                for name in by_content.pop(digest, ()):
                    write_bytes(root / name, content)
                if not by_content:
                    return
            if digest not in known:
                other_content |= by_name.get(label.replace("\\", "/").rsplit("/", 1)[-1], set())
    lacking = {name for names in by_content.values() for name in names}
    parts = [
        f"{len(names)} of the {len(registry)} files {what} ({_some(names)})"
        for names, what in (
            (lacking - other_content, "are missing"),
            (lacking & other_content, "have other content than the registry says"),
        )
        if names
    ]
    others = f"; the other {len(registry) - len(lacking)} are in {root}" if len(lacking) < len(registry) else ""
    raise UserError(f"{source}: {' and '.join(parts)}{others}; without --from they are downloaded")


def _some(names):
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _candidates(source):
    """Context manager of the files in a folder or zip file: an iterator of (name, size, reader)."""
    if source.is_dir():
        return contextlib.nullcontext(_folder_files(source))
    if source.is_file():
        return _zip_files(source)
    raise UserError(f"{source}: no such folder or zip file")


def _folder_files(folder):
    def read(path):
        def function(size):
            try:
                with path.open("rb") as file:
                    return file.read(size + 1)
            except OSError:
                return b""

        return function

    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(parent, name)
            with contextlib.suppress(OSError):
                status = path.stat()
                if stat.S_ISREG(status.st_mode):
                    yield str(path), status.st_size, read(path)


# What zipfile and zlib raise for archives that are damaged, encrypted or made by malice.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    IndexError,
)


@contextlib.contextmanager
def _zip_files(path):
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
            _check_directory_size(path, file)
            archive = stack.enter_context(zipfile.ZipFile(file))
        except UserError:
            raise
        except _ZIP_ERRORS as error:
            raise UserError(f"{path}: neither a folder nor a readable zip file ({_one_line(error)})") from error
        for info in archive.infolist():
            _check_entry(path, info)
        # Not is_dir(), which fails for an entry without a name.
        files = [info for info in archive.infolist() if not info.filename.endswith("/")]
        yield ((info.filename, info.file_size, _zip_reader(archive, info)) for info in files)


def _check_directory_size(path, file):
    """Refuse a zip whose list of entries would fill the memory before its first entry could be looked at."""
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - 65557))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at >= 0 and len(tail) >= at + 22:
        (directory,) = struct.unpack_from("<L", tail, at + 12)
        # zip64 archives say 0xFFFFFFFF here: they are for more than 4 GiB or 65535 entries, never for a benchmark.
        if directory > _ZIP_DIRECTORY:
            raise UserError(f"{path}: lists far more files than the benchmark has; refused")
    file.seek(0)


def _check_entry(path, info):
    name = info.filename.replace("\\", "/")
    shown = ascii(info.filename[:100])
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        raise UserError(f"{path}: the entry {shown} points outside the archive; refused")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UserError(f"{path}: the entry {shown} is a link or another special file; refused")


def _zip_reader(archive, info):
    def function(size):
        # Other methods than these two may claim memory without a bound.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
            return b""
        try:
            with archive.open(info) as member:
                return member.read(size + 1)
        except _ZIP_ERRORS:
            return b""

    return function


def add_arguments(parser):
    """Add the arguments of ``python -m selfdeblur fetch`` to an argparse parser."""
    parser.add_argument("benchmark", choices=sorted(_SOURCES), help="which benchmark to fetch")
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FOLDER_OR_ZIP",
        help="take the files from a folder or zip file that you have, whatever its layout, and not from the network",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("datasets"),
        metavar="FOLDER",
        help="the benchmark's folder is made in this one (default: %(default)s)",
    )


def main(args):
    """Run ``python -m selfdeblur fetch``: bring the files and print how many; return the exit status."""
    counts = fetch(args.benchmark, folder=args.folder, source=args.source)
    done = f"{counts['present']} were there, {counts['fetched']} fetched"
    if counts["replaced"]:
        done += f", {counts['replaced']} of them in place of files with other content"
    print(f"{args.folder / args.benchmark}: all {counts['present'] + counts['fetched']} files verified ({done})")
    sys.stdout.flush()
    return 0

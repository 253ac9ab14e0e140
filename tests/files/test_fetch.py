"""Fetching a benchmark: from an HTTP server on loopback, a folder, a zip file."""

import argparse
import contextlib
import errno
import hashlib
import http.server
import io
import json
import os
import re
import signal
import stat
import threading
import warnings
import zipfile
from pathlib import Path

import pytest
from common import SHARED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfdeblur.data import fetch
from selfdeblur.errors import OutputError, UserError

FILES = {
    "im1_kernel1_img.png": b"blurry one" * 5000,
    "im2_kernel1_img.png": b"blurry two" * 3000,
    "gt/im1.png": b"sharp" * 4000,
    "groundk/im1_kernel1_img.png": b"true kernel result" * 1000,
}
SIZE = sum(map(len, FILES.values()))


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry of four small files in place of the real one."""
    content = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "from": f"owner/repo/c0ffee/data/{name}"}
        for name, data in FILES.items()
    }
    path = tmp_path / "registry.json"
    path.write_text(json.dumps({"levin": content}))
    monkeypatch.setattr(fetch, "REGISTRY", path)
    monkeypatch.setattr(fetch, "_PAUSE", 0)
    return content


class Server:
    """An HTTP server on loopback whose behaviour per path is a list of actions, the last one repeated."""

    def __init__(self):
        self.actions = {}
        self.requests = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.removeprefix("/owner/repo/c0ffee/data/")
                server.requests.append(name)
                actions = server.actions.get(name, [send])
                (actions.pop(0) if len(actions) > 1 else actions[0])(self, FILES.get(name, b""))

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


def send(handler, data, *, first=None, length=True):
    """Answer with ``data``, or with its ``first`` bytes and then no more."""
    handler.send_response(200)
    if length:
        handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[:first])
    handler.wfile.flush()


def answer(code, location=None):
    def action(handler, data):
        handler.send_response(code)
        if location:
            handler.send_header("Location", location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return action


def cut(at, **options):
    return lambda handler, data: send(handler, data, first=at, **options)


@pytest.fixture
def server(registry, monkeypatch):
    server = Server()
    monkeypatch.setenv("SELFDEBLUR_FETCH_URL", server.url + "/")
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    yield server
    server.close()


def files_in(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


# The network


def test_all_files_arrive_whole(server, tmp_path):
    assert fetch.fetch("levin", folder=tmp_path / "data") == {"present": 0, "fetched": 4, "replaced": 0}
    assert files_in(tmp_path / "data/levin") == FILES
    assert server.requests == list(FILES)


def test_what_is_verified_is_not_asked_for_again(server, tmp_path):
    fetch.fetch("levin", folder=tmp_path / "data")
    (tmp_path / "data/levin/gt/im1.png").unlink()
    server.requests.clear()
    assert fetch.fetch("levin", folder=tmp_path / "data") == {"present": 3, "fetched": 1, "replaced": 0}
    assert server.requests == ["gt/im1.png"]
    assert fetch.fetch("levin", folder=tmp_path / "data")["present"] == 4
    assert server.requests == ["gt/im1.png"]


@pytest.mark.parametrize(
    "content", [b"blurry one" * 4999 + b"blurry two", b"short", b""], ids=["same size", "short", "empty"]
)
def test_file_of_other_content_is_replaced_and_counted(server, tmp_path, content):
    path = tmp_path / "data/levin/im1_kernel1_img.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert fetch.fetch("levin", folder=tmp_path / "data") == {"present": 0, "fetched": 4, "replaced": 1}
    assert path.read_bytes() == FILES["im1_kernel1_img.png"]


PASSING = {
    "cut off": cut(10000),
    "cut off, of no declared length": cut(10000, length=False),
    "empty": cut(0),
    "no answer": lambda handler, data: None,
    "no HTTP": lambda handler, data: handler.wfile.write(b"not http at all\r\n\r\n"),
    **{str(code): answer(code) for code in (408, 429, 500, 502, 503)},
}


@pytest.mark.parametrize("trouble", PASSING)
def test_passing_trouble_is_tried_again(server, tmp_path, trouble):
    server.actions["gt/im1.png"] = [PASSING[trouble], PASSING[trouble], send]
    fetch.fetch("levin", folder=tmp_path / "data")
    assert files_in(tmp_path / "data/levin") == FILES
    assert server.requests.count("gt/im1.png") == 3


@pytest.mark.parametrize("trouble", PASSING)
def test_lasting_trouble_ends_and_leaves_nothing_of_the_file(server, tmp_path, trouble):
    server.actions["im2_kernel1_img.png"] = [PASSING[trouble]]
    with pytest.raises(
        UserError, match=r"im2_kernel1_img\.png: cannot be downloaded .*; run the command again .*--from"
    ) as error:
        fetch.fetch("levin", folder=tmp_path / "data")
    one_line(error)
    assert server.requests.count("im2_kernel1_img.png") == fetch._ATTEMPTS
    assert list(files_in(tmp_path / "data/levin")) == ["im1_kernel1_img.png"]


def test_where_the_connection_ended_is_told(server, tmp_path):
    server.actions["im1_kernel1_img.png"] = [cut(5000)]
    with pytest.raises(UserError, match="the connection ended after 5000 of 50000 bytes"):
        fetch.fetch("levin", folder=tmp_path / "data")


def test_the_pauses_grow(server, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(fetch, "_PAUSE", 0.5)
    monkeypatch.setattr(fetch.time, "sleep", pauses.append)
    server.actions["im1_kernel1_img.png"] = [answer(503)]
    with pytest.raises(UserError, match="the server answers 503"):
        fetch.fetch("levin", folder=tmp_path / "data")
    assert pauses == [0.5, 1, 2]


def test_silent_server_times_out(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "_TIMEOUT", 0.05)
    end = threading.Event()
    server.actions["im1_kernel1_img.png"] = [lambda handler, data: end.wait(20)]
    try:
        with pytest.raises(UserError, match=r"cannot be downloaded .*timed out") as error:
            fetch.fetch("levin", folder=tmp_path / "data")
    finally:
        end.set()
    one_line(error)


def test_nobody_listens(registry, tmp_path, monkeypatch):
    monkeypatch.setenv("SELFDEBLUR_FETCH_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"im1_kernel1_img\.png: cannot be downloaded .*--from FOLDER_OR_ZIP") as error:
        fetch.fetch("levin", folder=tmp_path / "data")
    one_line(error)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("url", ["", "nonsense", "file:///etc", "http://", "http://a b"])
def test_mistyped_mirror(registry, tmp_path, monkeypatch, url):
    monkeypatch.setenv("SELFDEBLUR_FETCH_URL", url)
    with pytest.raises(UserError) as error:
        fetch.fetch("levin", folder=tmp_path / "data")
    one_line(error)


def test_wrong_checksum_is_named_and_not_written(server, tmp_path):
    server.actions["gt/im1.png"] = [lambda handler, data: send(handler, b"other" * 4000)]
    with pytest.raises(UserError, match=r"gt/im1\.png: its content does not match the registry") as error:
        fetch.fetch("levin", folder=tmp_path / "data")
    one_line(error)
    assert server.requests.count("gt/im1.png") == 1
    assert files_in(tmp_path / "data/levin") == {k: v for k, v in FILES.items() if k != "gt/im1.png"}


@pytest.mark.parametrize("declared", [None, 1 << 40])
def test_answer_without_end_is_cut_off(server, tmp_path, declared):
    sent = []

    def flood(handler, data):
        handler.send_response(200)
        if declared:
            handler.send_header("Content-Length", str(declared))
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(1000):
                handler.wfile.write(b"\0" * 65536)
                sent.append(65536)

    server.actions["im1_kernel1_img.png"] = [flood]
    with pytest.raises(UserError, match="does not match the registry"):
        fetch.fetch("levin", folder=tmp_path / "data")
    assert "im1_kernel1_img.png" not in files_in(tmp_path / "data/levin")
    assert len(sent) < 1000


@pytest.mark.parametrize("code", [400, 403, 404, 451])
def test_refusal_is_asked_once_and_the_others_arrive(server, tmp_path, code):
    server.actions["gt/im1.png"] = server.actions["im2_kernel1_img.png"] = [answer(code)]
    with pytest.raises(
        UserError, match=rf"im2_kernel1_img\.png: the server answers {code} .*; 1 more files failed; .*--from"
    ) as e:
        fetch.fetch("levin", folder=tmp_path / "data")
    one_line(e)
    assert sorted(files_in(tmp_path / "data/levin")) == ["groundk/im1_kernel1_img.png", "im1_kernel1_img.png"]
    assert len(server.requests) == 4


def test_redirect_is_followed(server, tmp_path):
    server.actions["im1_kernel1_img.png"] = [answer(302, "/owner/repo/c0ffee/data/moved")]
    server.actions["moved"] = [lambda handler, data: send(handler, FILES["im1_kernel1_img.png"])]
    fetch.fetch("levin", folder=tmp_path / "data")
    assert files_in(tmp_path / "data/levin") == FILES


@pytest.mark.parametrize(
    "location",
    ["file:///etc/hostname", "data:,x", "http://[", "gopher://a", "/owner/repo/c0ffee/data/im1_kernel1_img.png"],
    ids=["file", "data", "no address", "gopher", "a circle"],
)
def test_redirect_to_nowhere_is_refused(server, tmp_path, location):
    server.actions["im1_kernel1_img.png"] = [answer(302, location)]
    with pytest.raises(UserError) as error:
        fetch.fetch("levin", folder=tmp_path / "data")
    one_line(error)
    assert len(server.requests) < 20
    assert "im1_kernel1_img.png" not in files_in(tmp_path / "data/levin")


def test_answer_with_control_characters_is_shown_plain(server, tmp_path):
    raw = b"HTTP/1.1 404 \x1b[2J\x07gone\r\nContent-Length: 0\r\n\r\n"
    server.actions["im1_kernel1_img.png"] = [lambda handler, data: handler.wfile.write(raw)]
    with pytest.raises(UserError, match="server answers 404") as error:
        fetch.fetch("levin", folder=tmp_path / "data")
    assert one_line(error).isprintable()


def test_interruption_keeps_whole_files_and_nothing_else(server, tmp_path):
    end = threading.Event()

    def interrupt(handler, data):
        send(handler, data, first=1000)
        os.kill(os.getpid(), signal.SIGINT)
        end.wait(20)

    server.actions["gt/im1.png"] = [interrupt, send]
    try:
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch("levin", folder=tmp_path / "data")
    finally:
        end.set()
    assert files_in(tmp_path / "data/levin") == {name: FILES[name] for name in list(FILES)[:2]}
    assert fetch.fetch("levin", folder=tmp_path / "data") == {"present": 2, "fetched": 2, "replaced": 0}
    assert files_in(tmp_path / "data/levin") == FILES


# What cannot be written


@pytest.mark.parametrize("source", [None, "folder"])
def test_full_disk_ends_in_one_line_and_leaves_no_part(server, tmp_path, monkeypatch, source):
    written, fsync = [], os.fsync

    def full_after_one(handle):
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(handle)
        fsync(handle)

    if source:
        source = lay_out(tmp_path / "mine", FILES)
    monkeypatch.setattr(os, "fsync", full_after_one)
    with pytest.raises(OutputError, match=r"cannot be written \(No space left on device, \d+ bytes are missing\)") as e:
        fetch.fetch("levin", folder=tmp_path / "data", source=source)
    one_line(e)
    found = files_in(tmp_path / "data/levin")
    assert len(found) == 1
    assert found.items() <= FILES.items()


def test_folder_that_is_a_file(server, tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(UserError) as error:
        fetch.fetch("levin", folder=tmp_path / "data")
    one_line(error)


def test_name_taken_by_a_folder(server, tmp_path):
    (tmp_path / "data/levin/gt/im1.png").mkdir(parents=True)
    with pytest.raises(UserError, match=r"gt/im1\.png: is not a plain file; move it away"):
        fetch.fetch("levin", folder=tmp_path / "data")


# A folder


def lay_out(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_folder_with_other_names_and_layout(registry, tmp_path):
    other = {f"a/{i}/x{i}.bin": data for i, data in enumerate(FILES.values())}
    source = lay_out(tmp_path / "mine", {**other, "decoy": b"x" * len(FILES["gt/im1.png"]), "empty": b""})
    assert fetch.fetch("levin", folder=tmp_path / "data", source=source)["fetched"] == 4
    assert files_in(tmp_path / "data/levin") == FILES


def test_folder_lacks_some(registry, tmp_path):
    files = dict(FILES)
    del files["groundk/im1_kernel1_img.png"]
    files["gt/im1.png"] = b"another picture"
    source = lay_out(tmp_path / "mine", files)
    with pytest.raises(UserError) as error:
        fetch.fetch("levin", folder=tmp_path / "data", source=source)
    assert one_line(error) == (
        f"{source}: 1 of the 4 files are missing (groundk/im1_kernel1_img.png) and "
        "1 of the 4 files have other content than the registry says (gt/im1.png); "
        f"the other 2 are in {tmp_path}/data/levin; without --from they are downloaded"
    )
    assert sorted(files_in(tmp_path / "data/levin")) == ["im1_kernel1_img.png", "im2_kernel1_img.png"]


def test_two_folders_complete_each_other(registry, tmp_path):
    first = lay_out(tmp_path / "one", {k: v for k, v in FILES.items() if "gt" not in k})
    with pytest.raises(UserError, match=r"missing \(gt/im1\.png\)"):
        fetch.fetch("levin", folder=tmp_path / "data", source=first)
    second = lay_out(tmp_path / "two", {"other.png": FILES["gt/im1.png"]})
    assert fetch.fetch("levin", folder=tmp_path / "data", source=second) == {"present": 3, "fetched": 1, "replaced": 0}


def test_folder_with_pipes_and_broken_links(registry, tmp_path):
    source = lay_out(tmp_path / "mine", FILES)
    os.mkfifo(source / "a_pipe")
    (source / "a_link").symlink_to("nowhere")
    (source / "a_circle").symlink_to(source)
    assert fetch.fetch("levin", folder=tmp_path / "data", source=source)["fetched"] == 4


@pytest.mark.parametrize("kind", ["absent", "empty folder", "pipe", "text", "empty file"])
def test_source_that_is_none(registry, tmp_path, kind):
    source = tmp_path / "mine"
    if kind == "empty folder":
        source.mkdir()
    elif kind == "pipe":
        os.mkfifo(source)
    elif kind == "text":
        source.write_text("hello")
    elif kind == "empty file":
        source.touch()
    with pytest.raises(UserError) as error:
        fetch.fetch("levin", folder=tmp_path / "data", source=source)
    assert one_line(error).startswith(f"{source}: ")
    assert not (tmp_path / "data").exists()


# Zip files


def make_zip(path, files, method=zipfile.ZIP_DEFLATED):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in files if isinstance(files, list) else files.items():
                archive.writestr(name, data)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_whatever_its_layout(registry, tmp_path, method):
    files = {f"SelfDeblur-master/deep/{i}.png": data for i, data in enumerate(FILES.values())}
    source = make_zip(tmp_path / "a.zip", {"SelfDeblur-master/": b"", **files, "README": b"x"}, method)
    assert fetch.fetch("levin", folder=tmp_path / "data", source=source)["fetched"] == 4
    assert files_in(tmp_path / "data/levin") == FILES


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/etc/evil", "..\\evil", "C:\\evil", "c:evil", "\\evil", "a/..", "//host/evil"]
)
def test_zip_slip_is_refused(registry, tmp_path, name):
    source = make_zip(tmp_path / "a.zip", {**FILES, name: b"x"})
    with pytest.raises(UserError, match="points outside the archive; refused") as error:
        fetch.fetch("levin", folder=tmp_path / "data", source=source)
    one_line(error)
    assert not (tmp_path / "data").exists()
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices_in_a_zip_are_refused(registry, tmp_path, kind):
    info = zipfile.ZipInfo("gt/im1.png")
    info.external_attr = (kind | 0o777) << 16
    source = make_zip(tmp_path / "a.zip", [*FILES.items(), (info, b"/etc/passwd")])
    with pytest.raises(UserError, match="is a link or another special file; refused") as error:
        fetch.fetch("levin", folder=tmp_path / "data", source=source)
    one_line(error)
    assert not (tmp_path / "data").exists()


def test_bomb_that_lies_about_its_size_is_read_no_further(registry, tmp_path):
    source = make_zip(tmp_path / "a.zip", {"gt/im1.png": b"\0" * (64 << 20)})
    content = source.read_bytes()
    size = len(FILES["gt/im1.png"]).to_bytes(4, "little")
    source.write_bytes(content.replace((64 << 20).to_bytes(4, "little"), size))
    with pytest.raises(UserError, match=r"other content than the registry says \(gt/im1\.png\)") as error:
        fetch.fetch("levin", folder=tmp_path / "data", source=source)
    one_line(error)


def test_bomb_of_many_files_of_the_right_size_is_refused(registry, tmp_path):
    size = len(FILES["gt/im1.png"])
    source = make_zip(tmp_path / "a.zip", {f"{i}": b"\0" * size for i in range(fetch._ZIP_EXCESS * SIZE // size + 2)})
    with pytest.raises(UserError, match="refused as a zip bomb") as error:
        fetch.fetch("levin", folder=tmp_path / "data", source=source)
    one_line(error)


def test_endless_list_of_entries_is_refused(registry, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "_ZIP_DIRECTORY", 10000)
    source = make_zip(tmp_path / "a.zip", {f"{i:080}": b"" for i in range(100)})
    monkeypatch.setattr(zipfile, "ZipFile", lambda *a: pytest.fail("the list was read"))
    with pytest.raises(UserError, match="lists far more files than the benchmark has; refused") as error:
        fetch.fetch("levin", folder=tmp_path / "data", source=source)
    one_line(error)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_compression_is_not_unpacked(registry, tmp_path, method):
    source = make_zip(tmp_path / "a.zip", FILES, method)
    with pytest.raises(UserError, match="4 of the 4 files have other content") as error:
        fetch.fetch("levin", folder=tmp_path / "data", source=source)
    one_line(error)


def test_encrypted_zip(registry, tmp_path):
    source = make_zip(tmp_path / "a.zip", FILES)
    content = bytearray(source.read_bytes())
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        for match in re.finditer(re.escape(mark), bytes(content)):
            content[match.start() + offset] |= 1
    source.write_bytes(content)
    with pytest.raises(UserError) as error:
        fetch.fetch("levin", folder=tmp_path / "data", source=source)
    one_line(error)


def test_zip_cut_at_each_part(registry, tmp_path):
    whole = make_zip(tmp_path / "a.zip", FILES).read_bytes()
    source = tmp_path / "cut.zip"
    for end in range(0, len(whole), max(1, len(whole) // 60)):
        source.write_bytes(whole[:end])
        with pytest.raises(UserError) as error:
            fetch.fetch("levin", folder=tmp_path / "data", source=source)
        one_line(error)
    assert not (tmp_path / "data").exists()


def test_entry_without_a_name(registry, tmp_path):
    source = make_zip(tmp_path / "a.zip", {"?": b"x", **FILES})
    content = bytearray(source.read_bytes())
    at = content.rindex(b"PK\1\2", 0, content.index(b"?", content.index(b"PK\1\2")))
    content[at + 28] = 0
    del content[at + 46]
    end = content.rindex(b"PK\5\6")
    content[end + 12 : end + 16] = (int.from_bytes(content[end + 12 : end + 16], "little") - 1).to_bytes(4, "little")
    source.write_bytes(content)
    assert zipfile.ZipFile(source).infolist()[0].filename == ""
    assert fetch.fetch("levin", folder=tmp_path / "data", source=source)["fetched"] == 4


def check_zip(source, folder):
    """Whatever the zip: no file but whole ones of the registry, and at worst one clear line."""
    said = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fetch.fetch("levin", folder=folder, source=source)
    except UserError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 800
    if folder.exists():
        assert files_in(folder / "levin").items() <= FILES.items()


_ZIP = io.BytesIO()
make_zip(_ZIP, FILES)


@settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", 100)), deadline=None, suppress_health_check=list(HealthCheck)
)
@given(edits=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=8), st.integers(0, 8)), max_size=8))
def test_fuzz_zip(registry, tmp_path_factory, edits):
    content = bytearray(_ZIP.getvalue())
    for place, insert, delete in edits:
        at = int(place * len(content))
        content[at : at + delete] = insert
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "a.zip").write_bytes(content)
    check_zip(folder / "a.zip", folder / "data")


# The command and the real registry


def test_command(server, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    fetch.add_arguments(parser)
    assert parser.parse_args(["lai"]).folder == Path("datasets")
    lay_out(tmp_path / "data/levin", {"gt/im1.png": b"old"})
    assert fetch.main(parser.parse_args(["levin", "--folder", str(tmp_path / "data")])) == 0
    streams = capsys.readouterr()
    assert streams.out == (
        f"{tmp_path}/data/levin: all 4 files verified (0 were there, 4 fetched, 1 of them in place of files with "
        "other content)\n"
    )
    assert streams.err == "", "the progress bar is for terminals only"


def test_real_registry():
    levin, lai = fetch.load_registry("levin"), fetch.load_registry("lai")
    assert len(levin) == 32 + 4 + 8 + 32
    assert len(lai) == 100 + 25
    for name, entry in {**levin, **lai}.items():
        assert re.fullmatch(r"(gt/|groundk/|uniform_ycbcr/|ground_truth/)?[a-z0-9_]+\.png", name)
        assert re.fullmatch(r"[0-9a-f]{64}", entry["sha256"])
        assert 0 < entry["size"] < 4 << 20
        assert re.fullmatch(
            rf"[^/]+/[^/]+/[0-9a-f]{{40}}/datasets/(levin|lai)/(groundk/w01/)?(.*/)?{Path(name).name}", entry["from"]
        )


def test_real_registry_is_that_of_the_files():
    if not (SHARED / "datasets").is_dir():
        pytest.skip(f"NOT CHECKED: the benchmarks are not at {SHARED / 'datasets'}; set SELFDEBLUR_SHARED")
    assert fetch.build_registry(SHARED / "datasets") == json.loads(fetch.REGISTRY.read_text())


def test_real_files_from_a_zip(tmp_path):
    if not (SHARED / "datasets").is_dir():
        pytest.skip(f"NOT CHECKED: the benchmarks are not at {SHARED / 'datasets'}; set SELFDEBLUR_SHARED")
    with zipfile.ZipFile(tmp_path / "levin.zip", "w") as archive:
        for i, path in enumerate(sorted((SHARED / "datasets/levin").rglob("*.png"))):
            archive.write(path, f"some/where/{i}.png")
    assert fetch.fetch("levin", folder=tmp_path / "data", source=tmp_path / "levin.zip")["fetched"] == 76
    assert fetch.fetch("levin", folder=tmp_path / "data")["present"] == 76

"""``selfdeblur serve``: folders and turns of the page's visitors, and the page itself in Chromium.

Gradio is no part of the environment of the other tests: ``.ci/run`` has it in a folder of its own.
"""

import http.client
import importlib.util
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from common import ROOT, blurred
from PIL import Image
from playwright import sync_api as playwright

from selfdeblur.__main__ import main
from selfdeblur.errors import UserError
from selfdeblur.files.picture import read_picture
from selfdeblur.restore import Restored
from selfdeblur.runs import photo
from selfdeblur.web import visits, work

# The server with a hook that writes down every address that its process looks up or connects to.
SERVER = """
import sys
def hook(event, given):
    if event == "socket.getaddrinfo" or event == "socket.connect" and isinstance(given[1], tuple):
        print(event, *given, file=open(sys.argv[1], "a"), flush=True)
sys.addaudithook(hook)
from selfdeblur.__main__ import main
sys.exit(main(sys.argv[2:]))
"""
SIDE = 96
MEGAPIXELS = 0.04


def wait_until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


# Without a browser


def refused(capsys, *words):
    assert main(["serve", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_without_gradio_there_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = 'selfdeblur serve needs Gradio: pip install "selfdeblur[demo]"'
    assert refused(capsys) == f"error: {line}\n"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--port", "99999"], "--port: 99999"),
        (["--queue", "-1"], "--queue: -1"),
        (["--max_megapixels", "0"], "--max_megapixels: 0"),
        (["--host", "256.1.1.1"], "256.1.1.1"),
    ],
)
def test_options_out_of_range_are_one_line(monkeypatch, capsys, words, part):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    assert part in refused(capsys, *words)


def test_a_port_in_use_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--port: 127.0.0.1:{port}" in refused(capsys, "--port", port)


@pytest.fixture
def all_visits(tmp_path):
    found = visits.Visits(tmp_path, 1)
    yield found
    found.close()


def upload(folder, content=b"picture"):
    path = folder / "hash" / "a.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def test_two_pages_get_a_file_that_both_have_uploaded(all_visits, tmp_path):
    first, second = all_visits.of("1"), all_visits.of("2")
    path = upload(tmp_path)
    taken = [all_visits.take(visit, path) for visit in (first, second)]
    assert [place.read_bytes() for place in taken] == [b"picture"] * 2
    assert not path.exists()
    all_visits.leave("1")
    assert not taken[0].exists()
    assert taken[1].exists()
    all_visits.leave("2")
    with pytest.raises(UserError, match=r"a\.png: did not arrive"):
        all_visits.take(all_visits.of("3"), path)
    all_visits.close()
    assert not [place for place in tmp_path.rglob("*") if place.is_file()]


def test_uploads_of_pages_that_were_closed_are_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(visits, "_UNCLAIMED", 0.2)
    found = visits.Visits(tmp_path, 1)
    kept = found.copy(found.of("1"), upload(tmp_path))
    paths = [upload(tmp_path), tmp_path / "part"]
    paths[1].write_bytes(b"half of a picture")
    try:
        wait_until(lambda: not any(path.exists() for path in paths))
        assert kept.exists()
    finally:
        found.close()


def test_turns(all_visits):
    first, second, third = (all_visits.of(key) for key in "123")
    with all_visits.turn(first) as before_first:
        with all_visits.turn(second) as before_second:
            assert (before_first(), before_second()) == (0, 1)
            with pytest.raises(UserError, match="2 pictures are in work or waiting"), all_visits.turn(third):
                pass
        with all_visits.turn(third) as before_third:
            assert before_third() == 1
    assert all_visits.line == []


@pytest.mark.processes
def test_a_process_that_fails_or_dies_says_so_and_the_next_one_works(tmp_path):
    with pytest.raises(UserError, match=r"b\.png: cannot be read"):
        visits.Work("look", str(tmp_path / "b.png"), 10**6, "").wait()
    work = visits.Work("deblur", str(tmp_path / "b.png"), "", "quick", None, "cpu")
    os.kill(work.process.pid, signal.SIGKILL)
    with pytest.raises(UserError, match="broke off"):
        work.wait()
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(path)
    facts = visits.Work("look", str(path), 600, str(tmp_path / "shown.png")).wait()
    assert facts == {"name": "a.png", "facts": "30 x 20 pixels, PNG, 8 bits", "pixels": 600}
    with pytest.raises(UserError, match=r"a\.png: 0\.00 megapixels are too many here"):
        visits.Work("look", str(path), 599, str(tmp_path / "shown.png")).wait()


def test_pages_of_a_tiff_until_a_stop(monkeypatch, tmp_path):
    kernel = np.full((3, 5), 1 / 15, np.float32)
    calls = []

    def restore(array, *, callback, **options):
        calls.append(options)
        told = {"stage": "check", "step": 7, "steps": 7, "loss": 0.1, "seconds": 1, "left": 0}
        stop = callback({**told, "so_far": lambda: (array, kernel)})
        reasons = ["ended early: callback", "the kernel touches its border: try a larger kernel size"] if stop else []
        quality = {"doubtful": stop, "reasons": reasons}
        return Restored(array / 2, kernel, (3, 5), 0.01, quality, 1, not stop, stopped="callback" if stop else "")

    monkeypatch.setattr(photo, "restore", restore)
    monkeypatch.setattr(work, "PREVIEW_PAUSE", 0)
    stack = np.random.default_rng(0).integers(20_000, 60_000, (3, 20, 24), np.uint16)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stack, photometric="minisblack")
    told = []

    def tell(**news):
        told.append(news)
        return news["page"] == 2

    result = work.deblur(tell, path, tmp_path / "out", "fast", 5, "cpu")
    assert [options["kernel_size"] for options in calls] == [(5, 5)] * 2
    assert [(news["page"], news["pages"], news["fitted"]) for news in told] == [(1, 3, True), (2, 3, True)]
    assert Image.open(told[0]["after"]).size == (24, 20)
    assert min(Image.open(result["kernel"]).size) > 100
    assert (result["status"], result["kernel_size"]) == ("doubtful", (3, 5))
    assert result["sentence"].startswith("Ended early: callback; the kernel touches its border")
    assert "--" not in result["sentence"]
    assert "1 pages are as they were" in result["notes"]
    assert Path(result["result"]).name == "a_deblurred.tif"
    pages = tifffile.imread(result["result"])
    assert pages.dtype == np.uint16
    assert np.array_equal(pages[2], stack[2])
    assert np.abs(pages[:2] - stack[:2] / 2.0).max() <= 1


# In Chromium


def children_of(*parents):
    """Processes that live, of these parents."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(pid) for pid, parent, state in rows if int(parent) in parents and "Z" not in state]


def lives(pid):
    said = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(said.strip()) and "Z" not in said


class Server:
    """The page of a server of its own, at an address of this machine."""

    def __init__(self, folder, *words):
        self.folder, self.log = folder / "temporary", folder / "addresses"
        self.folder.mkdir()
        environment = {**os.environ, "TMPDIR": str(self.folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", SERVER, str(self.log), "serve", "--port", "0", "--device", "cpu", *words]
        self.errors = open(folder / "errors", "w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line + self.said()
        self.address = found[0]

    def said(self):
        self.errors.seek(0)
        return self.errors.read()

    def pages(self):
        """The files of all open pages."""
        return [path for path in self.files() if "pages" in path.relative_to(self.folder).parts]

    def uploads(self):
        """Files that no page has taken."""
        return [path for path in self.files() if len(path.relative_to(self.folder).parts) == 3]

    def files(self):
        """All files of the server; folders go while one looks."""
        return [Path(top) / name for top, _, names in os.walk(self.folder) for name in names]

    def workers(self):
        """Processes that read or deblur a picture: children of the child that the server starts them from."""
        return children_of(*children_of(self.process.pid))

    def end(self):
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(30)
        said = self.said()
        self.errors.close()
        self.process.stdout.close()
        return status, said


@pytest.fixture(scope="module")
def server(tmp_path_factory, browser):
    if importlib.util.find_spec("gradio") is None:
        message = 'NOT TESTED: the page of selfdeblur serve, because Gradio is absent (pip install "selfdeblur[demo]")'
        if os.environ.get("SELFDEBLUR_REQUIRE_GRADIO"):
            pytest.fail(message)
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    playwright.expect.set_options(timeout=120_000)
    server = Server(tmp_path_factory.mktemp("server"), "--max_megapixels", str(MEGAPIXELS), "--queue", "1")
    yield server
    helpers = children_of(server.process.pid)
    assert helpers
    assert server.end() == (0, "")
    assert list(server.folder.glob("selfdeblur*")) == []
    wait_until(lambda: not any(map(lives, helpers)))
    addresses = server.log.read_text() if server.log.exists() else ""
    assert [line for line in addresses.splitlines() if "127.0.0.1" not in line and "localhost" not in line] == []


@pytest.fixture
def visit(browser, server):
    """Opens the page; in the end no request had left the machine, no error was logged, and no picture is left."""
    contexts, requests, errors = [], [], []

    def open_page(width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        context.set_default_timeout(120_000)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server.address)
        page.locator("#go").wait_for()
        return page

    open_page.errors = errors
    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
    assert len(requests) > 10
    assert all(url.startswith((server.address + "/", "data:", "blob:")) for url in requests)
    wait_until(lambda: not server.pages() and not server.uploads() and not server.workers())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pictures to upload: a blurry colour TIFF of 16 bits with transparency, a grey PNG, a broken and a large one."""
    folder = tmp_path_factory.mktemp("files")
    y = blurred("camera", SIDE, 7, seed=3)[2].clip(0, 1)
    rgba = np.dstack([y, y**1.2, y * 0.9, np.ones_like(y)])
    tifffile.imwrite(folder / "deep.tif", np.rint(rgba * 65535).astype(np.uint16), photometric="rgb", extrasamples=[2])
    Image.fromarray(np.rint(y * 255).astype(np.uint8)).save(folder / "grey.png")
    (folder / "broken.png").write_bytes((folder / "grey.png").read_bytes()[:900])
    (folder / "words.jpg").write_text("no picture")
    Image.fromarray(np.zeros((250, 200), np.uint8)).save(folder / "large.png")
    (folder / "heavy.bmp").write_bytes(os.urandom(3_000_000))
    return folder


def state(page):
    return page.locator("#state")


def choose(page, path):
    page.locator("#file input[type=file]").set_input_files(path)


def ready(page, path):
    """Upload a picture and wait until it is shown."""
    choose(page, path)
    playwright.expect(state(page)).to_contain_text(f"{Path(path).name}: ")
    page.locator("#shown img").wait_for()
    playwright.expect(page.locator("#go")).to_be_enabled()


def start(page, preset="quick", size="7"):
    page.locator("#preset label", has_text=re.compile(rf"^\s*{preset}\b")).click()
    page.locator("#size input, #size textarea").fill(size)
    page.locator("#go").click()


def downloaded(page):
    with page.expect_download() as download:
        page.locator("#download").click()
    return download.value


def test_upload_run_slide_download(visit, files):
    page = visit()
    assert page.evaluate("document.fonts.size") == 0 or "static/fonts" not in page.content()
    ready(page, files / "deep.tif")
    playwright.expect(state(page)).to_contain_text("deep.tif: 96 x 96 pixels, TIFF, 16 bits")
    assert re.search("quick, about [0-9]+ s", page.locator("#preset").inner_text())
    start(page)
    playwright.expect(state(page)).to_contain_text("Searching for the kernel")
    playwright.expect(page.locator("#go")).to_be_disabled()
    page.locator("#slider img").first.wait_for()
    assert re.search("Deblurred; no reason for doubt|Doubtful: no reliable", state(page).inner_text())
    playwright.expect(page.locator("#go")).to_be_enabled()
    playwright.expect(page.locator("#stop")).to_be_disabled()
    playwright.expect(page.locator("#kernel")).to_contain_text("Kernel, 7 x 7")
    images = page.locator("#slider img")
    assert images.count() == 2
    assert images.evaluate_all("all => new Set(all.map(image => image.src)).size") == 2

    # The slider follows the mouse, and with it the part of the image above that is seen.
    cut = "images => getComputedStyle(images[0]).clipPath + getComputedStyle(images[1]).clipPath"
    before = images.evaluate_all(cut)
    handle, frame = page.locator("#slider .handle, #slider .outer").first, images.first.bounding_box()
    box = handle.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(frame["x"] + 0.25 * frame["width"], frame["y"] + 0.5 * frame["height"], steps=5)
    page.mouse.up()
    assert handle.bounding_box()["x"] < box["x"] - 0.1 * frame["width"]
    assert images.evaluate_all(cut) != before

    result = downloaded(page)
    assert result.suggested_filename == "deep_deblurred.tif"
    picture, original = read_picture(result.path().read_bytes()), read_picture(files / "deep.tif")
    assert (picture.format, picture.pages[0].dtype, picture.pages[0].shape) == ("TIFF", np.uint16, (SIDE, SIDE, 3))
    assert np.array_equal(picture.alphas[0], original.alphas[0])
    change = np.abs(picture.unit(0) - original.unit(0))
    assert change.mean() > 0.005  # it is the result, not the file that was sent


def test_a_sample_a_stop_with_the_best_so_far_and_the_next_run(visit, files):
    page = visit()
    page.locator("#samples button img").first.click()
    playwright.expect(state(page)).to_contain_text("im1_kernel5_img.png")
    start(page, "fast", "9")
    playwright.expect(state(page)).to_contain_text(re.compile("check, step [2-9]"))
    page.locator("#stop").click()
    playwright.expect(page.locator("#slider img").first).to_be_visible()
    playwright.expect(state(page)).to_contain_text("ended early")
    content = downloaded(page).path().read_bytes()
    assert Image.open(io.BytesIO(content)).size == (128, 128)
    # A run that fails changes nothing for the next one.
    for size, words in (("4", "one or two odd, positive numbers"), ("x", "kernel size: 'x' is no number of pixels")):
        start(page, size=size)
        playwright.expect(state(page).get_by_role("alert")).to_contain_text(words)
        playwright.expect(page.locator("#go")).to_be_enabled()
    ready(page, files / "grey.png")
    start(page)
    page.locator("#slider img").first.wait_for()


def test_a_stop_before_there_is_a_result_ends_the_process(visit, files, server):
    page = visit()
    ready(page, files / "grey.png")
    start(page, size="15")
    playwright.expect(state(page)).to_contain_text("Searching for the kernel")
    assert len(server.workers()) == 1
    page.locator("#stop").click()
    playwright.expect(state(page)).to_contain_text("Stopped; there is no result.")
    wait_until(lambda: server.workers() == [])
    playwright.expect(page.locator("#go")).to_be_enabled()
    playwright.expect(page.locator("#slider")).to_be_hidden()


def test_what_cannot_be_read_is_told_on_the_page(visit, files):
    page = visit()
    for name, words in (
        ("broken.png", "broken.png: "),
        ("words.jpg", "words.jpg: "),
        ("large.png", "large.png: 0.05 megapixels are too many here, where 0.04 is the most"),
    ):
        choose(page, files / name)
        alert = state(page).get_by_role("alert")
        playwright.expect(alert).to_contain_text(words)
        assert "Traceback" not in page.content()
        assert "/" not in alert.inner_text()
        playwright.expect(page.locator("#go")).to_be_disabled()
    ready(page, files / "grey.png")


def test_a_file_of_too_many_bytes_is_refused(visit, files, server):
    page = visit()
    with page.expect_event("console", lambda message: message.text == "Response"):  # the last word of Gradio on it
        choose(page, files / "heavy.bmp")
        playwright.expect(page.get_by_text("exceed the maximum allowed size of 1.5 Mb").first).to_be_visible()
    assert {*visit.errors} <= {
        "Response",
        "Failed to load resource: the server responded with a status of 404 (Not Found)",
    }
    visit.errors.clear()
    ready(page, files / "grey.png")
    # And so is one that did not come from the page.
    refused = page.request.post(
        f"{server.address}/gradio_api/upload",
        multipart={"files": {"name": "a.bmp", "mimeType": "image/bmp", "buffer": (files / "heavy.bmp").read_bytes()}},
    )
    assert refused.status == 413


def test_two_at_once_a_third_is_refused_and_a_closed_page_ends_its_run(visit, files, server):
    first, second, third = visit(), visit(), visit()
    for page in (first, second, third):
        ready(page, files / "grey.png")
    start(first, "release", "9")
    playwright.expect(state(first)).to_contain_text(re.compile("step [2-9]"))
    start(second)
    playwright.expect(state(second)).to_contain_text("Waiting: 1 picture before this one.")
    start(third)
    playwright.expect(state(third).get_by_role("alert")).to_contain_text("2 pictures are in work or waiting")
    (worker,) = server.workers()
    first.context.close()
    wait_until(lambda: worker not in server.workers())
    second.locator("#slider img").first.wait_for()
    assert downloaded(second).suggested_filename == "grey_deblurred.png"
    start(third)
    playwright.expect(state(third)).to_contain_text("Searching for the kernel")


def test_the_page_is_as_wide_as_the_screen(visit, files):
    page = visit(375)
    ready(page, files / "grey.png")
    assert page.locator("#size input, #size textarea").input_value() == ""
    start(page, size="")  # and it is estimated
    page.locator("#slider img").first.wait_for()
    page.locator("#kernel img").wait_for()
    for width in (375, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        images = page.locator("#slider img, #kernel img, #samples button img").all()
        assert len(images) == 8
        for image in images:
            box = image.bounding_box()
            assert 0 <= box["x"] < box["x"] + box["width"] <= width
        if "SHOTS" in os.environ:
            page.screenshot(path=f"{os.environ['SHOTS']}/{width}.png", full_page=True)


def test_another_name_of_the_machine_is_refused(server):
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"))
    for host, status in (("attacker.example", 400), (server.address.removeprefix("http://"), 200)):
        connection.request("GET", "/", headers={"Host": host})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    connection.close()

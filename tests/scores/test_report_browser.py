"""The page of ``python -m selfdeblur report`` in a real browser: Debian's chromium, driven by Playwright."""

import numpy as np
import pytest
from playwright import sync_api as playwright
from test_report import SETTINGS, change_record, kernel_of, make_results, write_result

from selfdeblur.files.images import write_image
from selfdeblur.scores import report

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """A page with five images: two finished, one unfinished, one flagged, one missing."""
    folder = tmp_path_factory.mktemp("report")
    names = ("im1_kernel1_img", "im1_kernel4_img", "im2_kernel1_img", "im10_kernel1_img")
    results, blurry = make_results(folder, names)
    change_record(results, "im2_kernel1_img", finished=False, steps=30)
    change_record(results, "im10_kernel1_img", quality={"flagged": True, "reason": EVIL})
    (results / "im1_kernel4_img.json").unlink()
    write_image(blurry / "im2_kernel4_img.png", np.full((96, 120), 0.5))
    page = folder / "page.html"
    page.write_text(report.render(results))
    return page


@pytest.fixture(scope="module")
def plain_document(tmp_path_factory):
    """A page without true images, of a name and settings that look like markup."""
    folder = tmp_path_factory.mktemp("plain")
    write_result(folder, folder, EVIL, np.full((50, 90, 3), 0.4), kernel_of(1), settings={EVIL: f"</script>{EVIL}"})
    write_image(folder / "blurry" / f"{EVIL}.png", np.full((50, 90, 3), 0.6))
    page = folder / "page.html"
    page.write_text(report.render(folder, data_path=folder / "blurry"))
    return page


@pytest.fixture
def visit(browser):
    """Opens a page; in the end no error was logged and no request had left the page."""
    contexts, requests, errors = [], [], []

    def open_page(path, *, width=1280, height=900, fragment="", **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: (errors.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri() + fragment)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
    files = {url.split("#")[0] for url in requests if not url.startswith("data:")}
    assert all(url.startswith("file:") and url.endswith("page.html") for url in files)
    assert len(files) == 1


def open_image(page, name):
    page.get_by_role("button", name=name, exact=True).click()
    frame = group(page, name).locator(".frame")
    frame.scroll_into_view_if_needed()
    return frame


def group(page, name):
    return page.locator("tbody", has=page.get_by_role("button", name=name, exact=True))


def position(frame):
    """Where the divider is: the slider's value, the line's place and the upper image's visible part, in percent."""
    return frame.evaluate("""frame => {
        const whole = frame.getBoundingClientRect(), line = frame.querySelector('.edge').getBoundingClientRect();
        const cut = getComputedStyle(frame.querySelector('.top')).clipPath;
        return {value: Number(frame.querySelector('input').value),
                line: 100 * ((line.left + line.right) / 2 - whole.left) / whole.width,
                shown: frame.style.getPropertyValue('--at'), cut};
    }""")


def check_position(frame, expected):
    at = position(frame)
    assert at["value"] == pytest.approx(expected, abs=1)
    assert at["line"] == pytest.approx(at["value"], abs=0.3)
    assert at["shown"] == f"{at['value']}%"
    assert at["cut"].startswith("inset(0")


def names_in_order(page):
    return page.locator("button.name").all_inner_texts()


def test_mouse_moves_the_slider(visit, document):
    page = visit(document)
    frame = open_image(page, "im1_kernel1_img")
    check_position(frame, 50)
    box = frame.bounding_box()
    middle = box["y"] + box["height"] / 3
    page.mouse.move(box["x"] + 0.5 * box["width"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], middle, steps=4)
    check_position(frame, 80)
    page.mouse.move(box["x"] - 50, middle, steps=2)
    check_position(frame, 0)
    page.mouse.move(box["x"] + 0.25 * box["width"], middle)
    page.mouse.up()
    page.mouse.move(box["x"] + 0.9 * box["width"], middle)
    check_position(frame, 25)


def test_the_slider_really_uncovers_the_other_image(visit, document):
    page = visit(document)
    frame = open_image(page, "im1_kernel1_img")
    shots = []
    for value in (0, 100):
        frame.locator("input").evaluate(
            f"input => {{ input.value = {value}; input.dispatchEvent(new Event('input')) }}"
        )
        shots.append(frame.screenshot())
    assert shots[0] != shots[1]
    assert frame.locator(".top").get_attribute("alt") == "Blurry image of im1_kernel1_img"
    assert frame.locator(".bottom").get_attribute("alt") == "Deblurred image of im1_kernel1_img"


def test_keyboard_moves_the_slider(visit, document):
    page = visit(document)
    page.get_by_role("button", name="im1_kernel1_img", exact=True).focus()
    page.keyboard.press("Enter")
    frame = group(page, "im1_kernel1_img").locator(".frame")
    slider = frame.get_by_role("slider")
    for _ in range(10):
        page.keyboard.press("Tab")
        if slider.evaluate("slider => slider === document.activeElement"):
            break
    page.keyboard.press("ArrowRight")
    check_position(frame, 51)
    assert slider.get_attribute("aria-valuetext") == "51 % Blurry, 49 % Deblurred"
    assert frame.evaluate("frame => getComputedStyle(frame).outlineStyle") == "solid"
    page.keyboard.press("Home")
    check_position(frame, 0)
    page.keyboard.press("PageUp")
    check_position(frame, 10)
    page.keyboard.press("End")
    check_position(frame, 100)


def test_touch_moves_the_slider(visit, document):
    page = visit(document, width=375, height=760, has_touch=True, is_mobile=True)
    assert group(page, "im1_kernel1_img").locator("td.detail").is_hidden()
    page.get_by_role("button", name="im1_kernel1_img", exact=True).tap()
    frame = group(page, "im1_kernel1_img").locator(".frame")
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    touch = page.context.new_cdp_session(page)

    def send(kind, share=None):
        points = [] if share is None else [{"x": box["x"] + share * box["width"], "y": box["y"] + box["height"] / 2}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    send("touchStart", 0.5)
    for share in (0.45, 0.4, 0.3, 0.2):
        send("touchMove", share)
    send("touchEnd")
    check_position(frame, 20)
    page.touchscreen.tap(box["x"] + 0.7 * box["width"], box["y"] + box["height"] / 2)
    check_position(frame, 70)


def test_the_pair_can_be_chosen(visit, document):
    page = visit(document)
    frame = open_image(page, "im1_kernel1_img")
    group(page, "im1_kernel1_img").get_by_role("radio", name="Deblurred | True").check()
    assert frame.locator("img").evaluate_all("images => images.map(image => image.alt)") == [
        "True image of im1_kernel1_img",
        "Deblurred image of im1_kernel1_img",
    ]
    assert frame.locator(".tag").all_inner_texts() == ["Deblurred", "True"]


def test_sorting(visit, document):
    page = visit(document)
    listed = ["im1_kernel1_img", "im1_kernel4_img", "im2_kernel1_img", "im2_kernel4_img", "im10_kernel1_img"]
    assert names_in_order(page) == listed
    header = page.get_by_role("columnheader", name="PSNR")
    assert header.get_attribute("aria-sort") == "none"

    def psnr():
        found = page.locator("table.images > tbody").evaluate_all(
            "groups => groups.map(group => group.querySelector('[data-label^=PSNR]').innerText.trim())"
        )
        assert found[-1] == "–"  # the missing image comes last both ways
        return [float(value) for value in found[:-1]]

    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert psnr() == sorted(psnr())
    assert len(set(psnr())) > 1
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert psnr() == sorted(psnr(), reverse=True)

    name = page.get_by_role("columnheader", name="Image")
    name.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert (name.get_attribute("aria-sort"), header.get_attribute("aria-sort")) == ("ascending", "none")
    assert names_in_order(page) == listed
    page.keyboard.press("Space")
    assert names_in_order(page) == listed[::-1]
    assert page.get_by_role("status").inner_text() == "Sorted by Image, descending"
    page.get_by_role("columnheader", name="State").get_by_role("button").click()
    assert names_in_order(page)[:2] == ["im2_kernel4_img", "im2_kernel1_img"]


def test_an_opened_image_stays_with_its_row(visit, document):
    page = visit(document)
    open_image(page, "im1_kernel1_img")
    page.get_by_role("columnheader", name="Image").get_by_role("button").click()
    page.get_by_role("columnheader", name="Image").get_by_role("button").click()
    assert group(page, "im1_kernel1_img").locator(".frame").is_visible()
    page.get_by_role("button", name="im1_kernel1_img", exact=True).click()
    assert group(page, "im1_kernel1_img").locator(".frame").is_hidden()


def test_what_is_not_finished_is_marked(visit, document):
    page = visit(document)
    for name, words in (
        ("im1_kernel1_img", "Finished"),
        ("im2_kernel1_img", "Unfinished, 30 of 60 steps"),
        ("im2_kernel4_img", "Missing"),
        ("im10_kernel1_img", "Doubtful"),
    ):
        assert words in group(page, name).locator(".words").inner_text()
    assert "PARTIAL: only 4 of 5" in page.locator(".notice").first.inner_text()
    group(page, "im2_kernel1_img").locator("tr.row").click()
    assert "last checkpoint" in group(page, "im2_kernel1_img").locator("td.detail").inner_text()
    group(page, "im2_kernel4_img").locator("tr.row").click()
    assert group(page, "im2_kernel4_img").locator("td.detail").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_pictures_text_and_width(visit, document, width, scheme):
    page = visit(document, width=width, color_scheme=scheme)
    for button in page.locator("button.name").all():
        button.click()
    for summary in page.locator("details > summary").all():
        summary.click()
    page.locator("tbody .panel").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    images = page.locator("img")
    assert images.count() > 20
    for image in images.all():
        image.scroll_into_view_if_needed()
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert all(images.evaluate_all("images => images.map(image => image.alt.trim().length > 5)"))
    kernels = page.locator(".kernels img")
    assert set(kernels.evaluate_all("all => all.map(image => getComputedStyle(image).imageRendering)")) == {"pixelated"}
    assert kernels.first.bounding_box()["width"] >= 100
    curve = group(page, "im1_kernel1_img").locator("svg.plot")
    assert curve.locator("path").count() == 2  # broken where the loss changes
    assert "the loss changes at step 21" in curve.get_attribute("aria-label")
    background, text, soft = page.evaluate("""() => {
        const probe = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
        const shine = colour => {
            probe.fillStyle = colour; probe.fillRect(0, 0, 1, 1);
            const parts = [...probe.getImageData(0, 0, 1, 1).data].slice(0, 3).map(c => c / 255);
            const [r, g, b] = parts.map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        return [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
                getComputedStyle(document.querySelector('.soft')).color].map(shine);
    }""")
    assert (background < 0.1) == (scheme == "dark")
    for ink in (text, soft):
        high, low = max(ink, background), min(ink, background)
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_theme_can_be_toggled(visit, document):
    page = visit(document, color_scheme="light")
    colour = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(colour)
    page.get_by_role("button", name="Dark theme").click()
    dark = page.evaluate(colour)
    assert dark != before
    page.reload()
    assert page.evaluate(colour) == dark
    page.get_by_role("button", name="Light theme").click()
    assert page.evaluate(colour) == before


def test_address_opens_an_image(visit, document):
    page = visit(document, fragment="#im10_kernel1_img")
    assert page.get_by_role("button", name="im10_kernel1_img", exact=True).get_attribute("aria-expanded") == "true"
    page.get_by_role("link", name="im1_kernel4_img").click()
    button = page.get_by_role("button", name="im1_kernel4_img", exact=True)
    # The page hears of its new address only after the click is over.
    playwright.expect(button).to_be_focused()
    assert button.get_attribute("aria-expanded") == "true"


def test_without_truth_and_with_names_that_look_like_markup(visit, plain_document):
    page = visit(plain_document)
    assert names_in_order(page) == [EVIL]
    frame = open_image(page, EVIL)
    check_position(frame, 50)
    assert page.locator(".frame").count() == 1
    assert page.locator(".map, .scale, [data-label^=PSNR]").count() == 0
    page.locator("td.detail details > summary").click()
    assert EVIL in page.locator("td.detail details dt").inner_text()
    assert page.locator("img[src=x]").count() == 0


def test_settings_are_shown(visit, document):
    page = visit(document)
    page.get_by_text("Settings", exact=True).first.click()
    shown = page.locator("details[open] dl").first
    terms = dict(zip(shown.locator("dt").all_inner_texts(), shown.locator("dd").all_inner_texts(), strict=True))
    assert terms.keys() == SETTINGS.keys()
    assert (terms["num_iter"], terms["milestones"]) == ("60", "30, 40")

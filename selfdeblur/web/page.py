"""The page: what is on it, and what its buttons do. Loaded only where Gradio is there."""

import html
import re
import time

import gradio

from selfdeblur.errors import UserError
from selfdeblur.runs.photo_options import WORDS
from selfdeblur.settings import QUICK
from selfdeblur.web.visits import Work

# Seconds between two looks at a run.
LOOK = 0.25
# Above so many pixels the kernel is searched in a part of the picture, see `selfdeblur.restore.WHOLE`.
WHOLE = 1.05
# Seconds of one core of a CPU: for any picture, for each megapixel that the kernel is found in, and for each megapixel
# that is deconvolved. Measured with kernels of 19 to 41 pixels, the search for their size included; those of "release"
# and "paper" are twice what two cores take.
SECONDS = {
    QUICK: (8, 200, 15),
    "fast": (25, 780, 15),
    "best": (25, 4500, 15),
    "release": (0, 80000, 15),
    "paper": (0, 80000, 15),
}
STYLE = """
.gradio-container {max-width: 1180px !important; margin: 0 auto !important}
footer {display: none !important}
.state {min-height: 3.2em}
.state progress {width: 100%; height: .6em; accent-color: #2563eb}
.state p {margin: .3em 0}
.state .error {color: #b91c1c; font-weight: 600}
.dark .state .error {color: #fca5a5}
.state .doubt {color: #92400e; font-weight: 600}
.dark .state .doubt {color: #fcd34d}
.kernel img {image-rendering: pixelated}
#samples .grid-container {grid-template: auto / repeat(5, minmax(0, 1fr)) !important}
#samples {min-height: 0 !important}
#samples .grid-wrap {min-height: 0 !important; height: auto !important}
#samples button {aspect-ratio: 1; height: auto}
"""
# What a browser may load: what this server sends and nothing else, whatever a later version of Gradio asks for.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob:; "
    "frame-ancestors 'none'; form-action 'self'"
)
STAGES = {
    "kernel": "searching for the kernel",
    "deconvolution": "deconvolving the picture",
    "colour": "deconvolving the colours",
}


def expected(preset, megapixels, device):
    """Words for the time that a picture may take, "" where that was not measured."""
    if device != "cpu" or preset not in SECONDS:
        return ""
    always, searched, deconvolved = SECONDS[preset]
    return about(always + searched * min(megapixels, WHOLE) + deconvolved * megapixels)


def about(seconds):
    """Words for a number of seconds."""
    if seconds < 90:
        return f"{max(round(seconds, -1 if seconds > 20 else 0), 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"


def plain(text):
    """A message that names options of the command, as the page says it."""
    for option, words in (("--kernel_size", "kernel size"), ("kernel_size", "kernel size"), ("--", "")):
        text = text.replace(option, words)
    return re.sub(r"(?<=\. )[a-z]", lambda letter: letter[0].upper(), text)


def make_page(visits, samples, device, kind, megapixels):
    """The page as `gradio.Blocks`.

    Parameters
    ----------
    visits : selfdeblur.web.visits.Visits
    samples : list of str
        Pictures to try it with.
    device, kind : str
        The device as `restore` takes it, and "cpu" or "cuda".
    megapixels : float
        The largest picture.
    """
    page = _Page(visits, samples, device, kind, megapixels)
    return page.blocks


class _Page:
    def __init__(self, visits, samples, device, kind, megapixels):
        self.visits, self.samples, self.device, self.kind = visits, samples, device, kind
        self.pixels = int(megapixels * 1e6)
        with gradio.Blocks(title="selfdeblur", analytics_enabled=False) as self.blocks:
            gradio.Markdown(
                "# selfdeblur\nTakes the blur of a shaking or unfocused camera out of a picture. The picture stays on "
                "the machine that runs this page. Closing the page stops its run and removes the picture."
            )
            with gradio.Row():
                with gradio.Column(scale=2, min_width=320):
                    self._inputs(megapixels)
                with gradio.Column(scale=3, min_width=320):
                    self._outputs()
        with self.blocks:
            self._connect()

    def _inputs(self, megapixels):
        self.file = gradio.File(label=f"Picture, up to {megapixels:g} megapixels", height=150, elem_id="file")
        gradio.Markdown("Or take a sample:")
        self.gallery = gradio.Gallery(
            self.samples,
            label="Samples",
            columns=len(self.samples),
            rows=1,
            height="auto",
            show_label=False,
            object_fit="cover",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="samples",
        )
        self.preset = gradio.Radio(self._presets(), value="fast", label="Preset", info=self._times(), elem_id="preset")
        self.size = gradio.Textbox(
            label="Kernel size",
            info="An odd number, at least as many pixels as the blur is long. Empty: it is estimated.",
            placeholder="estimated",
            max_lines=1,
            elem_id="size",
        )
        with gradio.Row():
            self.go = gradio.Button("Deblur", variant="primary", elem_id="go", min_width=100, interactive=False)
            self.stop = gradio.Button("Stop", elem_id="stop", min_width=100, interactive=False)

    def _outputs(self):
        self.state = gradio.HTML(_line("Choose a picture."), elem_classes="state", elem_id="state")
        self.shown = gradio.Image(label="Picture", interactive=False, buttons=[], visible=False, elem_id="shown")
        self.slider = gradio.ImageSlider(
            label="Before and after",
            type="filepath",
            interactive=False,
            buttons=["fullscreen"],
            max_height=640,
            visible=False,
            elem_id="slider",
        )
        self.download = gradio.DownloadButton("Download", variant="primary", visible=False, elem_id="download")
        self.kernel = gradio.Image(
            label="Kernel",
            interactive=False,
            buttons=["download"],
            height=240,
            visible=False,
            elem_id="kernel",
            elem_classes="kernel",
        )

    def _connect(self):
        results = [self.slider, self.download, self.kernel]
        looked = [self.file, self.state, self.shown, self.preset, self.go, *results]
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        self.file.upload(self.uploaded, self.file, looked, queue=False, **quiet)
        self.gallery.select(self.chosen, None, looked, queue=False, **quiet)
        self.go.click(
            self.deblur,
            [self.preset, self.size],
            [self.state, self.shown, self.go, self.stop, *results],
            concurrency_limit=None,
            **quiet,
        )
        self.stop.click(self.stopped, None, None, queue=False, **quiet)
        self.blocks.unload(self.closed)

    def _presets(self, megapixels=None):
        choices = []
        for name, words in WORDS.items():
            time_to_expect = "" if megapixels is None else expected(name, megapixels, self.kind)
            choices.append((f"{name}{', about ' if time_to_expect else ''}{time_to_expect}: {words}", name))
        return choices

    def _times(self):
        return "Times are rough, and for one core of a CPU; more are faster." if self.kind == "cpu" else None

    # What happens

    def uploaded(self, file, request: gradio.Request):
        """A file has arrived."""
        visit = self.visits.of(request.session_hash)
        return self._look(visit, lambda: self.visits.take(visit, file))

    def chosen(self, event: gradio.SelectData, request: gradio.Request):
        """A sample was chosen."""
        visit = self.visits.of(request.session_hash)
        return self._look(visit, lambda: self.visits.copy(visit, self.samples[event.index]))

    def _look(self, visit, take):
        visit.stop_at_once()
        visit.facts, hidden = None, gradio.update(visible=False)
        changes = {self.file: None, self.slider: hidden, self.download: hidden, self.kernel: hidden}
        try:
            path, preview = take(), f"{visit.new_path()}.png"
            visit.facts = Work("look", str(path), self.pixels, preview).wait()
        except UserError as error:
            return {
                **changes,
                self.state: _problem(error),
                self.shown: hidden,
                self.go: gradio.update(interactive=False),
            }
        finally:
            if visit.closed:
                visit.close()
        megapixels = visit.facts["pixels"] / 1e6
        return {
            **changes,
            self.state: _line(f"{visit.facts['name']}: {visit.facts['facts']}."),
            self.shown: gradio.update(value=preview, label="Picture", visible=True),
            self.preset: gradio.update(choices=self._presets(megapixels)),
            self.go: gradio.update(interactive=True),
        }

    def stopped(self, request: gradio.Request):
        """The button was pressed."""
        self.visits.of(request.session_hash).stop()

    def closed(self, request: gradio.Request):
        """The page was closed."""
        self.visits.leave(request.session_hash)

    def deblur(self, preset, size, request: gradio.Request):
        """The run of a picture, from waiting for its turn to the result: changes of the page, one after the other."""
        visit = self.visits.of(request.session_hash)
        if visit.busy:
            return
        if visit.facts is None:
            yield {self.state: _line("Choose a picture.")}
            return
        visit.busy, visit.stopped = True, False
        hidden = gradio.update(visible=False)
        try:
            with self.visits.turn(visit) as before:
                yield {
                    self.go: gradio.update(interactive=False),
                    self.stop: gradio.update(interactive=True),
                    self.slider: hidden,
                    self.download: hidden,
                    self.kernel: hidden,
                    self.shown: gradio.update(visible=True),
                    self.state: _line("Starting ..."),
                }
                yield from self._wait(visit, before)
                yield from self._run(visit, preset, size)
        except UserError as error:
            yield {self.state: _problem(error)}
        finally:
            visit.busy = False
            if visit.closed:
                visit.close()
        yield {
            self.go: gradio.update(interactive=visit.facts is not None),
            self.stop: gradio.update(value="Stop", interactive=False),
        }

    def _wait(self, visit, before):
        number = None
        while before() and not visit.stopped:
            if before() != number:
                number = before()
                yield {
                    self.state: _line(f"Waiting: {number} {'picture' if number == 1 else 'pictures'} before this one.")
                }
            time.sleep(LOOK)

    def _run(self, visit, preset, size):
        if visit.stopped:
            yield {self.state: _line("Stopped.")}
            return
        begun = time.monotonic()
        work = Work("deblur", str(visit.path), str(visit.new_path()), preset, _number(size), self.device)
        visit.work = work
        try:
            said = shown = None
            while not work.ended(LOOK):
                if visit.stopped and not work.killed and not work.news.get("fitted"):
                    work.stop()  # it was pressed before the process was there
                line = _progress(work.news, time.monotonic() - begun)
                changes = {} if line == said else {self.state: line}
                said = line
                if work.news.get("after") != shown:
                    shown = work.news["after"]
                    changes[self.shown] = gradio.update(value=shown, label="So far")
                    changes[self.kernel] = gradio.update(value=work.news["kernel"], visible=True)
                if work.news.get("stopping"):
                    changes[self.stop] = gradio.update(value="Stop at once")
                if changes:
                    yield changes
        finally:
            visit.work = None
            work.close()
        if work.killed:
            yield {self.state: _line("Stopped; there is no result."), self.kernel: gradio.update(visible=False)}
        elif work.error:
            raise UserError(work.error)
        else:
            yield self._result(work.result, time.monotonic() - begun)

    def _result(self, result, seconds):
        name = result["result"].rpartition("/")[2]
        kernel, size = result["kernel"], result["kernel_size"]
        label = "Kernel" if size is None else f"Kernel, {size[1]} x {size[0]}"
        return {
            self.state: _verdict(result, seconds),
            self.shown: gradio.update(visible=False),
            self.slider: gradio.update(value=(result["before"], result["after"]), visible=True),
            self.download: gradio.update(label=f"Download {name}", value=result["result"], visible=True),
            self.kernel: gradio.update(value=kernel, label=label, visible=kernel is not None),
        }


def _number(text):
    try:
        return int(text) if text.strip() else None
    except ValueError:
        raise UserError(f"kernel size: {text!r} is no number of pixels; leave it empty, or give one like 21") from None


def _line(text):
    return f'<p role="status">{html.escape(text)}</p>'


def _problem(error):
    return f'<p class="error" role="alert">{html.escape(plain(str(error)))}</p>'


def _progress(news, seconds):
    """Bar and words for what was told of a run."""
    words = f"{seconds // 60:.0f}:{seconds % 60:02.0f} so far"
    if not news:
        return f"<progress></progress>{_line(f'Reading the picture and searching for the kernel, {words}')}"
    stage = STAGES.get(news["stage"], f"fitting networks, {news['stage']}")
    if news["pages"] > 1:
        stage = f"page {news['page']} of {news['pages']}: {stage}"
    if news.get("stopping"):
        stage = "stopping with the best so far"
    value = ""
    if news["loss"] is not None:
        stage += "" if news.get("stopping") else f", step {news['step']} of {news['steps']}"
        value = f' value="{news["step"]}" max="{news["steps"]}"'
        if news["step"] == news["steps"]:
            stage += "; finishing"
        elif not news.get("stopping"):
            words += f", {about(news['left'])} left"
    return f"<progress{value}></progress>{_line(f'{stage[0].upper()}{stage[1:]}; {words}')}"


def _verdict(result, seconds):
    """The sentence on the quality of a result, and what else there is to say."""
    kind = {"improved": "", "unchanged": "doubt", "doubtful": "doubt"}[result["status"]]
    text = {
        "improved": "Deblurred; no reason for doubt was found.",
        "unchanged": "The picture is as it was.",
        "doubtful": "Doubtful: no reliable improvement.",
    }[result["status"]]
    text = plain(f"{text} {result['sentence']}.") if result["sentence"] else text
    notes = "; ".join([f"It took {about(seconds)}", *result["notes"]])
    return f'<p class="{kind}" role="status">{html.escape(text)}</p><p>{html.escape(notes)}.</p>'

"""Images of a folder, one after the other or several at once: checkpoints, signals, failures, progress."""

import contextlib
import platform
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from selfdeblur import __version__
from selfdeblur.api import start, to_arrays
from selfdeblur.checks import check_image
from selfdeblur.errors import STOPPING, OutputError, StoppedError, UserError
from selfdeblur.files.images import read_image
from selfdeblur.files.records import file_hash
from selfdeblur.graphs import CHECK_EVERY, FixedRun, on_fixed_buffers, out_of_memory
from selfdeblur.settings import Settings

try:
    import resource
except ImportError:  # not on Windows
    resource = None

# Seconds between checkpoints, and the most of all time that writing them may take: on a slow disk they are rarer.
CHECKPOINT_SECONDS, CHECKPOINT_SHARE = 60, 0.02

# How often a run whose loss is NaN goes back to its checkpoint before it counts as failed.
MOST_RESTARTS = 3

# GPU memory of one run: for each pixel of the deblurred image with its border, for each weight of the kernel generator,
# and for what the libraries keep. Live tensors take 5.3 kB a pixel; the rest is for work space, gaps, and what first
# steps leave to the recording. On an H200 in float32 it comes to 12 kB a pixel at 680 x 1024, 13 with all at 255 x 255.
PIXEL_BYTES, WEIGHT_BYTES, RUN_BYTES = 11700, 16, 256 << 20

# A size that is estimated is not known before the image's turn.
LARGEST_ESTIMATED = (61, 61)

# Share of a GPU's free memory that runs are planned into.
GPU_SHARE = 0.9


@dataclass(frozen=True)
class Job:
    """One blurry image file and all that decides its result.

    ``kernel`` and ``kernel_file`` are given for a known kernel only. A ``kernel_size`` of None is estimated.
    """

    path: Path
    kernel_size: tuple[int, int] | None
    settings: Settings
    kernel: np.ndarray | None = None
    kernel_file: Path | None = None

    @property
    def name(self):
        return self.path.stem

    def identity(self):
        """What a result or a checkpoint must agree with to belong to this job; JSON values."""
        return {
            "settings": self.settings.as_dict(),
            "kernel_size": "auto" if self.kernel_size is None else list(self.kernel_size),
            "blurry_sha256": file_hash(self.path),
            "kernel_sha256": file_hash(self.kernel_file) if self.kernel_file else None,
        }


def images_at_once(jobs, device):
    """How many of the jobs to do at once: one on the CPU, on a GPU as many as its free memory bears.

    That is so many that the greatest ones fit into nine tenths of it, with
    about 12 kB for each pixel of the image with its border and 256 MB each.
    """
    if device.type != "cuda":
        return 1
    needs = []
    for job in jobs:
        with contextlib.suppress(UserError):
            needs.append(gpu_memory(read_image(job.path).shape, job.kernel_size or LARGEST_ESTIMATED))
    free, count = GPU_SHARE * torch.cuda.mem_get_info(device)[0], 0
    for need in sorted(needs, reverse=True):
        free -= need
        count += free >= 0
    return max(count, 1)


def gpu_memory(size, kernel_size):
    """Bytes of GPU memory to set aside for a run on an image of ``size`` (H, W, ...)."""
    h, w = kernel_size
    pixels = (size[0] + h - 1) * (size[1] + w - 1)
    return PIXEL_BYTES * pixels + WEIGHT_BYTES * 1000 * h * w + RUN_BYTES


def deblur_files(jobs, folder, *, device, save_frequency=0, checkpoint_every=0, batch=1):
    """Deblur image files into a folder of results.

    What is finished is left, what was interrupted goes on from its checkpoint.
    An image that fails is recorded and the others go on. Images that are done
    at once are fitted each with networks of its own, as if it were alone.

    Parameters
    ----------
    jobs : list of Job
    folder : ResultFolder
    device : torch.device
        Where its memory is too small, fewer images are done at once; where it
        is too small for one, that one is done on the CPU.
    save_frequency : int
        Steps between intermediate results; 0 for none.
    checkpoint_every : int
        Steps between checkpoints; 0 for one about every minute.
    batch : int
        Images done at once; 0 for what `images_at_once` says.

    Returns
    -------
    counts : dict of str to int
        How many images were "deblurred", "finished before", "in work elsewhere".
    failures : dict of str to str
        Reason by image name.

    Raises
    ------
    StoppedError
        On SIGINT, SIGTERM or SIGUSR2, after a checkpoint of each image in work.
    OutputError
        If a file cannot be written.
    """
    with _Signals() as signals:
        queue = _Queue(jobs, folder, device, save_frequency, checkpoint_every, signals, limit=batch)
        queue.do()
    folder.record_failures(queue.failures)
    return queue.counts, queue.failures


class _Queue:
    """Jobs of which at most ``limit`` are in work at once; where one ends, the next one takes its place."""

    def __init__(self, jobs, folder, device, save_frequency, checkpoint_every, signals, *, limit):
        self.folder, self.device, self.signals = folder, device, signals
        self.save_frequency, self.checkpoint_every = save_frequency, checkpoint_every
        self.limit = limit or images_at_once(jobs, device)
        self.waiting = deque((job, device) for job in jobs)
        self.works, self.clock = [], _Clock()
        self.interval = CHECKPOINT_SECONDS
        self.bar, self.steps_gone = None, 0
        if self.limit > 1:
            steps = sum(job.settings.num_iter for job in jobs)
            self.bar = tqdm(total=steps, desc=f"{len(jobs)} images", unit="step", disable=None)
        self.counts = {"deblurred": 0, "finished before": 0, "in work elsewhere": 0}
        self.failures = {}

    def do(self):
        """Do all jobs."""
        try:
            while self.works or self.waiting:
                while self.waiting and len(self.works) < self._most():
                    work = _Work(*self.waiting.popleft(), self)
                    self.works.append(work)
                    self.clock.share(len(self.works))
                    self._attempt(work, work.open)
                for work in list(self.works):
                    if work in self.works:  # not set aside in this round
                        self._attempt(work, work.step)
                if self.bar:
                    self.bar.update(self.steps_gone + sum(work.run.steps_done for work in self.works) - self.bar.n)
        except StoppedError:
            for work in self.works:
                work.checkpoint()
            raise StoppedError(self.signals.received) from None  # it may have been another one since
        finally:
            for work in list(self.works):
                self._let_go(work)
            if self.bar:
                self.bar.close()

    def _most(self):
        """How many may be in work; those that a GPU handed over to the CPU come last and one by one."""
        return self.limit if self.waiting[0][1] == self.device else 1

    def _attempt(self, work, action):
        """Open a work or do a step of it, and see to what becomes of it."""
        outcome = too_large = None
        try:
            outcome = action()
        except OutputError:
            raise
        except UserError as error:
            self._fail(work, str(error))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            too_large = True  # seen to below, where the error no longer holds on to tensors
        if outcome:
            self.counts[outcome] += 1
            self._end(work)
        if too_large:
            self._shrink(work)

    def _end(self, work):
        self.steps_gone += work.job.settings.num_iter
        self._let_go(work)

    def _let_go(self, work):
        self.works.remove(work)
        work.close()
        self.clock.share(len(self.works))

    def _fail(self, work, reason):
        self.failures[work.job.name] = reason
        self.folder.record_failures(self.failures)
        print(f"error: {reason}", file=sys.stderr)
        self._end(work)

    def _shrink(self, work):
        """Where memory was too small for a step of ``work``: go on with half as many, then with the CPU."""
        job, device, number = work.job, work.device, len(self.works)
        if number > 1:
            self.limit = number // 2
            print(
                f"warning: the memory of {device} is too small for {number} images at once; going on with {self.limit}",
                file=sys.stderr,
            )
            others = [other for other in reversed(self.works) if other is not work]
            for other in [work, *others][: number - self.limit]:
                other.set_aside()
                self._let_go(other)
                self.waiting.appendleft((other.job, other.device))
        elif device.type == "cpu":
            self._fail(
                work, f"{job.path}: the memory of this machine is too small for an image and a kernel of this size"
            )
        else:
            print(f"warning: {job.name}: the memory of {device} is too small; going on with the CPU", file=sys.stderr)
            work.set_aside()
            self._let_go(work)
            self.waiting.append((job, torch.device("cpu")))


class _Work:
    """The run of one job, from its checkpoint, if there is one, to its files."""

    def __init__(self, job, device, queue):
        self.job, self.device = job, device
        self.queue, self.folder = queue, queue.folder
        self.run = self.fixed = self.bar = None
        self.held = contextlib.ExitStack()

    def open(self):
        """Get ready for the first step; returns what became of the job where there is none to do."""
        job = self.job
        if not self.held.enter_context(self.folder.lock(job.name)):
            return "in work elsewhere"
        self.y = read_image(job.path)
        self.identity = job.identity()
        if self.folder.finished(job.name, self.identity):
            self.folder.remove_checkpoint(job.name)  # left where a run ended between its last two writes
            return "finished before"
        self.restarts = 0
        self.start()
        if not self.queue.bar:
            done, total = self.run.steps_done, job.settings.num_iter
            self.bar = tqdm(total=total, initial=done, desc=job.name, unit="step", disable=None)
        return self.result_if_done()

    def start(self):
        """The run at its first step, or where the checkpoint left it."""
        job = self.job
        self.release()
        try:
            y = check_image(self.y)
            run = start(y, job.kernel_size, job.settings, device=self.device, kernel=job.kernel)
        except UserError as error:
            raise UserError(f"{job.path}: {error}") from error
        self.seconds_before = self.folder.load_checkpoint(job.name, self.identity, run)
        self.run = run
        self.fixed = FixedRun(run) if on_fixed_buffers(run) else None
        self.begun, self.written = self.queue.clock.read(), time.monotonic()
        self.checked = run.steps_done

    def step(self):
        """One step; returns "deblurred" after the last one."""
        run, queue = self.run, self.queue
        if self.fixed:
            with queue.signals.raised():
                self.fixed.prepare()
            self.fixed.step()
        else:
            with queue.signals.raised():
                run.gradient()
            if not torch.isfinite(run.losses[run.steps_done]):
                self.restart(run.steps_done)
                return None
            run.update()
        done = run.steps_done
        saving = queue.save_frequency and done % queue.save_frequency == 0 and not run.is_done and run.fits_all_of_y
        late = time.monotonic() - self.written > queue.interval
        writing = done % queue.checkpoint_every == 0 if queue.checkpoint_every else late
        if self.fixed and (saving or writing or done % CHECK_EVERY == 0 or run.is_done):
            wrong = self.fixed.first_not_finite(self.checked)
            if wrong is not None:
                self.restart(wrong)
                return None
            self.checked = done
        if saving:
            self.save()
        if writing:
            self.checkpoint()
        self.show()
        return self.result_if_done()

    def result_if_done(self):
        if not self.run.is_done:
            return None
        if self.bar:
            self.bar.total = self.run.steps_done
            self.bar.refresh()
        quality = self.save()["quality"]
        self.folder.remove_checkpoint(self.job.name)
        if reasons := quality["reasons"]:
            print(f"doubtful: {self.job.name}: {'; '.join(reasons)}")
        return "deblurred"

    def show(self):
        if not self.bar:
            return
        done = self.run.steps_done
        self.bar.update(done - self.bar.n)
        if not self.bar.disable and done % (CHECK_EVERY if self.fixed else 10) == 0 and done:
            self.bar.set_postfix(loss=f"{self.run.losses[done - 1].item():.3e}", refresh=False)

    def restart(self, step):
        """Go back to the last checkpoint, where the loss was still a number, with rates halved once more.

        ``step``, counted from 0, is the one whose loss is none.
        """
        if self.restarts == MOST_RESTARTS:
            raise UserError(
                f"{self.job.path}: the loss is not a number at step {step + 1}, {MOST_RESTARTS} restarts did not help"
            )
        self.restarts += 1
        slowed = self.run.slowed
        self.start()
        self.run.slowed = slowed + 1
        print(
            f"warning: {self.job.name}: the loss is not a number at step {step + 1}; "
            f"again from step {self.run.steps_done} with a halved learning rate",
            file=sys.stderr,
        )

    def checkpoint(self):
        if self.run is None:
            return
        if self.fixed:
            self.fixed.settle()
        if self.run.steps_done and self.run.is_finite():
            begun = time.monotonic()
            self.folder.save_checkpoint(self.job.name, self.identity, self.seconds(), self.run)
            self.written = time.monotonic()
            cost = len(self.queue.works) * (self.written - begun)
            self.queue.interval = max(CHECKPOINT_SECONDS, cost / CHECKPOINT_SHARE)

    def set_aside(self):
        """Keep what was done, where there is memory enough for that."""
        self.release()
        try:
            self.checkpoint()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise

    def release(self):
        """Let go of all memory but that of the run itself."""
        if self.fixed:
            self.fixed.close()
            self.fixed = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def close(self):
        self.release()
        if self.bar:
            self.bar.close()
        self.run = None
        self.held.close()

    def seconds(self):
        return self.seconds_before + self.queue.clock.read() - self.begun

    def save(self):
        """Write the result so far; returns its record."""
        run, job = self.run, self.job
        output = run.output()
        image, kernel = to_arrays(output, self.y)
        finished = run.is_done
        record = {
            "image": job.name,
            "blurry": str(job.path),
            "image_size": list(self.y.shape[:2]),
            "kernel_size": list(run.kernel_size),
            "settings": job.settings.as_dict(),
            "steps": run.steps_done,
            "finished": finished,
            "loss": run.losses[run.steps_done - 1].item(),
            "seconds": round(self.seconds(), 2),
            "peak_mb": _peak_memory(),
            "batch": self.queue.limit,
            "restarts": self.restarts,
            "quality": run.quality(output) if finished else None,
            "device": _describe(self.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "version": __version__,
            "identity": self.identity,
        }
        self.folder.save(job.name, record, run, output, image, kernel)
        return record


class _Clock:
    """Time as one of several images sees it that share a device: among n of them it goes n times slower."""

    def __init__(self):
        self.images, self.time, self.last = 1, 0.0, time.monotonic()

    def read(self):
        """Seconds so far."""
        now = time.monotonic()
        self.time += (now - self.last) / self.images
        self.last = now
        return self.time

    def share(self, images):
        """Say how many images share the device from now on."""
        self.read()
        self.images = max(images, 1)


class _Signals(contextlib.AbstractContextManager):
    """SIGINT, SIGTERM and SIGUSR2 as a `StoppedError`, at a place where a run can be left.

    While `raised` is open the error comes at once, in the midst of a step;
    otherwise when it is opened next.
    """

    def __enter__(self):
        self.received, self.open = None, False
        self.previous = {n: signal.signal(n, self._receive) for n in STOPPING}
        return self

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _receive(self, number, _):
        self.received = signal.Signals(number).name
        if self.open:
            self.open = False
            raise StoppedError(self.received)

    @contextlib.contextmanager
    def raised(self):
        self.open = True
        try:
            if self.received:
                raise StoppedError(self.received)
            yield
        finally:
            self.open = False


def _peak_memory():
    """The most memory that this process has had so far, in MB; None where the system does not tell."""
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def _describe(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"

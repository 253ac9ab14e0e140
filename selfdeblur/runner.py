"""Images of a folder, one after the other: checkpoints, signals, failures, progress."""

import contextlib
import platform
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from selfdeblur import __version__
from selfdeblur.api import check_image, finish, start
from selfdeblur.errors import OutputError, StoppedError, UserError
from selfdeblur.images import read_image
from selfdeblur.results import file_hash
from selfdeblur.settings import Settings

# About one a minute, and on a slow disk so seldom that writing them takes less than 2 % of the time.
CHECKPOINT_SECONDS, CHECKPOINT_SHARE = 60, 0.02
RESTARTS = 3


@dataclass(frozen=True)
class Job:
    """One blurry image file and all that decides its result.

    ``kernel`` and ``kernel_file`` are given for a known kernel only.
    """

    path: Path
    kernel_size: tuple[int, int]
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
            "kernel_size": list(self.kernel_size),
            "blurry_sha256": file_hash(self.path),
            "kernel_sha256": file_hash(self.kernel_file) if self.kernel_file else None,
        }


def deblur_files(jobs, folder, *, device, save_frequency=0, checkpoint_every=0):
    """Deblur image files into a folder of results.

    What is finished is left, what was interrupted goes on from its checkpoint.
    An image that fails is recorded and the others go on.

    Parameters
    ----------
    jobs : list of Job
    folder : ResultFolder
    device : torch.device
    save_frequency : int
        Steps between intermediate results; 0 for none.
    checkpoint_every : int
        Steps between checkpoints; 0 for one about every minute.

    Returns
    -------
    counts : dict of str to int
        How many images were "deblurred", "finished before", "in work elsewhere".
    failures : dict of str to str
        Reason by image name.

    Raises
    ------
    StoppedError
        On SIGINT or SIGTERM, after a checkpoint.
    OutputError
        If a file cannot be written.
    """
    counts = {"deblurred": 0, "finished before": 0, "in work elsewhere": 0}
    failures = {}
    with _Signals() as signals:
        for job in jobs:
            try:
                with folder.lock(job.name) as mine:
                    if not mine:
                        counts["in work elsewhere"] += 1
                        continue
                    counts[_deblur_file(job, folder, device, save_frequency, checkpoint_every, signals)] += 1
            except OutputError:
                raise
            except UserError as error:
                failures[job.name] = str(error)
                print(f"error: {error}", file=sys.stderr)
    folder.record_failures(failures)
    return counts, failures


def _deblur_file(job, folder, device, *options):
    """Do one job on the device or, where its memory is too small, on the CPU; returns what became of it."""
    try:
        return _Work(job, folder, device, *options).do()
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
    if device.type == "cpu":
        raise UserError(f"{job.path}: the memory of this machine is too small for an image and a kernel of this size")
    print(f"warning: {job.name}: the memory of {device} is too small; going on with the CPU", file=sys.stderr)
    return _deblur_file(job, folder, torch.device("cpu"), *options)


class _Work:
    """The run of one job, from its checkpoint, if there is one, to its files."""

    def __init__(self, job, folder, device, save_frequency, checkpoint_every, signals):
        self.job, self.folder, self.device, self.signals = job, folder, device, signals
        self.save_frequency, self.checkpoint_every = save_frequency, checkpoint_every

    def do(self):
        job = self.job
        self.y = read_image(job.path)
        self.identity = job.identity()
        if self.folder.finished(job.name, self.identity):
            self.folder.remove_checkpoint(job.name)  # left where a run ended between its last two writes
            return "finished before"
        self.restarts = 0
        self.start()
        num_iter = job.settings.num_iter
        with tqdm(total=num_iter, initial=self.run.steps_done, desc=job.name, unit="step", disable=None) as bar:
            while self.run.steps_done < num_iter:
                self.step()
                done = self.run.steps_done
                bar.update(done - bar.n)
                if not bar.disable and done % 10 == 0 and done:
                    bar.set_postfix(loss=f"{self.run.losses[done - 1].item():.3e}", refresh=False)
        self.save()
        self.folder.remove_checkpoint(job.name)
        for reason in self.run.quality()["reasons"]:
            print(f"doubtful: {job.name}: {reason}", file=sys.stderr)
        return "deblurred"

    def start(self):
        """The run at its first step, or where the checkpoint left it."""
        job = self.job
        try:
            y = check_image(self.y)
            self.run = start(y, job.kernel_size, job.settings, device=self.device, kernel=job.kernel)
        except UserError as error:
            raise UserError(f"{job.path}: {error}") from error
        self.seconds_before = self.folder.load_checkpoint(job.name, self.identity, self.run)
        self.begun = self.written = time.monotonic()
        self.interval = CHECKPOINT_SECONDS

    def step(self):
        run = self.run
        try:
            with self.signals.raised():
                run.gradient()
            finite = bool(torch.isfinite(run.losses[run.steps_done]))
        except StoppedError:
            self.checkpoint()
            raise
        if not finite:
            self.restart()
            return
        run.update()
        done = run.steps_done
        if self.save_frequency and done % self.save_frequency == 0 and done < self.job.settings.num_iter and run.whole:
            self.save()
        late = time.monotonic() - self.written > self.interval
        if done % self.checkpoint_every == 0 if self.checkpoint_every else late:
            self.checkpoint()

    def restart(self):
        """Go back to the last checkpoint, where the loss was still a number, with rates halved once more."""
        step = self.run.steps_done + 1
        if self.restarts == RESTARTS:
            raise UserError(
                f"{self.job.path}: the loss is not a number at step {step}, {RESTARTS} restarts did not help"
            )
        self.restarts += 1
        slowed = self.run.slowed
        self.start()
        self.run.slowed = slowed + 1
        print(
            f"warning: {self.job.name}: the loss is not a number at step {step}; "
            f"again from step {self.run.steps_done} with a halved learning rate",
            file=sys.stderr,
        )

    def checkpoint(self):
        if self.run.steps_done and self.run.is_finite():
            begun = time.monotonic()
            self.folder.save_checkpoint(self.job.name, self.identity, self.seconds(), self.run)
            self.written = time.monotonic()
            self.interval = max(CHECKPOINT_SECONDS, (self.written - begun) / CHECKPOINT_SHARE)

    def seconds(self):
        return self.seconds_before + time.monotonic() - self.begun

    def save(self):
        run, job = self.run, self.job
        image, kernel = finish(run, self.y)
        finished = run.steps_done == job.settings.num_iter
        record = {
            "image": job.name,
            "blurry": str(job.path),
            "image_size": list(self.y.shape[:2]),
            "kernel_size": list(job.kernel_size),
            "settings": job.settings.as_dict(),
            "steps": run.steps_done,
            "finished": finished,
            "loss": run.losses[run.steps_done - 1].item(),
            "seconds": round(self.seconds(), 2),
            "restarts": self.restarts,
            "quality": run.quality() if finished else None,
            "device": _describe(self.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "version": __version__,
            "identity": self.identity,
        }
        self.folder.save(job.name, record, run, image, kernel)


class _Signals(contextlib.AbstractContextManager):
    """SIGINT and SIGTERM as a `StoppedError`, at a place where a run can be left.

    While `raised` is open the error comes at once, in the midst of a step;
    otherwise when it is opened next.
    """

    def __enter__(self):
        self.received, self.open = None, False
        self.previous = {n: signal.signal(n, self._receive) for n in (signal.SIGINT, signal.SIGTERM)}
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


def _out_of_memory(error):
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _describe(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"

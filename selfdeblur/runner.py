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
from selfdeblur.errors import StoppedError, UserError
from selfdeblur.images import read_image
from selfdeblur.results import file_hash
from selfdeblur.settings import Settings

CHECKPOINT_SECONDS = 60


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
    """
    counts = {"deblurred": 0, "finished before": 0, "in work elsewhere": 0}
    failures = {}
    with _stop_signals() as stop:
        for job in jobs:
            try:
                with folder.lock(job.name) as mine:
                    outcome = (
                        _deblur_file(job, folder, device, save_frequency, checkpoint_every, stop)
                        if mine
                        else "in work elsewhere"
                    )
                counts[outcome] += 1
            except UserError as error:
                failures[job.name] = str(error)
                print(f"error: {error}", file=sys.stderr)
    folder.record_failures(failures)
    return counts, failures


def _deblur_file(job, folder, device, save_frequency, checkpoint_every, stop):
    y = read_image(job.path)
    identity = job.identity()
    if folder.finished(job.name, identity):
        return "finished before"
    try:
        run = start(check_image(y), job.kernel_size, job.settings, device=device, kernel=job.kernel)
    except UserError as error:
        raise UserError(f"{job.path}: {error}") from error
    before = folder.load_checkpoint(job.name, identity, run)
    begun = written = time.monotonic()
    num_iter = job.settings.num_iter

    def seconds():
        return before + time.monotonic() - begun

    def save():
        image, kernel = finish(run, y)
        record = {
            "image": job.name,
            "blurry": str(job.path),
            "image_size": list(y.shape[:2]),
            "kernel_size": list(job.kernel_size),
            "settings": job.settings.as_dict(),
            "steps": run.steps_done,
            "finished": run.steps_done == num_iter,
            "loss": run.losses[run.steps_done - 1].item(),
            "seconds": round(seconds(), 2),
            "device": _describe(device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "version": __version__,
            "identity": identity,
        }
        folder.save(job.name, record, run, image, kernel)

    with tqdm(total=num_iter, initial=run.steps_done, desc=job.name, unit="step", disable=None) as bar:
        while run.steps_done < num_iter:
            run.step()
            step = run.steps_done
            bar.update()
            if not bar.disable and step % 10 == 0:
                bar.set_postfix(loss=f"{run.losses[step - 1].item():.3e}", refresh=False)
            if save_frequency and step % save_frequency == 0 and step < num_iter:
                save()
            due = step % checkpoint_every == 0 if checkpoint_every else time.monotonic() - written > CHECKPOINT_SECONDS
            if due or stop:
                folder.save_checkpoint(job.name, identity, seconds(), run)
                written = time.monotonic()
            if stop:
                raise StoppedError(stop[0])
    save()
    folder.remove_checkpoint(job.name)
    return "deblurred"


@contextlib.contextmanager
def _stop_signals():
    """Yield a list that gets a signal's name in place of the signal's usual effect."""
    received = []
    previous = {
        number: signal.signal(number, lambda number, _: received.append(signal.Signals(number).name))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _describe(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"

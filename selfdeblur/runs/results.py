"""A folder of results: what is finished, what goes on from a checkpoint, what must not be mixed.

For an image NAME the folder holds ``NAME_x.png``, ``NAME_k.png`` (divided by
its maximum), the networks' state dicts ``NAME_xnet.pth`` and ``NAME_knet.pth``,
the loss of each step in ``NAME_history.csv`` and the record of the run in
``NAME.json``, which is written last: where it says ``finished``, all the others
are whole. ``config.json`` holds the settings that all images of the folder
share, ``failures.csv`` the images that could not be done.
"""

import contextlib
import csv
import io
import json
import os
import time
from pathlib import Path

from selfdeblur.errors import UserError
from selfdeblur.files import names
from selfdeblur.files.atomic import write_text
from selfdeblur.files.images import write_image
from selfdeblur.files.locks import take_lock
from selfdeblur.files.records import read_failures, read_json
from selfdeblur.files.tensors import read_torch, write_torch

# Seconds to wait for another process that writes the list of failures.
FAILURES_SECONDS = 30


class ResultFolder:
    """The results of one set of images with one set of settings.

    Parameters
    ----------
    path : str or Path
        Made where it does not exist.
    shared : dict
        Settings that all images share; JSON values.
    images : collection of str
        Names of the images to be run now.
    overwrite : bool
        Replace results of the same images.

    Raises
    ------
    UserError
        If the folder cannot be written, or holds results of other settings:
        results of two kinds never mix in one folder.
    """

    def __init__(self, path, shared, *, images, overwrite=False):
        self.path, self.images, self.overwrite = Path(path), set(images), overwrite
        self._config = self.path / names.CONFIG, json.dumps({"settings": shared}, indent=2) + "\n"
        earlier = read_json(self._config[0])
        if earlier is not None and earlier.get("settings") != shared and self._kept():
            raise UserError(
                f"{self.path}: holds results of other settings ({_differences(earlier.get('settings'), shared)}); "
                "choose another --save_path" + ("" if overwrite else " or --overwrite")
            )
        # Written even where it is there: that shows before the first step whether the folder can be written.
        write_text(*self._config)

    def _kept(self):
        """Names of the images whose records stay. To list a folder of many results takes its time."""
        recorded = {path.stem for path in self.path.glob(f"*{names.RECORD}") if path.name != names.CONFIG}
        return recorded - self.images if self.overwrite else recorded

    def file(self, name, suffix):
        """Path of a file of image ``name``."""
        return self.path / f"{name}{suffix}"

    @contextlib.contextmanager
    def lock(self, name):
        """Hold image ``name`` against other processes; yields False where another one holds it.

        The lock is the kernel's and goes with the process that holds it.
        """
        path = self.file(f".{name}", names.LOCK)
        with open(path, "w") as file:
            try:
                # The holder before may have removed the file after it was opened here: then the lock binds nobody.
                mine = take_lock(file) and os.path.samestat(os.stat(path), os.fstat(file.fileno()))
            except FileNotFoundError:
                mine = False
            if not mine:
                yield False
                return
            try:
                yield True
            finally:
                with contextlib.suppress(OSError):
                    path.unlink()

    def finished(self, name, identity):
        """Whether image ``name`` is finished for ``identity`` (settings, kernel size, files' hashes).

        Raises
        ------
        UserError
            If it was made from another image or with other settings.
        """
        record = read_json(self.file(name, names.RECORD))
        if record is None or self.overwrite:
            return False
        if record.get("identity") != identity:
            raise UserError(
                f"{self.file(name, '.json')}: this result was made otherwise "
                f"({_differences(record.get('identity'), identity)}); choose another --save_path or --overwrite"
            )
        return record.get("finished") is True

    def save(self, name, record, run, output, image, kernel):
        """Write the image, the kernel, the networks, the history and, last, the record of image ``name``.

        ``output`` is that of the run, ``image`` and ``kernel`` are what `selfdeblur.api.to_arrays` makes of it.
        """
        if not self._config[0].exists():
            write_text(*self._config)
        write_image(self.file(name, names.IMAGE), image)
        write_image(self.file(name, names.KERNEL), kernel / kernel.max())
        write_torch(self.file(name, names.IMAGE_NETWORK), run.image_state(output))
        if run.kernel is None:
            write_torch(self.file(name, names.KERNEL_NETWORK), run.kernel_state(output))
        history = io.StringIO()
        writer = csv.writer(history, lineterminator="\n")
        writer.writerow(["step", "objective", "loss"])
        for step, loss in enumerate(run.losses[: run.steps_done].tolist()):
            writer.writerow([step + 1, run.settings.data_term(step), repr(loss)])
        write_text(self.file(name, names.HISTORY), history.getvalue())
        write_text(self.file(name, names.RECORD), json.dumps(record, indent=2) + "\n")

    def save_checkpoint(self, name, identity, seconds, run):
        """Write all that is needed to go on with image ``name``."""
        state = {"identity": identity, "seconds": seconds, "run": run.state_dict()}
        write_torch(self.file(name, names.CHECKPOINT), state)

    def load_checkpoint(self, name, identity, run):
        """Put ``run`` where the checkpoint of image ``name`` left it; returns the seconds it had taken.

        Without a checkpoint, and with ``overwrite``, nothing is changed and 0 returned.

        Raises
        ------
        UserError
            If the checkpoint is damaged or belongs to other settings.
        """
        path = self.file(name, names.CHECKPOINT)
        if self.overwrite or not path.exists():
            return 0.0
        state = read_torch(path)
        if not isinstance(state, dict) or state.get("identity") != identity:
            found = state.get("identity") if isinstance(state, dict) else None
            raise UserError(
                f"{path}: this checkpoint was made otherwise ({_differences(found, identity)}); "
                "choose another --save_path or --overwrite"
            )
        try:
            run.load_state_dict(state["run"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path}: not a checkpoint of this run; remove it or use --overwrite") from error
        return state["seconds"]

    def remove_checkpoint(self, name):
        self.file(name, names.CHECKPOINT).unlink(missing_ok=True)

    def record_failures(self, failures):
        """Put a row (image, reason) for each failure into ``failures.csv``, which is removed where there is none.

        Rows of images that are not to be run now stay: other processes may have written them.
        """
        path, end = self.path / names.FAILURES, time.monotonic() + FAILURES_SECONDS
        while failures or path.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            with self.lock(names.FAILURES) as mine:
                if mine or time.monotonic() > end:
                    others = {name: reason for name, reason in read_failures(path).items() if name not in self.images}
                    self._write_failures(path, others | failures)
                    return

    def _write_failures(self, path, failures):
        if not failures:
            path.unlink(missing_ok=True)
            return
        rows = io.StringIO()
        writer = csv.writer(rows, lineterminator="\n")
        writer.writerow(["image", "reason"])
        writer.writerows(failures.items())
        write_text(path, rows.getvalue())


def _differences(found, expected):
    """What differs between two dictionaries, as 'name 1 there, 2 now'."""
    found = found if isinstance(found, dict) else {}
    parts = []
    for key in expected:
        if isinstance(expected[key], dict) and isinstance(found.get(key), dict):
            if inner := _differences(found[key], expected[key]):
                parts.append(inner)
        elif found.get(key) != expected[key]:
            parts.append(f"{key} {_short(found.get(key))} there, {_short(expected[key])} now")
    return ", ".join(parts)


def _short(value):
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "..."

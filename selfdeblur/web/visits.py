"""Who is on the page: folders of pictures, processes that work on them, and whose turn it is."""

import contextlib
import multiprocessing
import multiprocessing.connection
import shutil
import tempfile
import threading
import time
from pathlib import Path

from selfdeblur.errors import UserError

# A child of a process that has PyTorch loaded and does nothing else starts within a moment.
_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
# Seconds after which an uploaded file that no page has taken is removed.
_UNCLAIMED = 60


class Work:
    """A function of `selfdeblur.web.work` in a process of its own.

    Parameters
    ----------
    function : str
        Its name.
    *arguments
        What it gets besides ``tell``.

    Attributes
    ----------
    news : dict
        What was told last; the paths of pictures stay until others come.
    result : object
        What the function returned, once it has.
    error : str or None
        Why it did not.
    """

    def __init__(self, function, *arguments):
        self.news, self.result, self.error, self.killed = {}, None, None, False
        context = context_of_work()
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_start, args=(other, function, arguments), daemon=True)
        self.process.start()
        other.close()

    def ended(self, wait=0.0):
        """Take what was told, for so many seconds at most; returns whether nothing more will come."""
        try:
            while self.connection.poll(wait):
                kind, content = self.connection.recv()
                wait = 0
                if kind == "told":
                    self.news |= content
                else:
                    self.result, self.error = (content, None) if kind == "done" else (None, content)
                    return True
        except (EOFError, OSError):
            self.error = "the run broke off; the memory may not have sufficed"
            return True
        return False

    def wait(self):
        """What the function returns; a `UserError` where it fails."""
        while not self.ended(60):
            pass
        self.close()
        if self.error:
            raise UserError(self.error)
        return self.result

    def stop(self):
        """Ask for the best so far where there is something by now, otherwise end it at once; twice ends it, too."""
        if self.news.get("fitted") and not self.news.get("stopping"):
            self.news["stopping"] = True
            with contextlib.suppress(OSError):
                self.connection.send("stop")
        else:
            self.kill()

    def kill(self):
        """End it at once; afterwards it writes nothing more."""
        self.killed = True
        self.process.kill()
        multiprocessing.connection.wait([self.process.sentinel], 5)

    def close(self):
        """End it and give back what it held."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def context_of_work():
    """Where the processes come from: what they need is loaded once."""
    context = multiprocessing.get_context(_METHOD)
    if _METHOD == "forkserver":
        context.set_forkserver_preload(["selfdeblur.web.work"])
    return context


def _start(connection, function, arguments):
    from selfdeblur.web import work  # of the page's process only this module is loaded

    work.run(connection, getattr(work, function), arguments)


class Visit:
    """One open page: its folder, its picture and the run that it waits for."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.path = self.facts = self.uploaded = self.work = None
        self.closed = self.busy = self.stopped = False
        self.number = 0

    def new_path(self):
        """A path in the folder that was not there before."""
        self.number += 1
        return self.folder / f"{self.number}"

    def stop(self):
        """Stop the run, see `Work.stop`."""
        self.stopped = True
        if self.work:
            self.work.stop()

    def stop_at_once(self):
        """End the run without a result."""
        self.stopped = True
        if self.work:
            self.work.kill()

    def close(self):
        """End the run and remove all pictures."""
        self.closed = True
        self.stop_at_once()
        shutil.rmtree(self.folder, ignore_errors=True)


class Visits:
    """All open pages.

    Parameters
    ----------
    root : Path
        Private folder, where the uploads arrive.
    waiting : int
        How many may wait while one is deblurred.
    """

    def __init__(self, root, waiting):
        self.root, self.waiting = Path(root), waiting
        self.folder = self.root / "pages"
        self.folder.mkdir()
        self.lock, self.done = threading.Lock(), threading.Event()
        self.visits, self.line = {}, []
        threading.Thread(target=self._sweep, daemon=True).start()

    def of(self, key):
        """The visit of a page, a new one where it is not known."""
        with self.lock:
            if key not in self.visits:
                self.visits[key] = Visit(tempfile.mkdtemp(dir=self.folder))
            return self.visits[key]

    def take(self, visit, uploaded):
        """Move an uploaded file to the folder of a visit; returns its path there.

        Files of the same content arrive under the same path, so another page may have taken it already.
        """
        uploaded = Path(uploaded)
        place = visit.new_path()
        place.mkdir()
        place /= uploaded.name
        with self.lock:
            others = [other.path for other in self.visits.values() if other.uploaded == uploaded]
            for source in (uploaded, *others):
                with contextlib.suppress(OSError):
                    (shutil.move if source == uploaded else shutil.copyfile)(source, place)
                    visit.path, visit.uploaded = place, uploaded
                    return place
        raise UserError(f"{uploaded.name}: did not arrive; choose it again")

    def copy(self, visit, path):
        """Copy a file to the folder of a visit; returns its path there."""
        place = visit.new_path()
        place.mkdir()
        visit.path, visit.uploaded = Path(shutil.copy(path, place)), None
        return visit.path

    def leave(self, key):
        """Forget a page that was closed."""
        with self.lock:
            visit = self.visits.pop(key, None)
        if visit:
            visit.close()

    def close(self):
        """Forget all."""
        self.done.set()
        for key in list(self.visits):
            self.leave(key)

    @contextlib.contextmanager
    def turn(self, visit):
        """A place in the line; gives a function that tells how many are before it.

        Raises
        ------
        UserError
            If too many wait already.
        """
        with self.lock:
            if len(self.line) > self.waiting:
                raise UserError(f"{len(self.line)} pictures are in work or waiting, which is the most; try again later")
            self.line.append(visit)
        try:
            yield lambda: self.line.index(visit)
        finally:
            with self.lock:
                self.line.remove(visit)

    def _sweep(self):
        """Remove uploads whose page was closed before it could take them: files that have not changed for a while."""
        seen = {}
        while not self.done.wait(_UNCLAIMED / 2):
            before, seen = seen, {}
            for path in (*self.root.glob("*"), *self.root.glob("*/*")):
                with contextlib.suppress(OSError):
                    if not path.is_file():
                        continue
                    state = path, path.stat().st_mtime_ns
                    seen[state] = before.get(state, time.monotonic())
                    if time.monotonic() - seen[state] > _UNCLAIMED:
                        path.unlink()

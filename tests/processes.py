"""Programs of the project as processes of their own, without the seconds that it takes to load PyTorch.

Each is a fork of one process that has the packages loaded, see `starter`; the project's own modules are loaded anew.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT


class Program:
    """A started program, with what is needed of `subprocess.Popen`.

    Parameters
    ----------
    *words : str or Path or number
        ``FILE ...`` or ``-m MODULE ...``.
    folder : Path
        Where it works.
    thin : bool
        Whether its fits and searches are of little arithmetic, see `thin`.
    """

    starter = folder = None

    def __init__(self, *words, folder=ROOT, thin=False):
        if Program.starter is None:
            Program.folder = tempfile.TemporaryDirectory(prefix="processes")
            command = [sys.executable, str(Path(__file__).with_name("starter.py"))]
            Program.starter = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.output, self.errors = (Path(tempfile.mkstemp(dir=Program.folder.name)[1]) for _ in range(2))
        request = {"words": [str(word) for word in words], "folder": str(folder), "thin": thin, "root": str(ROOT)}
        self.returncode = None
        self.pid = ask(request | {"output": str(self.output), "errors": str(self.errors)})

    @property
    def stdout(self):
        """What it wrote so far."""
        return self.output.read_text(encoding="utf-8")

    @property
    def stderr(self):
        return self.errors.read_text(encoding="utf-8")

    def poll(self):
        """Its exit status, minus the number of a signal that ended it, or None while it runs."""
        if self.returncode is None:
            self.returncode = ask(self.pid)
        return self.returncode

    def wait(self, timeout=300):
        """Wait for its end; returns the program itself."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.002)
        return self

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def ask(request):
    """The starter's answer to a request."""
    Program.starter.stdin.write(json.dumps(request) + "\n")
    Program.starter.stdin.flush()
    answer = Program.starter.stdout.readline()
    assert answer, "the process that starts the programs has ended"
    return json.loads(answer)


def end():
    """End the starter and with it all programs."""
    if Program.starter is not None:
        with contextlib.suppress(BrokenPipeError):
            Program.starter.stdin.close()
        Program.starter.wait()
        Program.starter.stdout.close()
        Program.folder.cleanup()
        Program.starter = None


def run(*words, **options):
    """Run a program to its end, see `Program`."""
    return Program(*words, **options).wait()

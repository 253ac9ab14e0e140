"""Starts programs in forks of itself, which have the packages loaded: see `processes`.

On standard input a line of JSON a request: a program to start, answered by its process id, or a process id to ask for,
answered by its exit status, or null while it runs. What the project's own files hold is loaded anew by each program.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import sys
import traceback

# What the programs load besides the project; on first use PyTorch's optimisers load torch._dynamo.
import cv2  # noqa: F401
import numpy  # noqa: F401
import scipy.fft
import scipy.ndimage
import scipy.signal  # noqa: F401
import skimage.color
import skimage.data
import skimage.metrics
import skimage.util  # noqa: F401
import tifffile  # noqa: F401
import torch._dynamo
import tqdm  # noqa: F401
from thin import make_thin


def serve():
    """Answer requests; returns that of a program, in the fork that is to be it."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    children = set()
    while line := sys.stdin.readline():
        request = json.loads(line)
        if isinstance(request, dict):
            answer = os.fork()
            if answer == 0:
                answers.close()
                return request
            children.add(answer)
        else:
            done, status = os.waitpid(request, os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if done else None
            children -= {done}
        print(json.dumps(answer), file=answers)
    for child in children:
        os.kill(child, signal.SIGKILL)
    return None


def become(request):
    """Run a program as ``python FILE ...`` or ``python -m MODULE ...`` would, and end."""
    os.chdir(request["folder"])
    for number, path, mode in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["output"], os.O_WRONLY),
        (2, request["errors"], os.O_WRONLY),
    ):
        handle = os.open(path, mode)
        os.dup2(handle, number)
        os.close(handle)
    words = request["words"]
    module = words[0] == "-m"
    sys.argv = words[1:] if module else words
    sys.path[0] = os.getcwd() if module else os.path.dirname(os.path.abspath(words[0]))
    if request["thin"]:
        sys.path.insert(0, request["root"])
        make_thin()
        del sys.path[0]
    status = 0
    try:
        (runpy.run_module if module else runpy.run_path)(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    # To take all that is loaded apart again takes longer than most programs.
    os._exit(status)


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.freeze()
    if wanted := serve():
        become(wanted)

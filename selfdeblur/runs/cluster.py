"""``--cluster``: shards of the images as tasks of a Slurm job array, or as processes of this machine, by submitit.

A task is the same run on its shard, so what it leaves is what a run without a
cluster leaves. Slurm tells by SIGUSR2 that the time is over or the machine is
needed: the run writes its checkpoints, submitit puts the task into the queue
again, and the task goes on from there.
"""

import contextlib
import copy
import io
import json
import os
import shutil
import signal
import sys
import sysconfig
import time
from pathlib import Path

from selfdeblur.arguments import guarded
from selfdeblur.errors import STOPPING, StoppedError, UserError
from selfdeblur.files import names
from selfdeblur.files.atomic import write_text
from selfdeblur.runs.status import read_status, table

CLUSTERS = ("slurm", "local", "debug")
SLURM_MINUTES, LOCAL_MINUTES = 60, 365 * 24 * 60
# Seconds between SIGUSR2 and the end of a task's time.
NOTICE = 90
# How often a task may come to the end of its time; each time it goes on from its checkpoints.
MOST_TIMES = 1000
# Slurm kills what it told to end by SIGTERM after KillWait, 30 seconds by default. Until then SIGUSR2 may still come.
KILL_WAIT = 60
# The status of all tasks together is the first of these that one of them has.
STATUSES = (130, 2, 1, 3)


def add_arguments(parser):
    """Add the options that divide the images among machines."""
    add = parser.add_argument_group("many machines", "see docs/cluster.md").add_argument
    add("--shard", type=_shard, default=(1, 1), metavar="I/N", help="only the I-th of N equal parts of the images")
    add("--cluster", choices=CLUSTERS, help="tasks of a Slurm cluster, processes of this machine, or one by one here")
    add("--jobs", type=_count, metavar="N", help="tasks that share the images")
    add("--cluster_partition", metavar="NAME", help="partition of the cluster")
    add("--cluster_minutes", type=_count, metavar="N", help="time of a task, after which it queues again; default 60")
    add("--cluster_gpus", type=_count, metavar="N", help="GPUs of a task, which uses one; by default none is asked for")
    add("--cluster_cpus", type=_count, metavar="N", help="CPU cores of a task, and its --threads")
    add("--cluster_memory_gb", type=_count, metavar="N", help="memory of a task")
    add("--cluster_at_once", type=_count, metavar="N", help="most tasks that run at the same time; by default all")
    add("--cluster_option", action="append", default=[], metavar="NAME=VALUE", help="any other option of sbatch")


def submit(run, args, *, images, folder):
    """Hand over ``run(args)`` in ``--jobs`` shards.

    Parameters
    ----------
    run : callable
        Does the images of ``args.shard`` and returns the exit status. Tasks
        import it, or what it is a partial of, by its name.
    args : Namespace
        What was parsed; all but the options of the cluster is handed on.
    images : int
        How many there are; there are no more tasks than images.
    folder : Path
        Where results go. ``cluster`` in it holds the logs and what submitit needs.

    Returns
    -------
    int
        The exit status: of the submission with Slurm, otherwise of all tasks.

    Raises
    ------
    UserError
        If submitit or Slurm is not there, or Slurm does not take the tasks.
    """
    check(args)
    submitit = _submitit()
    place, count = folder / names.CLUSTER, min(args.jobs or 1, images)
    tasks = [Task(run, _of_task(args, part, count)) for part in range(1, count + 1)]
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{place}: cannot be made ({error.strerror})") from error
    with _importable():
        jobs = _EXECUTORS[args.cluster](submitit, args, place, tasks)
    told = {"cluster": args.cluster, "images": images, "tasks": count, "jobs": [job.job_id for job in jobs]}
    write_text(place / names.TASKS, json.dumps(told, indent=2) + "\n")
    what = f"{count} tasks for {images} images"
    if args.cluster == "slurm":
        number = jobs[0].job_id.partition("_")[0]
        print(f"{what} are job {number}, logs are in {place}; 'selfdeblur status {folder}' tells how far they are")
        return 0
    print(f"{what}, logs are in {place}", file=sys.stderr)
    statuses = _results(jobs, count)
    print(table(read_status(folder)), file=sys.stderr)
    return next((status for status in STATUSES if status in statuses), 0)


def check(args):
    """Refuse options that do not go together.

    Raises
    ------
    UserError
    """
    given = [name for name in vars(args) if name == "jobs" or name.startswith("cluster_")]
    if not args.cluster:
        for name in given:
            if getattr(args, name):
                raise UserError(f"--{name}: is for tasks of a cluster; say which by --cluster {', '.join(CLUSTERS)}")
        return
    if args.shard != (1, 1):
        raise UserError("--shard: --cluster makes the shards itself; say how many by --jobs")
    if args.overwrite:
        raise UserError("--overwrite: a task of a cluster that starts again would lose its results; take a new folder")
    for option in args.cluster_option:
        if "=" not in option:
            raise UserError(f"--cluster_option: {option!r} is no NAME=VALUE, as qos=low")


class Task:
    """One shard, as submitit calls it."""

    def __init__(self, run, args):
        self.run, self.args = run, args

    def __call__(self):
        """Do the shard and return its exit status."""
        stopped = None

        def run():
            nonlocal stopped
            try:
                return self.run(self.args)
            except StoppedError as error:
                stopped = str(error)
                raise

        with _signals_raise():
            status = guarded(run)
        if stopped == "SIGUSR2":
            # What there is to keep is written. Now submitit's own handler queues the task again and ends it.
            signal.raise_signal(signal.SIGUSR2)
        in_slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
        if stopped == "SIGTERM" and in_slurm:
            # A task that ends by itself before Slurm ends it counts as done and is not queued again.
            time.sleep(KILL_WAIT)
        if in_slurm and status not in (0, 3):
            sys.exit(status)  # so that Slurm, too, says that it failed
        return status

    def checkpoint(self):
        """What goes on for this task when it is queued again: the same, for the folder of results knows the rest."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@contextlib.contextmanager
def _signals_raise():
    """While it is open, signals raise a `StoppedError` where the run has no handler of its own."""

    def stop(number, _):
        raise StoppedError(signal.Signals(number).name)

    previous = {number: signal.signal(number, stop) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _submitit():
    try:
        import submitit
    except ImportError as error:
        raise UserError('--cluster needs submitit: pip install "selfdeblur[cluster]"') from error
    return submitit


def _of_task(args, part, count):
    args = copy.copy(args)
    args.threads = args.threads or args.cluster_cpus
    args.shard, args.cluster = (part, count), None
    for name in list(vars(args)):
        if name.startswith("cluster_") or name == "jobs":
            setattr(args, name, None)
    return args


@contextlib.contextmanager
def _importable():
    """Let the tasks find this package where it is not installed and they start in another folder than the script's."""
    root, before = str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")
    installed = root in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    if not installed:
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *([before] if before else [])])
    try:
        yield
    finally:
        if not installed:
            os.environ.pop("PYTHONPATH")
            if before is not None:
                os.environ["PYTHONPATH"] = before


def _to_slurm(submitit, args, place, tasks):
    minutes = args.cluster_minutes or SLURM_MINUTES
    options = {
        "job_name": "selfdeblur",
        "time": minutes,
        "signal_delay_s": min(NOTICE, 15 * minutes),
        "array_parallelism": args.cluster_at_once or len(tasks),
        "additional_parameters": {"requeue": True} | dict(o.split("=", 1) for o in args.cluster_option),
    }
    if args.cluster_partition:
        options["partition"] = args.cluster_partition
    if args.cluster_gpus:
        options["gpus_per_node"] = args.cluster_gpus
    if args.cluster_memory_gb:
        options["mem"] = f"{args.cluster_memory_gb}GB"
    if args.cluster_cpus:
        # From 22.05 on, srun does not take it from sbatch.
        options |= {"cpus_per_task": args.cluster_cpus, "srun_args": [f"--cpus-per-task={args.cluster_cpus}"]}
    if not shutil.which("srun") or not shutil.which("sbatch"):
        raise UserError("--cluster slurm: srun and sbatch are not found; log in to a machine of a Slurm cluster")
    before = set(place.iterdir())
    executor = submitit.SlurmExecutor(place, max_num_timeout=MOST_TIMES)
    executor.update_parameters(**options)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what sbatch says, which follows here
            return executor.submit_array(tasks)
    except RuntimeError as error:
        for path in set(place.iterdir()) - before:
            path.unlink(missing_ok=True)
        raise UserError(f"--cluster slurm: {_last_line(error)}") from error


def _to_this_machine(submitit, args, place, tasks):
    executor = submitit.LocalExecutor(place, max_num_timeout=MOST_TIMES)
    executor.update_parameters(timeout_min=args.cluster_minutes or LOCAL_MINUTES)
    gpus = _gpus()
    jobs = []
    for number, task in enumerate(tasks):
        if gpus:
            executor.update_parameters(gpus_per_node=1, visible_gpus=[gpus[number % len(gpus)]])
        jobs.append(executor.submit(task))
    return jobs


def _gpus():
    """Numbers of the GPUs that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [int(word) for word in named.split(",") if word.strip().isdigit()]
    import torch

    return list(range(torch.cuda.device_count()))


def _here(submitit, args, place, tasks):
    executor = submitit.DebugExecutor(place)
    return [executor.submit(task) for task in tasks]


_EXECUTORS = {"slurm": _to_slurm, "local": _to_this_machine, "debug": _here}


def _results(jobs, count):
    """Exit statuses of all tasks, waited for."""
    statuses = []
    try:
        for number, job in enumerate(jobs, 1):
            try:
                statuses.append(job.result())
            except RuntimeError as error:  # submitit's, of a task that left no result
                print(
                    f"error: task {number} of {count} was lost ({_last_line(error)}); see {job.paths.stderr}. "
                    "The same command goes on",
                    file=sys.stderr,
                )
                statuses.append(1)
            if statuses[-1] == 130:
                break
    except KeyboardInterrupt:
        for job in jobs:
            job.cancel()
        print("stopped; the same command goes on from the checkpoints", file=sys.stderr)
        statuses.append(130)
    return statuses


def _last_line(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _shard(text):
    part, _, parts = text.partition("/")
    part, parts = int(part), int(parts)
    if not 1 <= part <= parts:
        raise ValueError
    return part, parts


def _count(text):
    value = int(text)
    if value < 1:
        raise ValueError
    return value


_shard.__name__ = "part I/N"
_count.__name__ = "number of at least 1"

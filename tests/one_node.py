"""A Slurm of one node on this machine, in a folder of its own: munged, slurmctld, slurmd, on loopback alone.

Debian: apt-get install slurmctld slurmd slurm-client munge. It takes root.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
# How Slurm is told to do without control groups: the first that this version and this machine take.
CGROUPS = ("CgroupPlugin=disabled", "CgroupPlugin=cgroup/v1", "CgroupPlugin=cgroup/v2\nIgnoreSystemd=yes")
SECONDS = 20

# More CPUs than there are: tasks of a test wait more than they compute. A job that is queued again waits cred_expire,
# which is at least 5 seconds: with less it is 120.
CONFIG = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=1
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=3
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=60 State=UP
"""


class CannotStartError(Exception):
    """Why there is no Slurm."""


class OneNode:
    """Slurm from entering to leaving it; ``environment`` is what its programs need.

    Raises
    ------
    CannotStartError
    """

    def __init__(self, folder):
        self.folder, self.daemons = Path(folder), []
        self.environment = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self.environment["PATH"] += ":/usr/sbin:/sbin"

    def __enter__(self):
        missing = [name for name in PROGRAMS if not shutil.which(name, path=self.environment["PATH"])]
        if missing:
            raise CannotStartError(
                f"{', '.join(missing)} not found (apt-get install slurmctld slurmd slurm-client munge)"
            )
        if os.getuid() != 0:
            raise CannotStartError("its daemons take root")
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self):
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir(mode=0o700)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        text = CONFIG.format(host=socket.gethostname(), ports=_free_ports(2), folder=self.folder)
        (self.folder / "slurm.conf").write_text(text)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self._daemon("munged", "--foreground", "--force", *(f"--{o}={self.folder}/munge/{f}" for o, f in files.items()))
        self._wait_for(lambda: (self.folder / "munge" / "socket").exists(), "munged")
        (self.folder / "cgroup.conf").write_text(CGROUPS[1])
        self._daemon("slurmctld", "-D", "-c")
        for plugin in CGROUPS:
            (self.folder / "cgroup.conf").write_text(plugin + "\n")
            slurmd = self._daemon("slurmd", "-D", "-c")
            time.sleep(0.5)
            if slurmd.poll() is None:
                break
        self._wait_for(lambda: "idle" in self.call("sinfo", "-h", "-o", "%T"), "slurmd")

    def _daemon(self, *command):
        with open(self.folder / f"{command[0]}.out", "ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment, start_new_session=True)
        self.daemons.append(process)
        return process

    def _wait_for(self, condition, name):
        end = time.monotonic() + SECONDS
        while not condition():
            if time.monotonic() > end:
                logs = [path for path in (self.folder / f"{name}.log", self.folder / f"{name}.out") if path.exists()]
                said = " / ".join(line for path in logs for line in path.read_text().splitlines()[-3:])
                raise CannotStartError(f"{name} does not get ready: {said}")
            time.sleep(0.1)

    def call(self, *command):
        """What a program of Slurm prints; its errors come with it."""
        done = subprocess.run(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
        )
        return done.stdout

    def __exit__(self, *_):
        if len(self.daemons) > 1:
            self.call("scancel", "--signal=KILL", "--user=root")
            self.call("scancel", "--user=root")
        for process in reversed(self.daemons):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self.daemons):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()

"""A real Slurm of one node in a folder of its own: nothing outside the folder is written."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
PACKAGES = "apt-get install --no-install-recommends munge slurmctld slurmd slurm-client"

CONFIGURATION = """\
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={control}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={home}/sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=3
MinJobAge=300
MaxArraySize={largest}
SlurmctldTimeout=30
SlurmdTimeout=30
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 Sockets=1 CoresPerSocket=8 ThreadsPerCore=1 \
RealMemory=4000 State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=60 State=UP
"""


def missing() -> str:
    """Why no cluster can be started here; empty where one can."""
    lacks = [name for name in DAEMONS if shutil.which(name, path=_path()) is None]
    if lacks:
        return f"no {', '.join(lacks)} here: {PACKAGES}"
    if os.getuid() != 0:
        return "the daemons of Slurm start as root only"
    try:
        local = socket.gethostbyname(_host()).startswith("127.")
    except OSError:
        local = False
    return "" if local else f"the name {_host()} is not 127.0.0.1 in /etc/hosts"


class Cluster:
    """Daemons that can be killed and started again."""

    def __init__(self, home: Path, *, largest_array: int) -> None:
        self.home = home
        home.mkdir(parents=True)
        home.chmod(0o755)
        for name in ("munge", "state", "spool"):
            (home / name).mkdir(mode=0o700)
        key = home / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        control, node = _free_ports(2)
        self.configuration = home / "slurm.conf"
        self.configuration.write_text(
            CONFIGURATION.format(
                host=_host(), home=home, control=control, node=node, largest=largest_array
            )
        )
        self.environment = {"SLURM_CONF": str(self.configuration), "PATH": _path()}

    def start(self) -> None:
        """Start all daemons and wait until the node is idle."""
        munge = self.home / "munge"
        self._run(
            "munged", f"--key-file={munge}/key", f"--socket={self.home}/sock",
            f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        for name in ("slurmctld", "slurmd"):
            self.start_daemon(name)
        wait_for(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T"), 60)

    def start_daemon(self, name: str) -> None:
        """Start slurmctld or slurmd."""
        self._run(name, "-f", str(self.configuration))

    def kill(self, name: str) -> None:
        """End slurmctld or slurmd with SIGKILL, as a power cut would."""
        file = self.home / f"{name}.pid"
        process = int(file.read_text())
        os.kill(process, signal.SIGKILL)
        wait_for(lambda: _gone(process), 20)
        file.unlink(missing_ok=True)

    def saved(self) -> None:
        """Wait until the controller has written what it knows: it does so every five seconds."""
        time.sleep(6)

    def ask(self, *command: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=60,
            env={**os.environ, **self.environment},
        )  # fmt: skip
        return done.stdout

    def states(self) -> dict[str, str]:
        """The tasks in the queue and their states."""
        lines = self.ask("squeue", "-h", "-r", "-o", "%i %T").splitlines()
        return dict(line.split() for line in lines)

    def stop(self) -> None:
        """End all jobs and daemons."""
        self.ask("scancel", "-u", "root")
        deadline = time.monotonic() + 20
        while self.states() and time.monotonic() < deadline:
            time.sleep(0.2)
        for file in ("slurmd.pid", "slurmctld.pid", "munge/pid"):
            path = self.home / file
            if path.exists():
                process = int(path.read_text())
                os.kill(process, signal.SIGTERM)
                wait_for(lambda p=process: _gone(p), 20)

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
            timeout=60, env={**os.environ, **self.environment},
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}"


def wait_for(condition, seconds: float) -> None:
    """Wait until a condition holds; an assertion fails if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


def _gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _host() -> str:
    return socket.gethostname().split(".")[0]


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()

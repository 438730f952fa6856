"""A real Slurm on this one machine: munged, slurmctld and two slurmd on loopback, started and ended by a test."""

from __future__ import annotations

import getpass
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
# Requeued jobs wait for the end of their credential. A node that does not answer is soon down.
CONF = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,requeue_delay=1
PriorityType=priority/basic
ReturnToService=2
JobRequeue=1
KillWait=20
MinJobAge=600
SlurmctldTimeout=30
SlurmdTimeout=8
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/%n.log
SlurmctldDebug=info
SlurmdDebug=info
SlurmdParameters=config_overrides
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


class Slurm:
    """A running cluster: `environment` has the variables that a client needs; `nodes` are the names of its nodes."""

    def __init__(self, root: Path, nodes: tuple[str, ...] = ("n1", "n2"), cpus: int = 4) -> None:
        self.root, self.nodes, self.cpus = root, nodes, cpus
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        own = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH"))}
        # The names of these nodes are in no hosts file.
        self.environment = {**own, "PATH": path, "SLURM_CONF": str(root / "slurm.conf"), "MASTER_ADDR": "127.0.0.1"}

    def write(self) -> None:
        """Write the configuration."""
        for name in ("state", "log", "run", "munge", *(f"spool/{node}" for node in self.nodes)):
            (self.root / name).mkdir(parents=True)
        key = self.root / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        port, *ports = free_ports(1 + len(self.nodes))
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
        host = socket.gethostname().partition(".")[0]
        lines = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={its} CPUs={self.cpus} "
            f"RealMemory={memory * 9 // 10} State=UNKNOWN"
            for node, its in zip(self.nodes, ports, strict=True)
        ]
        text = CONF.format(
            host=host,
            port=port,
            user=getpass.getuser(),
            root=self.root,
            nodes="\n".join(lines),
            names=",".join(self.nodes),
        )
        (self.root / "slurm.conf").write_text(text)

    def start(self) -> None:
        """Start all daemons and wait until both nodes are idle."""
        self.write()
        munge = [f"--{name}-file={self.root}/{place}" for name, place in FILES.items()]
        self.run("munged", "--force", "--num-threads=2", f"--socket={self.root}/munge/socket", *munge)
        self.run("slurmctld")
        for node in self.nodes:
            self.start_node(node)
        self.wait(lambda: set(self.states().values()) == {"idle"}, 60, "idle nodes")

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        self.run("slurmd", "-N", node)

    def kill_node(self, node: str) -> None:
        """Make a node vanish: kill its daemon and everything that the daemon started with SIGKILL."""
        for process in [self.daemon(node), *self.steps(node)]:
            for child in [*descendants(process), process]:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)

    def daemon(self, name: str) -> int:
        """Return the process of a daemon."""
        return int((self.root / "run" / f"{name}.pid").read_text())

    def steps(self, node: str) -> list[int]:
        """Return the processes in which a node's daemon runs jobs; each is a session of its own."""
        return [process for process, files in step_daemons() if str(self.root / "log" / f"{node}.log") in files]

    def run(self, *command: str, **how: object) -> str:
        """Run a program of Slurm and return its output; raise if it fails."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, **how
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}{self.told()}"
        return done.stdout.strip()

    def states(self) -> dict[str, str]:
        """Return the state of each node."""
        return dict(line.split() for line in self.run("sinfo", "-h", "-N", "-o", "%N %t").splitlines())

    def state(self, job: str) -> str:
        """Return the state of a job; for an array, of its first job that has not ended."""
        found = self.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").split()
        live = [state for state in found if state not in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")]
        return (live or found)[0]

    def wait(self, condition: object, seconds: float, what: str) -> None:
        """Wait until a condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"no {what} within {seconds} s: {self.told()}"
            time.sleep(0.3)

    def wait_for(self, job: str, *states: str, seconds: float = 180) -> None:
        """Wait until a job is in one of these states."""
        self.wait(lambda: self.state(job) in states, seconds, f"job {job} {' or '.join(states)}")

    def told(self) -> str:
        """Return the last lines of the daemons' logs."""
        return "".join(
            f"\n-- {log.name}\n{log.read_text()[-1500:]}" for log in sorted((self.root / "log").glob("*.log"))
        )

    def stop(self) -> None:
        """End all jobs and all daemons."""
        quietly = {"env": self.environment, "capture_output": True, "timeout": 30, "check": False}
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(["scancel", "--signal=KILL", "--full", "--user", getpass.getuser()], **quietly)
            subprocess.run(["scancel", "--user", getpass.getuser()], **quietly)
        for node in self.nodes:
            for process in self.steps(node):
                for child in [*descendants(process), process]:
                    with suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
        for pid_file in (self.root / "run").glob("*.pid"):
            end(int(pid_file.read_text()))


FILES = {"key": "munge/key", "pid": "run/munged.pid", "log": "log/munged.log", "seed": "munge/seed"}


@contextmanager
def slurm(root: Path) -> Iterator[Slurm]:
    """Start a cluster that keeps its files in this folder; it ends with the block."""
    cluster = Slurm(root)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def end(process: int) -> None:
    """End a daemon, by force after five seconds."""
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)
        for _ in range(50):
            time.sleep(0.1)
            os.kill(process, 0)
        os.kill(process, signal.SIGKILL)


def step_daemons() -> Iterator[tuple[int, set[str]]]:
    """Yield each process that runs steps of a job, and the files that it has open."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (path / "cmdline").read_bytes().startswith(b"slurmstepd"):
                yield int(path.name), {os.readlink(link) for link in (path / "fd").iterdir()}


def descendants(process: int) -> list[int]:
    """Return the children of a process and theirs."""
    found = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, path.read_text().split()):
                found += [child, *descendants(child)]
    return found


def free_ports(count: int) -> list[int]:
    """Return free ports."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports

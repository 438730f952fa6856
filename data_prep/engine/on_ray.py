"""Ray: work in the processes of a cluster, whose machines may come and go.

On every machine an actor, the foreman, runs a pool of worker processes (see `pool`), so it notices a decoder that hangs
or crashes as on one machine. If a foreman is gone, its machine counts as lost and its tasks go to other machines. Only
tasks and answers go through Ray. Clips go to the work folder, which all machines share: the leading machine could not
pass on tens of terabytes. Only the leading machine writes the ledger.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import logging
import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from data_prep.engine.local import Assignment, Node
from data_prep.engine.lock import WORKERS
from data_prep.fetch.hosts import Keeper
from videodiff.data.processes.pool import Answers, Lost, Worker, collect
from videodiff.data.storage.address import printable
from videodiff.machine import cores

# Seconds between two checks for answers, between two checks for machines, and to wait for a first machine.
TICK, LOOK, PATIENCE = 0.5, 5.0, 600.0
# A task that has lost this many machines is taken for the cause and reported as lost.
LOSSES = 3
# Bytes of the object store of a Ray that is started here: only tasks and answers go through it.
STORE = 100 * 2**20
# The versions of these must agree on all machines, or the bytes of clips would differ.
PACKAGES = ("videodiff", "av", "numpy", "opencv-python-headless", "scenedetect-headless", "rapidocr", "onnxruntime")
# Whoever can reach a Ray can run programs on it. Ray would replace 127.0.0.1 by an address of the network.
LOOPBACK = "127.0.0.2"
log = logging.getLogger(__name__)


class OnRay:
    """The machines of a Ray cluster; this process runs on one of them.

    address: of the cluster, `host:port` or `auto`; None takes RAY_ADDRESS, or starts a Ray on this machine if it is not
    set. scratch: a folder on the local disk of each machine, for videos during the work; None for its temporary folder.
    """

    def __init__(self, address: str | None = None, scratch: str | None = None) -> None:
        if address is not None and "://" in address:
            raise ValueError(f"engine.address: found {address}, expected host:port or auto, from inside the cluster")
        if find_spec("ray") is None:
            raise ModuleNotFoundError("engine=ray: found no package ray", name="ray")
        self.address, self.scratch = address, scratch

    def run(self, work: Assignment) -> Iterator[Answers]:
        """See `Engine`; a machine has one process a core, or with `gpus` as many as its GPUs allow."""
        if not len(work.tasks):
            return
        ray = connect(self.address, work.workers)
        seen = [str(folder) for folder in work.folders if "://" not in str(folder)]
        # Removed with all that is half written, should this process be killed.
        token = Path(seen[0]) / f".{uuid.uuid4().hex}.partial"
        token.touch()
        try:
            with Keeper(ray.util.get_node_ip_address()) as keeper:
                paths = [*seen, str(token)]
                about = (work.function, work.timeout, self.scratch, keeper.address, paths, versions(), work.gpus)
                crew = Crew(ray, about, work.workers, work.gpus)
                try:
                    while crew.flying or crew.waiting or crew.begun < len(work.tasks):
                        crew.enlist()
                        crew.give(work.tasks)
                        if answers := crew.take():
                            yield answers
                finally:
                    crew.dismiss()
        finally:
            token.unlink()


def connect(address: str | None, workers: int | None) -> Any:
    """Return the module ray, connected to a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        return ray
    address = address or os.environ.get("RAY_ADDRESS")
    own = {"object_store_memory": STORE, "include_dashboard": False, "_node_ip_address": LOOPBACK}
    how = {} if address else {"num_cpus": workers or cores(), **own}
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.WARNING, **how)
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(f"engine.address: found no Ray cluster at {address}: {error}") from error
    # Ray has put a handler of its own in its place.
    if callable(terminate) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)
    return ray


def versions() -> dict[str, str]:
    """Return the versions of the packages that determine the bytes of a clip."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


class Share(NamedTuple):
    """What a foreman takes of a machine."""

    cpus: int
    gpus: float
    processes: int


def shares(resources: Mapping[str, float], gpus: float) -> list[Share]:
    """Return the shares of a machine: one foreman for all its cores, or one for each process with GPUs.

    Processes that have GPUs take no cores, so that neither kind of work waits for the other.
    """
    if gpus:
        there = resources.get("GPU", 0)
        # Ray gives no process parts of two GPUs.
        return [Share(0, gpus, 1)] * (int(there) * int(1 / gpus) if gpus < 1 else int(there / gpus))
    cpus = int(resources.get("CPU", 0))
    return [Share(cpus, 0, cpus)] if cpus else []


class Team:
    """A foreman as the leader sees it: its place, actor and number of processes, and how many tasks it has now."""

    def __init__(self, slot: tuple[str, int], actor: Any, processes: int) -> None:
        self.slot, self.actor, self.processes, self.ready, self.load = slot, actor, processes, False, 0


class Crew:
    """All foremen of a run and their tasks. about: the arguments of `Foreman.begin` after the processes."""

    def __init__(self, ray: Any, about: tuple, workers: int | None, gpus: float) -> None:
        self.ray, self.about, self.workers, self.gpus = ray, about, workers, gpus
        self.teams: dict[tuple[str, int], Team] = {}
        # By team, not by place: answers of a lost foreman may come after another one has its place.
        self.starting: dict[Any, Team] = {}
        self.flying: dict[Any, tuple[int, Team]] = {}
        self.waiting: deque[int] = deque()
        self.losses: Counter[int] = Counter()
        self.refused: dict[str, str] = {}
        self.begun, self.looked, self.worked = 0, -LOOK, time.monotonic()

    def enlist(self) -> None:
        """Put a foreman on every machine that has none yet."""
        if time.monotonic() < self.looked + LOOK:
            return
        self.looked = time.monotonic()
        room = (self.workers or 2**31) - sum(team.processes for team in self.teams.values())
        for node in self.ray.nodes():
            name = node["NodeID"]
            if not node["Alive"] or name in self.refused:
                continue
            for place, share in enumerate(shares(node["Resources"], self.gpus)):
                if room > 0 and (name, place) not in self.teams:
                    processes = min(share.processes, room)
                    room -= processes
                    self.start((name, place), share._replace(processes=processes, cpus=min(share.cpus, processes)))

    def start(self, slot: tuple[str, int], share: Share) -> None:
        """Begin to start a foreman."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # Ray must restart neither the actor nor its tasks: `take_answers` decides on retries.
        actor_class = self.ray.remote(Foreman).options(
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=share.processes,
            scheduling_strategy=NodeAffinitySchedulingStrategy(slot[0], soft=False),
        )
        team = self.teams[slot] = Team(slot, actor_class.remote(), share.processes)
        self.starting[team.actor.begin.remote(share.processes, *self.about)] = team

    def give(self, tasks: Sequence[Any]) -> None:
        """Give every process a task, then each one more to keep in its queue."""
        for depth in (1, 2):
            for team in self.teams.values():
                while team.ready and team.load < depth * team.processes and (self.waiting or self.begun < len(tasks)):
                    number = self.waiting.popleft() if self.waiting else self.begun
                    self.begun = max(self.begun, number + 1)
                    self.flying[team.actor.do.remote(tasks[number])] = number, team
                    team.load += 1

    def take(self) -> Answers:
        """Return the answers that have come."""
        if any(team.ready for team in self.teams.values()):
            self.worked = time.monotonic()
        elif time.monotonic() > self.worked + PATIENCE:
            raise TimeoutError(f"engine=ray: found no machine with free cores for {PATIENCE:g} s, expected one")
        refs, answers = [*self.starting, *self.flying], []
        if not refs:
            time.sleep(TICK)
            return answers
        for ref in self.ray.wait(refs, num_returns=len(refs), timeout=TICK, fetch_local=False)[0]:
            if ref in self.starting:
                self.take_start(ref, self.starting.pop(ref))
            else:
                answers += self.take_answers(ref, *self.flying.pop(ref))
        return answers

    def take_start(self, ref: Any, team: Team) -> None:
        """Mark a foreman as ready, or refuse its machine if the foreman reports a problem."""
        try:
            complaint = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            complaint = f"no foreman starts there: {last_line(error)}"
        if complaint:
            self.refuse(team, complaint)
        else:
            team.ready = True

    def take_answers(self, ref: Any, number: int, team: Team) -> Answers:
        """Return the answers of a task; if its machine was lost, queue the task for another machine."""
        errors = self.ray.exceptions
        team.load -= 1
        try:
            answers = [(number, answer) for answer in self.ray.get(ref)]
        except errors.RayTaskError as error:
            # Errors of tasks are answers. This one is of the foreman: no process of this machine can start, say.
            self.refuse(team, f"its foreman failed: {last_line(error)}")
        except (errors.RayActorError, errors.ObjectLostError, errors.OutOfMemoryError):
            # OutOfMemoryError: Ray has killed the foreman because the machine had little memory left.
            self.drop(team)
        else:
            self.losses.pop(number, None)
            return answers
        self.losses[number] += 1
        if self.losses[number] < LOSSES:
            self.waiting.append(number)
            return []
        return [(number, Lost("crashed", f"{LOSSES} machines were lost while they worked on it"))]

    def refuse(self, team: Team, complaint: str) -> None:
        """Give up a foreman, and start none on its machine for the rest of the run."""
        name = team.slot[0]
        self.refused[name] = complaint
        log.warning("machine %s of the Ray cluster is not used: %s", name[:8], printable(complaint))
        self.drop(team)
        if not self.teams:
            raise ValueError(f"engine=ray: found no machine that can be used: {complaint}")

    def drop(self, team: Team) -> None:
        """Give up a foreman, and kill it in case it was only out of reach."""
        if self.teams.get(team.slot) is team:
            del self.teams[team.slot]
            self.ray.kill(team.actor, no_restart=True)

    def dismiss(self) -> None:
        """End all foremen; idle foremen first remove their files."""
        idle = [team.actor.end.remote() for team in self.teams.values() if team.ready and not team.load]
        if idle:
            self.ray.wait(idle, num_returns=len(idle), timeout=10)
        for team in list(self.teams.values()):
            self.drop(team)


def last_line(error: Exception) -> str:
    """Return the last line of an error, which is the error itself where it came with a traceback."""
    return str(error).strip().splitlines()[-1].strip()


class Foreman:
    """The actor on a machine, each task in a thread that waits for one of its processes."""

    def begin(
        self,
        processes: int,
        function: Callable[[Any, Node], Any],
        timeout: float,
        scratch: str | None,
        keeper: str,
        paths: Sequence[str],
        expected: Mapping[str, str],
        gpus: float,
    ) -> str:
        """Start the processes; return why this machine cannot be used, empty where it can."""
        missing = [path for path in paths if not Path(path).exists()]
        if missing:
            return f"found no {missing[0]}, expected a folder that the leading machine shares"
        others = [f"{name} {found}" for name, found in versions().items() if found != expected[name]]
        if others:
            return f"found {', '.join(others)}, expected the versions of the leading machine"
        if not gpus:
            # Ray sets it to the number of cores, and each process would start as many threads.
            os.environ["OMP_NUM_THREADS"] = "1"
        # Otherwise each process would import the main module of Ray's worker, and so Ray: 60 MB and a second.
        vars(sys.modules["__main__"]).pop("__file__", None)
        work = hashlib.sha256(paths[0].encode()).hexdigest()[:12]
        self.scratch = make_scratch(Path(scratch or tempfile.gettempdir()), f"videodiff-{work}-")
        self.function, self.timeout = partial(function, node=Node(self.scratch, keeper)), timeout
        self.idle: SimpleQueue[Worker] = SimpleQueue()
        for _ in range(processes):
            self.idle.put(Worker(self.function))
        return ""

    def do(self, task: Any) -> list[Any | Lost]:
        """Return the answers to a task."""
        pool, answers = [self.idle.get()], []
        while not pool[0].ready:
            collect(pool, self.function, self.timeout)
        pool[0].give(0, task)
        while pool[0].task is not None:
            answers += collect(pool, self.function, self.timeout)
        self.idle.put(pool[0])
        return [answer for _, answer in answers]

    def end(self) -> None:
        """End the idle processes and leave nothing behind."""
        while not self.idle.empty():
            self.idle.get().end()
        shutil.rmtree(self.scratch)


def make_scratch(base: Path, prefix: str) -> Path:
    """Return a new private folder in `base`, and remove the folders that killed foremen have left there.

    Other users may write into `base` too, so no name there is trusted and no link is followed.
    """
    base.mkdir(parents=True, exist_ok=True)
    for left in base.glob(f"{glob.escape(prefix)}*"):
        if is_own(left) and (lock := open_lock(left / WORKERS)) is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            except BlockingIOError:
                log.debug("%s is in use", left)
            finally:
                os.close(lock)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    # The file is locked before it gets its final name. The lock is held until the process ends.
    lock = os.open(folder / "begin.lock", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(lock, fcntl.LOCK_SH)
    os.rename(folder / "begin.lock", folder / WORKERS)
    return folder


def is_own(folder: Path) -> bool:
    """Tell whether a path is a folder of this user that nobody else can write into; a link is not."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def open_lock(path: Path) -> int | None:
    """Open a file and return its descriptor; None if it does not exist or is a link."""
    try:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return None

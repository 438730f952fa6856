"""A real sshd on loopback with keys of its own; ssh and pdsh in `environment` reach it by the names of two nodes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.data.storage.test_remote import free_port, wait_for

SERVER = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {root}/host
AuthorizedKeysFile {root}/user.pub
PidFile {root}/pid
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
LogLevel VERBOSE
"""
CLIENT = """\
Host {nodes}
    HostName 127.0.0.1
    Port {port}
Host *
    IdentityFile {root}/user
    IdentitiesOnly yes
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
"""


class Ssh(NamedTuple):
    """What a process needs to reach the nodes, the names of the nodes, and what the server has logged."""

    environment: dict[str, str]
    nodes: tuple[str, ...]
    log: Path


@contextmanager
def ssh(root: Path, nodes: tuple[str, ...] = ("node-a", "node-b")) -> Iterator[Ssh]:
    """Start a server that keeps its files in this folder; it ends with the block."""
    port = free_port()
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", root / key], check=True)
    (root / "server").write_text(SERVER.format(port=port, root=root))
    (root / "client").write_text(CLIENT.format(port=port, root=root, nodes=" ".join(nodes)))
    (root / "bin").mkdir()
    # pdsh and DeepSpeed call ssh by its name, and ssh looks for its configuration where the user really lives.
    (root / "bin/ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {root}/client "$@"\n')
    (root / "bin/ssh").chmod(0o755)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", root / "server", "-E", root / "log"])
    try:
        wait_for(port, server)
        yield Ssh({**os.environ, "PATH": f"{root}/bin:{os.environ['PATH']}"}, nodes, root / "log")
    finally:
        server.terminate()
        server.wait()

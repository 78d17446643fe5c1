"""Redis, etcd and PostgreSQL as the tests start them, each on a port and a folder of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

PASSWORD = "right"


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Server:
    """A server that is started, stopped, killed and started again with the same data."""

    program = ""
    package = ""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rebaser-test-"))
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @classmethod
    def found(cls) -> str | None:
        """Return the path of the program, None where it is not installed."""
        return shutil.which(cls.program)

    def url(self, password: str = PASSWORD, lease: int = 2) -> str:
        """Return what --coordinator takes; `lease` is in seconds."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """Return the command line."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.process = self._started(self.command())
        deadline = time.monotonic() + 20
        while not self.answers():
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.02)

    def answers(self) -> bool:
        """Return whether a client gets through."""
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def send(self, number: int) -> None:
        """Send a signal to all its processes."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it as a power failure does."""
        assert self.process is not None
        self.send(signal.SIGKILL)
        self.process.wait(timeout=20)

    def close(self) -> None:
        """End it, and take its data away."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _started(self, command: list[str]) -> subprocess.Popen[bytes]:
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )


class Redis(Server):
    """Redis with a password; it keeps nothing over a restart."""

    program = "redis-server"
    package = "redis-server"

    def url(self, password: str = PASSWORD, lease: int = 2) -> str:
        """Return what --coordinator takes."""
        return f"redis://:{password}@127.0.0.1:{self.port}?lock_timeout={lease}"

    def command(self) -> list[str]:
        """Return the command line."""
        return [
            *("redis-server", "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--save", "", "--requirepass", PASSWORD),
        ]


class Etcd(Server):
    """etcd; its HTTP gateway knows no password that tooz could send."""

    program = "etcd"
    package = "etcd-server"

    def __init__(self) -> None:
        super().__init__()
        self.peers = free_port()

    def url(self, password: str = PASSWORD, lease: int = 2) -> str:
        """Return what --coordinator takes."""
        return f"etcd3+http://127.0.0.1:{self.port}?lock_timeout={lease}"

    def command(self) -> list[str]:
        """Return the command line."""
        here, peers = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.peers}"
        return [
            *("etcd", "--data-dir", str(self.folder / "data"), "--unsafe-no-fsync"),
            *("--listen-client-urls", here, "--advertise-client-urls", here),
            *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
            *("--initial-cluster", f"default={peers}"),
        ]

    def answers(self) -> bool:
        """Return whether it has elected itself."""
        import urllib.request

        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1) as got:
                return b'"true"' in got.read()
        except OSError:
            return False


class Postgres(Server):
    """PostgreSQL with a password; root must start it as another user."""

    program = "postgres"
    package = "postgresql"

    def __init__(self) -> None:
        super().__init__()
        self.user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        if os.geteuid() == 0:
            os.chown(self.folder, pwd.getpwnam("postgres").pw_uid, -1)
        (self.folder / "password").write_text(PASSWORD)
        (self.folder / "password").chmod(0o644)
        self._bin(
            "initdb",
            "-D",
            str(self.folder / "data"),
            "-A",
            "scram-sha-256",
            "--no-sync",
            "--pwfile",
            str(self.folder / "password"),
            "-U",
            "tester",
        ).wait(timeout=60)

    @classmethod
    def found(cls) -> str | None:
        """Return the path of the program; Debian keeps it out of PATH."""
        installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        return str(installed[-1]) if installed else shutil.which("postgres")

    def url(self, password: str = PASSWORD, lease: int = 2) -> str:
        """Return what --coordinator takes."""
        return f"postgresql://tester:{password}@127.0.0.1:{self.port}/postgres?lock_timeout={lease}"

    def command(self) -> list[str]:
        """Return the command line."""
        return self._as_user(
            "postgres",
            "-D",
            str(self.folder / "data"),
            "-p",
            str(self.port),
            "-k",
            str(self.folder),
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "fsync=off",
            "-c",
            "max_connections=400",  # a crowd of quick starters has more than the usual hundred
        )

    def answers(self) -> bool:
        """Return whether it has recovered from how it ended."""
        return self._bin("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)).wait(20) == 0

    def send(self, number: int) -> None:
        """Send a signal to all its processes, of which each leads a session of its own."""
        assert self.process is not None
        pid = self.process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(child), number)
        os.kill(pid, number)

    def _as_user(self, name: str, *words: str) -> list[str]:
        found = self.found()
        assert found is not None
        program = str(Path(found).with_name(name))
        if os.geteuid():
            return [program, *words]
        ids = pwd.getpwnam(self.user)
        return [
            "setpriv",
            f"--reuid={ids.pw_uid}",
            f"--regid={ids.pw_gid}",
            "--clear-groups",
            program,
            *words,
        ]

    def _bin(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        return self._started(self._as_user(name, *words))


SERVERS = (Redis, Etcd, Postgres)

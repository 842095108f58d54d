"""The servers: what each is told, and how it is started and ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ci.guest import tree

# Seconds that a server may take to answer: the guest is emulated, and its host may be busy.
PATIENCE = 120.0
NOBODY = 65534

# How many names, keys and entries the servers know.
ENTRIES = 100


def value(number: int) -> bytes:
    """What the servers have under a number: of different sizes, some larger than a segment."""
    return b"%d:" % number + bytes([97 + number % 26]) * (number * 37 % 3000)


class Root:
    """Debian's servers over a scratch layer; what is written is gone with this process's mounts."""

    def __init__(self, packages: Path, scratch: Path) -> None:
        self.path = scratch / "root"
        upper, work = scratch / "upper", scratch / "work"
        mount("-t", "tmpfs", "tmpfs", scratch)
        for directory in (self.path, upper, work):
            directory.mkdir()
        layers = f"lowerdir={packages},upperdir={upper},workdir={work}"
        mount("-t", "overlay", "overlay", "-o", layers, self.path)
        mount("-t", "proc", "proc", self.path / "proc")
        mount("--bind", "/dev", self.path / "dev")
        mount("-t", "tmpfs", "tmpfs", self.path / "dev" / "shm")

    def command(self, words: Sequence[str], user: int) -> list[str]:
        return ["chroot", f"--userspec={user}:{user}", str(self.path), *words]

    def run(self, *words: str, user: int = 0) -> None:
        """Run a program in the root to its end, which has to be a good one."""
        done = subprocess.run(
            self.command(words, user),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{words[0]}: {done.stdout}{done.stderr}"

    def write(self, name: str, text: str) -> None:
        """Write a file that a server is to read."""
        path = self.path / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def directory(self, name: str, user: int = NOBODY) -> None:
        """Make an empty directory that belongs to a user."""
        path = self.path / name.lstrip("/")
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        os.chown(path, user, user)


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


class Running:
    """A server that runs, with all its processes."""

    def __init__(self, command: list[str], port: int, log: Path) -> None:
        self._log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
        self.port = port

    def wait(self, words: str) -> None:
        """Until it accepts connections, and has written these words."""
        end = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                self.connect().close()
                if words in self.log():
                    return
            alive = self._process.poll() is None
            assert alive and time.monotonic() < end, f"it did not start: {self.log()}"
            time.sleep(0.1)

    def log(self) -> str:
        """The end of what it wrote."""
        return self._log.read_text(encoding="utf-8", errors="replace")[-2000:]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def signal(self, number: int) -> None:
        for pid in tree(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """End it as a crash does, also when it is stopped."""
        if self._process.poll() is None:
            self.signal(signal.SIGKILL)
        self._process.wait()


@dataclass(frozen=True)
class Server:
    """How a server is set up and run.

    package: Debian's, which has its version. prepare: writes what it reads. user: whom it runs as.
    ready: what it writes when it is, if connections are accepted before that.
    """

    name: str
    package: str
    port: int
    words: tuple[str, ...]
    prepare: Callable[[Root], None] = lambda root: None
    user: int = NOBODY
    ready: str = ""

    @contextlib.contextmanager
    def run(self, root: Root, log: Path) -> Iterator[Running]:
        running = Running(root.command(self.words, self.user), self.port, log)
        try:
            running.wait(self.ready)
            yield running
        except BaseException:
            print(f"{self.name} wrote: {running.log()}")
            raise
        finally:
            running.kill()


def knot(root: Root) -> None:
    root.directory("/tmp/knot")
    root.write(
        "/tmp/knot.conf",
        "server:\n  rundir: /tmp/knot\n  listen: [ 127.0.0.1@53, 192.0.2.53@53 ]\n"
        "  tcp-workers: 2\ndatabase:\n  storage: /tmp/knot\n"
        "zone:\n  - domain: example.com\n    file: /tmp/zone\n"
        "  - domain: example.net\n    file: /tmp/zone\n"
        "  - domain: example.org\n    file: /tmp/zone\n",
    )
    lines = ["@ 3600 SOA ns hostmaster 1 3600 600 86400 60", "@ NS ns", "@ A 192.0.2.1"]
    lines += ["ns A 192.0.2.53"]
    for number in range(ENTRIES):
        text = value(number).decode()
        strings = " ".join(f'"{text[at : at + 200]}"' for at in range(0, len(text), 200))
        lines.append(f"n{number} TXT {strings}")
    root.write("/tmp/zone", "\n".join(lines) + "\n")


def postgresql(root: Root) -> None:
    root.directory("/tmp/pg")
    (programs,) = root.path.glob("usr/lib/postgresql/*/bin")
    (root.path / "tmp/programs").symlink_to("/" + str(programs.relative_to(root.path)))
    root.run(
        *("/tmp/programs/initdb", "--pgdata=/tmp/pg", "--username=postgres", "--auth=trust"),
        *("--no-sync", "--no-instructions", "--locale=C", "--encoding=UTF8"),
        user=NOBODY,
    )


def mosquitto(root: Root) -> None:
    root.write(
        "/tmp/mosquitto.conf",
        "listener 1883 127.0.0.1\nallow_anonymous true\n"
        "max_queued_messages 0\nset_tcp_nodelay true\n",
    )


def slapd(root: Root) -> None:
    root.directory("/tmp/ldap")
    root.write(
        "/tmp/slapd.conf",
        "include /etc/ldap/schema/core.schema\ninclude /etc/ldap/schema/cosine.schema\n"
        "modulepath /usr/lib/ldap\nmoduleload back_mdb\n"
        "database mdb\nsuffix dc=example\ndirectory /tmp/ldap\n",
    )
    entries = ["dn: dc=example\nobjectClass: domain\ndc: example\n"]
    for number in range(ENTRIES):
        entries.append(
            f"dn: cn=n{number},dc=example\nobjectClass: device\ncn: n{number}\n"
            f"description: {value(number).decode()}\n"
        )
    root.write("/tmp/entries.ldif", "\n".join(entries))
    add = ("/usr/sbin/slapadd", "-q", "-f", "/tmp/slapd.conf", "-l", "/tmp/entries.ldif")
    root.run(*add, user=NOBODY)


def nghttpd(root: Root) -> None:
    for number in range(ENTRIES):
        root.write(f"/tmp/www/n{number}", value(number).decode())


THRIFT = '''\
import sys
from thrift.protocol.TBinaryProtocol import TBinaryProtocolFactory
from thrift.Thrift import TMessageType, TProcessor, TType
from thrift.server.TNonblockingServer import TNonblockingServer
from thrift.transport.TSocket import TServerSocket

class Processor(TProcessor):
    """string repeat(1: string text, 2: i32 times), and void ping()."""

    def process(self, iprot, oprot):
        name, _, seqid = iprot.readMessageBegin()
        arguments = {}
        iprot.readStructBegin()
        while True:
            _, kind, number = iprot.readFieldBegin()
            if kind == TType.STOP:
                break
            arguments[number] = iprot.readString() if kind == TType.STRING else iprot.readI32()
            iprot.readFieldEnd()
        iprot.readMessageEnd()
        oprot.writeMessageBegin(name, TMessageType.REPLY, seqid)
        oprot.writeStructBegin("result")
        if name == "repeat":
            oprot.writeFieldBegin("success", TType.STRING, 0)
            oprot.writeString(arguments[1] * arguments[2])
            oprot.writeFieldEnd()
        oprot.writeFieldStop()
        oprot.writeStructEnd()
        oprot.writeMessageEnd()
        oprot.trans.flush()
        return True

factory = TBinaryProtocolFactory()
TNonblockingServer(Processor(), TServerSocket("127.0.0.1", 9090), factory, factory).serve()
'''


def thrift(root: Root) -> None:
    root.write("/tmp/thrift_server.py", THRIFT)


SERVERS = {
    server.name: server
    for server in (
        Server("memcached", "memcached", 11211, ("/usr/bin/memcached", "-l", "127.0.0.1")),
        Server("Knot DNS", "knot", 53, ("/usr/sbin/knotd", "-c", "/tmp/knot.conf"), knot),
        Server(
            "PostgreSQL",
            "postgresql-[0-9]*",
            5432,
            ("/tmp/programs/postgres", "-D", "/tmp/pg", "-F", "-h", "127.0.0.1", "-k", "/tmp"),
            postgresql,
            ready="ready to accept connections",
        ),
        Server(
            "Mosquitto",
            "mosquitto",
            1883,
            ("/usr/sbin/mosquitto", "-c", "/tmp/mosquitto.conf"),
            mosquitto,
        ),
        Server(
            "Redis",
            "redis-server",
            6379,
            ("/usr/bin/redis-server", "--bind", "127.0.0.1", "--save", "", "--dir", "/tmp"),
        ),
        Server(
            "slapd",
            "slapd",
            389,
            ("/usr/sbin/slapd", "-f", "/tmp/slapd.conf", "-h", "ldap://127.0.0.1", "-d", "0"),
            slapd,
        ),
        Server("rpcbind", "rpcbind", 111, ("/sbin/rpcbind", "-f"), user=0),
        Server(
            "Thrift", "python3-thrift", 9090, ("/usr/bin/python3", "/tmp/thrift_server.py"), thrift
        ),
        Server(
            "nghttpd",
            "nghttp2-server",
            8080,
            ("/usr/sbin/nghttpd", "--no-tls", "-d", "/tmp/www", "8080"),
            nghttpd,
        ),
    )
}

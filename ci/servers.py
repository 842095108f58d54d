"""Servers of Debian's, unpacked with all that they need into a directory of the project's cache.

They come from the release that this machine runs, by the project's private apt (ci/apt.py), and
nothing of the machine's changes. Their set-up scripts are not run: a test writes what a server
needs. `chroot` runs them.
"""

from __future__ import annotations

import json
import shutil
import sys
from hashlib import sha256
from pathlib import Path

from ci.apt import CACHE, Apt, UnavailableError, make_once, release, run

# The servers; what Debian's package of Thrift forgets; a shell, which PostgreSQL's initdb runs.
PACKAGES = (
    *("haproxy", "knot", "memcached", "mosquitto", "nghttp2-server", "postgresql"),
    *("python3-thrift", "redis-server", "rpcbind", "slapd"),
    *("base-files", "dash", "python3-six"),
)
UNUSED = ("doc", "i18n", "info", "locale", "man")
USERS = (
    "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n_rpc:x:65534:65534::/:/bin/sh\n"
)
GROUPS = "root:x:0:\nnogroup:x:65534:\n"
VERSIONS = "versions.json"


def say(text: str) -> None:
    print(f"servers: {text}", file=sys.stderr, flush=True)


def root() -> Path:
    """The directory with the servers, from the cache or else from the archive.

    Raises:
        UnavailableError: a package could not be had.
    """
    suite = release()
    if not suite:
        raise UnavailableError("they are Debian's, and this machine runs another system")
    wanted = sha256(" ".join(PACKAGES).encode()).hexdigest()[:8]
    home = CACHE / "servers" / f"{suite}-{wanted}"
    make_once(home, lambda directory: unpack(suite, directory))
    return home


def unpack(suite: str, directory: Path) -> None:
    apt = Apt((suite, f"{suite}-security"), run("dpkg", "--print-architecture").strip())
    say(f"fetching {' '.join(PACKAGES[:-3])}")
    apt.update()
    debs = apt.closure(PACKAGES)
    for deb in debs:
        run("dpkg-deb", "--extract", deb, directory)
        deb.unlink()
    versions = dict(deb.name.replace("%3a", ":").split("_")[:2] for deb in debs)
    (directory / VERSIONS).write_text(json.dumps(versions), encoding="utf-8")
    for name in UNUSED:
        shutil.rmtree(directory / "usr" / "share" / name, ignore_errors=True)
    (directory / "etc" / "passwd").write_text(USERS, encoding="utf-8")
    (directory / "etc" / "group").write_text(GROUPS, encoding="utf-8")
    for name in ("dev", "proc", "run", "tmp"):
        (directory / name).mkdir(exist_ok=True)
        (directory / name).chmod(0o1777)

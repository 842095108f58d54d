"""The tests in a container: `make container`, with ARGS what `ci/test` is given.

Where this host's kernel has KCM the container is privileged and tests that kernel. Elsewhere it
needs no privilege: it boots the kernel that is in its image and runs the kernel tests there.

If no engine answers, one is started for the time of the run, with its data in the project's cache.
If no registry is reached, the base image is made from Debian's packages. The JUnit XML files come
out to reports/container/.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import docker.errors

from ci import output
from ci.apt import machine_archives
from ci.kernels import CACHE, ROOT
from ci.testing import REPORTS, executed

IMAGE = "pykcm-test"
BASE = "debian:bookworm-slim"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
RESULTS = REPORTS / "container"
# Privileged, on the host's kernel. The module may not be loaded yet; whether KCM then works is the
# command's to find out. A container has a mount point for pinned programs, but nothing there.
MODULES = {"/lib/modules": {"bind": "/lib/modules", "mode": "ro"}}
NATIVELY = """\
modprobe kcm
mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
exec "$@"
"""
START_SECONDS = 60  # for an engine to answer, or a registry


def say(text: str) -> None:
    print(f"container: {text}", file=sys.stderr, flush=True)


def connect(address: str | None = None) -> docker.DockerClient | None:
    """A client of the engine at an address (default: as the environment says) if one answers."""
    try:
        client = (
            docker.DockerClient(address, timeout=START_SECONDS)
            if address
            else docker.from_env(timeout=START_SECONDS)
        )
        client.ping()
    except docker.errors.DockerException:
        return None
    return client


@contextlib.contextmanager
def own_engine(data: Path = CACHE / "docker", *options: str) -> Iterator[docker.DockerClient]:
    """Start an engine of our own, and end it in any case.

    Args:
        data: where it keeps images; its log lies beside.
        options: more of dockerd's.
    """
    if os.geteuid() or not shutil.which("dockerd"):
        sys.exit("container: no Docker engine answers, and starting one takes dockerd and root")
    # A socket's path must be short; the images are worth keeping.
    with tempfile.TemporaryDirectory(prefix="pykcm-docker-") as scratch:
        address = f"unix://{scratch}/docker.sock"
        command = ["dockerd", "--host", address, "--data-root", str(data), *options]
        command += ["--exec-root", f"{scratch}/run", "--pidfile", f"{scratch}/pid"]
        # Without a network of its own the engine leaves the host's firewall alone.
        command += ["--iptables=false", "--ip6tables=false", "--bridge=none"]
        log = data.with_name("dockerd.log")
        say("no Docker engine answers; starting one")
        with log.open("wb") as output:
            # A Ctrl-C is for this process, which still needs the engine to remove its container.
            engine = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            client = None
            deadline = time.monotonic() + START_SECONDS
            while client is None:
                if engine.poll() is not None or time.monotonic() > deadline:
                    print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
                    sys.exit("container: the Docker engine did not start; its messages are above")
                time.sleep(0.5)
                client = connect(address)
            yield client
        finally:
            engine.terminate()
            try:
                engine.wait(30)
            except subprocess.TimeoutExpired:
                engine.kill()
                engine.wait()
            # The engine leaves the name of the host's network mounted.
            for mounted in Path(scratch, "run", "netns").glob("*"):
                subprocess.run(["umount", "--lazy", mounted], check=False)


def provide_base(client: docker.DockerClient) -> None:
    """Have the base image: from the engine, a registry, or Debian's packages."""
    try:
        client.images.get(BASE)
        return
    except docker.errors.ImageNotFound:
        pass
    try:
        say(f"pulling {BASE}")
        client.images.pull(BASE)
        return
    except (docker.errors.DockerException, OSError) as reason:
        say(f"no registry is reached ({str(reason)[:120]}); making {BASE} with debootstrap")
    main, security = machine_archives()
    with tempfile.TemporaryDirectory(prefix="pykcm-base-") as scratch:
        root = Path(scratch) / "root"
        command = ["debootstrap", "--variant=minbase", "--include=ca-certificates"]
        subprocess.run([*command, "bookworm", root, main], stdout=sys.stderr, check=True)
        (root / "etc/apt/sources.list").write_text(
            f"deb {main} bookworm main\ndeb {security} bookworm-security main\n", encoding="utf-8"
        )
        # This image is for this machine alone, so it trusts whom this machine trusts.
        shutil.copy(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
        for cache in root.glob("var/cache/apt/archives/*.deb"):
            cache.unlink()
        archive = Path(scratch) / "base.tar"
        subprocess.run(["tar", "-C", root, "-cf", archive, "."], check=True)
        name, tag = BASE.split(":")
        client.api.import_image_from_file(str(archive), repository=name, tag=tag)


def build(client: docker.DockerClient, network: str | None) -> None:
    """Build the image, showing what the build says."""
    say(f"building {IMAGE}")
    for event in client.api.build(
        path=str(ROOT),
        dockerfile="ci/Dockerfile",
        tag=IMAGE,
        network_mode=network,
        rm=True,
        forcerm=True,
        decode=True,
    ):
        if "error" in event:
            sys.exit(f"container: the image was not built: {event['error'].strip()}")
        print(event.get("stream", ""), end="", flush=True)


def host_has_kcm() -> bool:
    """Whether this host's kernel has AF_KCM, loaded or loadable."""
    try:
        socket.socket(41, socket.SOCK_DGRAM).close()
        return True
    except OSError:
        modules = Path("/lib/modules", platform.release(), "modules.dep")
        return modules.exists() and "/kcm.ko" in modules.read_text(encoding="utf-8")


def privileges(tests: list[str]) -> dict[str, Any]:
    """How the container is to be run on this host, said and why."""
    if host_has_kcm():
        say(f"this host's kernel {platform.release()} has KCM: privileged, on that kernel")
        command = ["sh", "-c", NATIVELY, "sh", "ci/test", *tests]
        return {"privileged": True, "volumes": MODULES, "command": command}
    say(
        f"this host's kernel {platform.release()} has no KCM: without privilege, "
        "on the kernel in the image; so the kernel tests alone, since the unit tests load BPF "
        "programs, which takes privilege"
    )
    return {"command": ["ci/test", *(tests or ["kernel"])]}


def fetch_results(container: Any) -> int:
    """Copy the JUnit XML files out; how many tests they say were run."""
    shutil.rmtree(RESULTS, ignore_errors=True)
    RESULTS.mkdir(parents=True)
    stream, _ = container.get_archive("/pykcm/reports")
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
        for member in archive.getmembers():
            content = archive.extractfile(member)
            if content and member.name.endswith(".xml"):
                (RESULTS / Path(member.name).name).write_bytes(content.read())
    return sum(executed(report) for report in RESULTS.glob("*.xml"))


def run(client: docker.DockerClient, network: str | None, asked: list[str]) -> int:
    """Run the tests in a container, which is removed in any case; their exit status."""
    container = client.containers.create(IMAGE, network_mode=network, **privileges(asked))
    with removed(container):
        status = follow(container)
        tests = fetch_results(container)
        say(f"{tests} tests were run; their reports are in {RESULTS.relative_to(ROOT)}")
        return status or int(tests == 0)


def follow(container: Any) -> int:
    """Start a container and show what it says; its exit status."""
    container.start()
    for piece in container.logs(stream=True, follow=True):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    return int(container.wait()["StatusCode"])


@contextlib.contextmanager
def removed(container: Any) -> Iterator[None]:
    """Have a container be removed at the end, whatever happens."""
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient one must not keep it
        container.remove(force=True)


def stop(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        client = connect()
        if client:
            provide_base(client)
            build(client, None)
            return run(client, None, sys.argv[1:])
        with own_engine() as client:
            provide_base(client)
            build(client, "host")
            return run(client, "host", sys.argv[1:])
    except KeyboardInterrupt:
        say("interrupted")
        return 130


if __name__ == "__main__":
    output.run(main)

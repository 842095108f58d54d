"""In a guest: run a command in a privileged container, on the guest's kernel.

    python -m ci.contained COMMAND...

The engine is the guest's own, and keeps its data in memory. The container has the guest's files,
all but the project read-only, and so needs no image of its own: it has other processes, mounts and
devices than the guest, and the guest's kernel, modules and network.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ci import output
from ci.container import MODULES, NATIVELY, START_SECONDS, follow, own_engine, removed
from ci.kernels import ROOT

# What a container has of its own; the rest of the guest's root directory is lent to it.
OWN = ("dev", "proc", "run", "sys", "tmp")
CGROUPS = Path("/sys/fs/cgroup")


def empty() -> bytes:
    """An image, as the archive of its directories."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in OWN:
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            archive.addfile(directory)
    return buffer.getvalue()


def lent() -> dict[str, dict[str, str]]:
    """The guest's directories, where they are; only the project's can be written."""
    paths = [path for path in Path("/").iterdir() if path.name not in OWN and path.is_dir()]
    volumes = {str(path): {"bind": str(path), "mode": "ro"} for path in paths}
    return volumes | MODULES | {str(ROOT): {"bind": str(ROOT), "mode": "rw"}}


@contextlib.contextmanager
def runtime(directory: Path) -> Iterator[Path]:
    """A containerd; its socket.  The engine gives one that it starts itself too little time."""
    address = directory / "containerd.sock"
    command = ["containerd", f"--address={address}", f"--root={directory}/root"]
    command += [f"--state={directory}/state", "--log-level=error"]
    with (
        (directory / "containerd.log").open("wb") as log,
        subprocess.Popen(command, stderr=log) as process,
    ):
        try:
            end = time.monotonic() + START_SECONDS
            while not address.exists():
                if process.poll() is not None or time.monotonic() > end:
                    print(Path(log.name).read_text(errors="replace"), file=sys.stderr)
                    sys.exit("container: containerd did not start; its messages are above")
                time.sleep(0.1)
            yield address
        finally:
            process.terminate()


def main() -> int:
    if not CGROUPS.is_mount():  # a guest has no need of them, an engine has
        subprocess.run(["mount", "-t", "cgroup2", "none", CGROUPS], check=True)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
        runtime(Path(scratch)) as address,
        own_engine(
            Path(scratch, "data"), "--storage-driver=vfs", f"--containerd={address}"
        ) as client,
    ):
        client.api.import_image_from_data(empty(), repository="pykcm-guest")
        container = client.containers.create(
            "pykcm-guest",
            ["sh", "-c", NATIVELY, "sh", *sys.argv[1:]],
            environment=dict(os.environ),
            network_mode="host",
            privileged=True,
            volumes=lent(),
            working_dir=str(ROOT),
        )
        with removed(container):
            return follow(container)


if __name__ == "__main__":
    output.run(main)

"""A User-Mode Linux kernel: a process of the host, with the host's file system as its root.

One CPU, native speed, no BTF. The root is read-only; /tmp, /run and /var/tmp are the guest's own
and the project is the host's. A command that is not interactive has no standard input.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from ci.apt import lock
from ci.guest import Guest, Run, execute
from ci.kernels import CACHE, ROOT, Kernel

INIT = """\
#!/bin/sh
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
[ ! -d /sys/kernel/debug ] || mount -t debugfs debug /sys/kernel/debug
mountpoint -q /dev || mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
for directory in /run /tmp /var/tmp; do mount -t tmpfs tmpfs $directory; done
ln -sf /proc/self/fd /dev/fd
for stream in 0:stdin 1:stdout 2:stderr; do
    ln -sf /proc/self/fd/${{stream%:*}} /dev/${{stream#*:}}
done
mkdir -p {root}
mount -t hostfs -o {root} project {root}
ip link set lo up
hostname kcm
# The root has no /lib/modules of this kernel's.
printf '#!/bin/sh\\nexec modprobe -d %s "$@"\\n' {modules} >/run/modprobe
chmod +x /run/modprobe
echo /run/modprobe >/proc/sys/kernel/modprobe
{run}
busybox poweroff -f
"""

# Through pipes, so that the command does not take the serial lines for terminals.
BATCH = """\
stty -F /dev/ttyS0 raw -echo
stty -F /dev/ttyS1 raw -echo
mkfifo /run/errors
cat </run/errors >/dev/ttyS1 &
sh {script} </dev/null 2>/run/errors | cat >/dev/ttyS0
wait
stty -F /dev/ttyS0 raw
stty -F /dev/ttyS1 raw"""

INTERACTIVE = """\
stty -F /dev/tty0 {size}
setsid -c sh {script} <>/dev/tty0 >&0 2>&0"""


def shim() -> Path:
    """The library that lets UML run on CPUs newer than itself; see uml_xstate.c."""
    source = ROOT / "ci" / "uml_xstate.c"
    library = CACHE / "uml_xstate.so"
    with lock(CACHE / "uml_xstate.lock"):
        if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
            command = ["cc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC"]
            subprocess.run([*command, "-o", library, source, "-ldl"], check=True)
    return library


def boot(kernel: Kernel, guest: Guest, run: Run) -> bool:
    """Boot, run the guest's command and halt; False if that took too long."""
    script = shlex.quote(str(run.script))
    if guest.interactive:
        columns, lines = os.get_terminal_size()
        session = INTERACTIVE.format(script=script, size=f"rows {lines} cols {columns}")
    else:
        session = BATCH.format(script=script)
    init = run.directory / "init"
    init.write_text(
        INIT.format(
            root=shlex.quote(str(ROOT)),
            modules=shlex.quote(str(kernel.image.parents[2])),
            run=session,
        ),
        encoding="utf-8",
    )
    init.chmod(0o755)
    arguments = [str(kernel.image), f"mem={guest.memory}M", "quiet", "ro"]
    arguments += ["root=/dev/root", "rootfstype=hostfs", "rootflags=/", f"init={init}"]
    arguments += [*guest.append, "panic=-1", "con=null", "ssl=null", f"uml_dir={run.directory}/"]
    if guest.interactive:
        arguments += ["con0=fd:0,fd:1"]
        redirect = ""
    else:
        # What UML itself says, and the kernel's console, go to a file of their own.
        arguments += ["con0=null,fd:1", "ssl0=null,fd:3", "ssl1=null,fd:4"]
        redirect = f"3>&1 4>&2 >{shlex.quote(str(run.console))} 2>&1"
    preload = f"LD_PRELOAD={shlex.quote(str(shim()))}"
    return execute(["sh", "-c", f'{preload} exec "$@" {redirect}', "uml", *arguments], guest, run)

"""Which kernel ci/vm --kernel takes, and what it says of one that can't be booted: a line."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ci import apt, built, foreign, kernels
from ci.kernels import KernelUnavailableError

pytestmark = pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="the images that are made here are for x86-64"
)

RELEASE = "6.18.0-mine+"
RT_BASE = "linux-base-7.3.4+deb13-rt-amd64"
SPREAD, SPREAD_17 = (
    [f"linux-{part}-{release}+deb13-amd64" for part in ("base", "binary", "modules")]
    for release in ("6.18.15", "6.17.13")
)
ELF = b"\x7fELF" + bytes(12)


def bzimage(release: str = RELEASE, flags: int = 1) -> bytes:
    head = bytearray(0x400)
    head[0x1F1] = 1  # a sector, beside the first, and nothing behind
    head[0x236] = flags
    head[0x1FE:0x200] = b"\x55\xaa"
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x100).to_bytes(2, "little")
    version = f"{release} (me@here) #1 SMP\0".encode()
    head[0x300 : 0x300 + len(version)] = version
    return bytes(head)


def at(place: int, magic: bytes) -> bytes:
    return bytes(place) + magic + bytes(16)


def problem(named: Path | str) -> str:
    with pytest.raises(KernelUnavailableError) as caught:
        built.kernel(str(named))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(built, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(kernels, "CACHE", tmp_path / "cache")


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """A directory in which a kernel was built, with two modules."""
    directory = tmp_path / "build"
    image = directory / "arch/x86/boot/bzImage"
    image.parent.mkdir(parents=True)
    image.write_bytes(bzimage())
    (directory / "include/config").mkdir(parents=True)
    (directory / "include/config/kernel.release").write_text(f"{RELEASE}\n")
    options = built.FRAGMENT.read_text().replace("CONFIG_AF_KCM=y", "CONFIG_AF_KCM=m")
    (directory / ".config").write_text(options + "\nCONFIG_MODULES=y\n")
    (directory / "modules.order").write_text("net/kcm/kcm.o\nkernel/net/strparser/strparser.ko\n")
    for name in ("net/kcm/kcm.ko", "net/strparser/strparser.ko"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("/bin/true", directory / name)  # depmod wants ELF
    return directory


# --- Images


def test_an_image(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bzimage())
    kernel = built.kernel(str(image))
    assert (kernel.release, kernel.image, kernel.modules) == (RELEASE, image, None)


def test_an_installed_image_has_the_modules_installed_with_it(tmp_path: Path) -> None:
    image = tmp_path / "boot" / f"vmlinuz-{RELEASE}"
    image.parent.mkdir()
    image.write_bytes(bzimage())
    modules = tmp_path / "lib" / "modules"
    (modules / RELEASE).mkdir(parents=True)
    (modules / RELEASE / "modules.dep").touch()
    (image.parent / f"config-{RELEASE}").write_text("CONFIG_AF_KCM=m\nCONFIG_NET_9P=n\n")
    kernel = built.kernel(str(image))
    assert kernel.modules == modules
    assert "CONFIG_NET_9P" in kernel.lacks
    assert "CONFIG_AF_KCM" not in kernel.lacks


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"#!/bin/sh\n", "it is no kernel's image; give a bzImage"),
        (b"", "it is no kernel's image; give a bzImage"),
        (at(56, b"ARM\x64"), "it is a kernel for aarch64; this host boots x86_64"),
        (at(0x10008, b"S390EP"), "it is a kernel for s390x; this host boots x86_64"),
        (at(56, b"RSC\x05"), "it is a kernel for riscv64; this host boots x86_64"),
        (
            ELF + b"\2\0\x3e\0",
            "it is no image that boots but an ELF file; give arch/x86/boot/bzImage",
        ),
        (ELF + b"\0\2\0\x16", "it is a kernel for s390x; this host boots x86_64"),
        (ELF + b"\2\0\x15\0", "it is a kernel for another machine; this host boots x86_64"),
        (ELF[:4], "it is a kernel for another machine; this host boots x86_64"),
        (at(0x24, b"\x18\x28\x6f\x01"), "it is a kernel for arm; this host boots x86_64"),
        (
            b"\x1f\x8b" + bytes(100),
            "it is packed by gzip, as kernels for arm64 are; this host boots x86_64",
        ),
        (
            b"MZ\0\0zimg",
            "it is packed by EFI zboot, as kernels for arm64 are; this host boots x86_64",
        ),
        (bzimage()[:520], "it is cut off: 520 bytes of 1024"),
        (bzimage()[:-1], "it is cut off: 1023 bytes of 1024"),
        (bzimage(flags=0), "it is a kernel for i386; this host boots x86_64"),
        (bzimage(""), "it does not say its release; give a bzImage"),
        (bzimage("6.1-/../x"), "it does not say its release; give a bzImage"),
    ],
)
def test_another_image(content: bytes, said: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(content)
    assert problem(image) == said


def test_what_is_no_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, "/dev/null"):
        assert problem(path) == "it is no regular file; give a bzImage"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.touch(0)
    assert problem(image) == "it can't be read: Permission denied"


# --- Directories


def test_a_build(build: Path) -> None:
    for named in (build, build / "arch/x86/boot/bzImage"):
        kernel = built.kernel(str(named))
        assert kernel.release == RELEASE
        assert kernel.image.resolve() == build / "arch/x86/boot/bzImage"
        assert kernel.lacks == ()
        assert kernel.modules
        installed = kernel.modules / RELEASE
        assert (installed / "kernel/net/kcm/kcm.ko").resolve() == build / "net/kcm/kcm.ko"
        assert "kernel/net/strparser/strparser.ko:" in (installed / "modules.dep").read_text()


def test_a_build_is_installed_anew_when_a_module_was_built_again(build: Path) -> None:
    first = built.kernel(str(build))
    assert built.kernel(str(build)) == first
    os.utime(build / "net/kcm/kcm.ko", (1, 1))
    second = built.kernel(str(build))
    assert second.image != first.image
    assert not first.image.exists()


def test_a_build_without_modules(build: Path) -> None:
    (build / ".config").write_text(built.FRAGMENT.read_text())
    kernel = built.kernel(str(build))
    assert kernel.modules is None
    assert kernel.lacks == ()


def test_a_build_that_lacks_what_the_tests_need(build: Path) -> None:
    config = build / ".config"
    text = config.read_text().replace("CONFIG_9P_FS=y", "# CONFIG_9P_FS is not set")
    config.write_text(text.replace("CONFIG_BPF_EVENTS=y\n", ""))
    assert built.kernel(str(build)).lacks == ("CONFIG_9P_FS", "CONFIG_BPF_EVENTS")


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (".config", "no kernel was built there: no {}/.config"),
        ("arch/x86/boot/bzImage", "it is not built: no {}/arch/x86/boot/bzImage; run `make -C {}`"),
        ("modules.order", "its modules are not built: no {}/modules.order; run `make -C {}`"),
        (
            "net/kcm/kcm.ko",
            "1 of its 2 modules are not built, such as net/kcm/kcm.ko; run `make -C {}`",
        ),
    ],
)
def test_a_build_that_is_not_whole(gone: str, said: str, build: Path) -> None:
    (build / gone).unlink()
    assert problem(build) == said.replace("{}", str(build))


def test_a_build_whose_image_is_an_older_one(build: Path) -> None:
    (build / "arch/x86/boot/bzImage").write_bytes(bzimage("6.17.0-mine"))
    assert problem(build) == f"its image is 6.17.0-mine, the rest {RELEASE}; run `make -C {build}`"


def test_a_build_for_another_machine(build: Path) -> None:
    image = build / "arch/arm64/boot/Image"
    image.parent.mkdir(parents=True)
    (build / "arch/x86/boot/bzImage").rename(image)
    assert problem(build) == "it was built for aarch64; this host boots x86_64"


# --- Where a script is called


def test_a_relative_path_is_of_where_the_script_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "build").mkdir()
    monkeypatch.setenv("CALLED_FROM", str(tmp_path))
    assert built.meant("build") == str(tmp_path / "build")
    assert built.meant(".") == str(tmp_path)
    assert built.meant(str(tmp_path)) == str(tmp_path)
    for other in ("6.12", "stock", "", "nowhere"):
        assert built.meant(other) == other
    assert built.from_caller(Path("out")) == tmp_path / "out"
    monkeypatch.delenv("CALLED_FROM")
    monkeypatch.chdir(tmp_path)
    assert built.meant("build") == str(tmp_path / "build")


@pytest.mark.parametrize("script", ["vm", "matrix", "peers", "mutants", "run-kcm"])
def test_each_script_tells_where_it_was_called(script: str, tmp_path: Path) -> None:
    """With what it would set up and start replaced."""
    copy = tmp_path / "ci"
    copy.mkdir()
    shutil.copy(kernels.ROOT / "ci" / script, copy)
    (tmp_path / "build").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("ci/setup", ".venv/bin/python", *(["ci/vm"] if script == "run-kcm" else [])):
        (tmp_path / name).write_text('#!/bin/sh\necho "$CALLED_FROM" "$@"\n')
        (tmp_path / name).chmod(0o755)
    said = subprocess.run(
        [copy / script, "--kernel", "."],
        cwd=tmp_path / "build",
        env={**os.environ, "KERNEL": "."},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"{tmp_path}/build" in said.splitlines()[-1]


# --- Series


@pytest.mark.parametrize("name", ["kernel", ""])
def test_nothing_of_that_name(name: str) -> None:
    assert problem(name).startswith("there is no such file; name a series such as 6.12")


@pytest.mark.skipif(not shutil.which("apt-get"), reason="this host has no apt-get")
def test_no_network_and_an_empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernels.ARCHIVES, "", kernels.Archive())
    monkeypatch.setattr(apt, "machine_archives", lambda: ("http://127.0.0.1:1",) * 2)
    said = problem("6.12")
    assert said.startswith("`apt-get update` failed with status 100: E: ")
    assert "127.0.0.1" in said


def test_a_series_that_the_archive_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = kernels.Archive()
    archive._found = {"6.1": "linux-image-6.1.0-1-amd64"}
    monkeypatch.setitem(kernels.ARCHIVES, "", archive)
    assert problem("4.19") == "the Debian archive has 6.1, not 4.19"


class Apt:
    """An archive with these packages: name, version, dependencies."""

    def __init__(self, *packages: tuple[str, str, list[str]]) -> None:
        self.packages = {name: (version, depends) for name, version, depends in packages}

    def names(self, prefix: str) -> list[str]:
        return [name for name in self.packages if name.startswith(prefix)]

    def show(self, names: list[str]) -> dict[str, tuple[str, list[str]]]:
        return {name: self.packages[name] for name in names}


@pytest.mark.skipif(not shutil.which("dpkg"), reason="versions are compared by dpkg")
def test_the_newest_of_each_series_that_is_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apt = Apt(
        ("linux-image-6.1.0-9-amd64", "6.1.27-1", []),
        ("linux-image-6.1.0-56-amd64", "6.1.192-2", []),
        ("linux-image-6.1.0-56-rt-amd64", "6.1.192-2", []),
        ("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2", []),
        ("linux-image-6.1.0-56-amd64-unsigned", "6.1.192-2", []),
        ("linux-image-6.12.9+bpo-amd64", "6.12.9-1~bpo12+1", []),
        ("linux-image-6.12.117+deb12-amd64", "6.12.117-1~deb12u1", []),
        ("linux-image-6.9.7+bpo-amd64", "6.9.7-1~bpo12+1", []),
        ("linux-image-7.3.4+deb13-rt-amd64", "7.3.4-1~bpo13+1", [RT_BASE, "kmod"]),
        (RT_BASE, "7.3.4-1~bpo13+1", ["kmod"]),
        ("linux-image-7.3.9+deb13-rt-amd64", "7.3.9-1", ["linux-modules-7.3.9+deb13-rt-amd64"]),
        ("linux-image-6.19.14+deb13-amd64", "6.19.14-1", ["linux-modules-6.19.14+deb13-amd64"]),
        ("linux-image-6.18.15+deb13-amd64", "6.18.15-1", SPREAD),
        (SPREAD[1], "6.18.15-1", []),
        (SPREAD[2], "6.18.15-1", []),
        ("linux-image-6.17.13+deb13-amd64", "6.17.13-1", SPREAD_17),
        (SPREAD_17[1], "6.17.13-1", []),
        ("linux-image-amd64", "6.1.192-2", []),
        ("linux-image-rt-amd64", "6.1.192-2", []),
    )
    archive = kernels.Archive()
    monkeypatch.setattr(archive, "apt", lambda suites: apt)
    monkeypatch.setattr(kernels, "run", lambda *command: "amd64\n")
    assert archive.series() == {
        "5.10": "user-mode-linux",
        "6.1": "linux-image-6.1.0-56-amd64",
        "6.1-rt": "linux-image-6.1.0-56-rt-amd64",
        "6.9": "linux-image-6.9.7+bpo-amd64",
        "6.12": "linux-image-6.12.117+deb12-amd64",
        "6.18": "linux-image-6.18.15+deb13-amd64",
        "7.3-rt": "linux-image-7.3.4+deb13-rt-amd64",
    }
    with pytest.raises(KernelUnavailableError) as caught:
        archive.packages("6.19")
    assert "not 6.19 (no linux-modules-6.19.14+deb13-amd64)" in str(caught.value)
    with pytest.raises(KernelUnavailableError) as caught:
        archive.packages("6.17")
    assert "not 6.17 (no linux-modules-6.17.13+deb13-amd64)" in str(caught.value)
    # That package is not there, and nothing of it is needed in a guest.
    assert archive.packages("6.18")[1] == dict.fromkeys(
        ["linux-image-6.18.15+deb13-amd64", *SPREAD[1:]], "6.18.15-1"
    )
    assert archive.packages("7.3-rt")[1] == {
        "linux-image-7.3.4+deb13-rt-amd64": "7.3.4-1~bpo13+1",
        RT_BASE: "7.3.4-1~bpo13+1",
    }


def test_the_newest_of_this_release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its own lists are asked, once."""
    asked = []

    def series(archive: kernels.Archive) -> dict[str, str]:
        asked.append(archive._suites)
        return dict.fromkeys(["5.10", "6.1", "6.12", "6.12-rt"], "linux-image")

    monkeypatch.setattr(kernels, "CACHE", tmp_path)
    monkeypatch.setattr(kernels, "release", lambda: "bookworm")
    monkeypatch.setattr(kernels.Archive, "series", series)
    for name in ("6.1", "6.12"):
        modules = tmp_path / "kernels" / name / "lib" / "modules" / f"{name}-amd64"
        modules.mkdir(parents=True)
        (modules / "vmlinuz").touch()
    for _ in range(2):
        assert kernels.fetch("stock").release == "6.12-amd64"
    assert asked == [("bookworm", "bookworm-security")]
    monkeypatch.setattr(kernels, "release", lambda: "")  # another system
    assert kernels.fetch("stock").release == "6.1-amd64"


# --- Other machines


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("6.12", ("6.12", "")),
        ("7.3-rt", ("7.3-rt", "")),
        ("6.12-arm64", ("6.12", "arm64")),
        ("7.3-rt-s390x", ("7.3-rt", "s390x")),
    ],
)
def test_a_name_is_a_series_and_an_architecture(name: str, parts: tuple[str, str]) -> None:
    assert kernels.split(name) == parts


@pytest.mark.parametrize("name", ["6", "6.12-", "6.12-riscv64", "6.12-arm64-rt", "v6.12", "6.12.1"])
def test_no_name_of_a_kernel(name: str) -> None:
    assert not kernels.NAME.fullmatch(name)


def test_series_are_sorted_by_number() -> None:
    names = ["6.9", "5.10", "6.12-rt", "6.12", "6.1"]
    assert sorted(names, key=kernels.order) == ["5.10", "6.1", "6.9", "6.12", "6.12-rt"]


def test_the_modules_for_9p_and_what_they_need(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text(
        "kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz\n"
        "kernel/net/9p/9pnet.ko.xz:\n"
        "kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz\n"
        "kernel/drivers/virtio/virtio_pci.ko:\n"
        "kernel/net/9p/9pnet_rdma.ko.xz: kernel/net/9p/9pnet.ko.xz\n"
    )
    assert [Path(name).name for name in foreign.modules(tmp_path)] == [
        "9p.ko.xz",
        "9pnet.ko.xz",
        "netfs.ko.xz",
        "9pnet_virtio.ko.xz",
        "virtio_pci.ko",
    ]


def test_each_compiled_part_is_replaced_in_another_machines_guest() -> None:
    """A part that the guest took from the host would be for the wrong machine."""
    compiled = {path.name for path in (kernels.ROOT / "pykcm").glob("*.abi3.so")}
    assert compiled == {*foreign.PARTS}

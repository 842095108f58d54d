"""A BPF program as text, bytes, a C array, or C source that loads and pins it."""

from __future__ import annotations

import struct
import sys
from typing import NamedTuple

import click

from pykcm.bpf import _functions
from pykcm.bpf import _instructions as isa
from pykcm.bpf.disassembler import disassemble_slot

FORMATS = ("text", "bytes", "c-array", "c")


class Code(NamedTuple):
    """A program that is to be written out.

    Attributes:
        title: what it is, for people.
        text: its assembly.
        code: its instructions, of the host's byte order.
        functions_take: as of `bpf.Program.load`.
    """

    title: str
    text: str
    code: bytes
    functions_take: int | None = None


def write(program: Code, how: str) -> None:
    """Write a program to standard output.

    Raises:
        ClickException: bytes would go to a terminal.
    """
    if how == "bytes":
        out = sys.stdout.buffer
        if out.isatty():
            raise click.ClickException("bytes are not for a terminal: redirect them to a file")
        out.write(program.code)
        return
    text = {"text": program.text, "c-array": array(program.code), "c": source(program)}[how]
    click.echo(text, nl=False)


def array(code: bytes) -> str:
    """The instructions as initialisers of struct bpf_insn, each with its assembly."""
    lines = []
    second = False
    for slot, each in enumerate(isa.decode(code)):
        values = f"{{ {each.opcode:#04x}, {each.dst}, {each.src}, {each.offset}, {each.imm} }},"
        comment = "" if second else f"/* {disassemble_slot(code, slot)} */"
        second = not second and each.opcode == isa.LOAD_IMM64
        lines.append(f"\t{values:<34} {comment}".rstrip())
    return "\n".join(lines) + "\n"


def source(program: Code) -> str:
    """C source that compiles as it is; its `main` loads the program and pins it."""
    types, records = b"", b""
    if program.functions_take is not None:
        types, records = _functions.describe(
            _functions.starts(program.code), program.functions_take
        )
    values = {
        "TITLE": program.title.replace("*/", "* /"),
        "ORDER": isa.HOST,
        "ARRAY": array(program.code).rstrip("\n"),
        "TYPES": _TYPES_ARRAYS.replace("@BYTES@", _bytes(types)).replace("@PAIRS@", _pairs(records))
        if types
        else "",
        "LOAD_TYPES": _LOAD_TYPES if types else "",
    }
    # No value has another's mark in it, but for the title, which is the user's: it comes last.
    text = _SOURCE
    for name in reversed(values):
        text = text.replace(f"@{name}@", values[name])
    return text


def _bytes(data: bytes) -> str:
    lines = (data[at : at + 12] for at in range(0, len(data), 12))
    return "\n".join("\t" + " ".join(f"{byte:#04x}," for byte in line) for line in lines)


def _pairs(records: bytes) -> str:
    pairs = struct.iter_unpack("=II", records)
    return "\n".join(f"\t{{ {slot}, {number} }}," for slot, number in pairs)


# What lets the verifier look at each function once.  Without it some programs are too complex.
_TYPES_ARRAYS = """
/* The types of its functions (BTF), so that the kernel verifies each of them once. */
static const unsigned char types[] = {
@BYTES@
};

static const struct bpf_func_info functions[] = {
@PAIRS@
};
"""

_LOAD_TYPES = """\
	memset(&attr, 0, sizeof(attr));
	attr.btf = (uintptr_t)types;
	attr.btf_size = sizeof(types);
	types_fd = syscall(__NR_bpf, BPF_BTF_LOAD, &attr, sizeof(attr));
	if (types_fd < 0)
		return -1;
	memset(&attr, 0, sizeof(attr));
	attr.prog_btf_fd = types_fd;
	attr.func_info = (uintptr_t)functions;
	attr.func_info_rec_size = sizeof(functions[0]);
	attr.func_info_cnt = sizeof(functions) / sizeof(functions[0]);
"""

_SOURCE = """\
/*
 * A delineation program for KCM: @TITLE@
 *
 * As a program, it loads it and pins it; needs CAP_BPF and CAP_PERFMON:
 *	cc -o pin THIS.c && ./pin /sys/fs/bpf/NAME 0600
 * As a part of another, compile it with -DNO_MAIN and call load_delineation().
 * It is for @ORDER@-endian machines.
 */
#include <errno.h>
#include <linux/bpf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static const struct bpf_insn delineation[] = {
@ARRAY@
};
@TYPES@
/* The program's descriptor, for bpf_fd of struct kcm_attach; -1 and errno. */
int load_delineation(char *log, size_t log_size)
{
	union bpf_attr attr;
	int fd, types_fd = -1;

	memset(&attr, 0, sizeof(attr));
@LOAD_TYPES@	attr.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
	attr.insns = (uintptr_t)delineation;
	attr.insn_cnt = sizeof(delineation) / sizeof(delineation[0]);
	attr.license = (uintptr_t)"Dual MIT/GPL";
	attr.log_buf = (uintptr_t)log;
	attr.log_size = log_size;
	attr.log_level = log_size > 0;
	memcpy(attr.prog_name, "pykcm_framing", sizeof("pykcm_framing"));
	fd = syscall(__NR_bpf, BPF_PROG_LOAD, &attr, sizeof(attr));
	if (types_fd >= 0)
		close(types_fd);
	return fd;
}

#ifndef NO_MAIN
int main(int argc, char **argv)
{
	static char log[1 << 16];
	union bpf_attr attr;
	size_t length;
	int fd;

	if (argc != 3) {
		fprintf(stderr, "usage: %s PATH MODE\\n", argv[0]);
		return 2;
	}
	fd = load_delineation(NULL, 0);
	if (fd < 0) {
		perror("BPF_PROG_LOAD");
		load_delineation(log, sizeof(log));
		length = strlen(log);
		fputs(length > 2000 ? log + length - 2000 : log, stderr);
		return 1;
	}
	memset(&attr, 0, sizeof(attr));
	attr.pathname = (uintptr_t)argv[1];
	attr.bpf_fd = fd;
	if (syscall(__NR_bpf, BPF_OBJ_PIN, &attr, sizeof(attr)) < 0) {
		perror(argv[1]);
		return 1;
	}
	if (chmod(argv[1], strtol(argv[2], NULL, 8)) < 0) {
		perror(argv[1]);
		unlink(argv[1]);
		return 1;
	}
	return 0;
}
#endif
"""

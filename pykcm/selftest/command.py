"""The command line of the selftest; nothing but the standard library is needed for it."""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sys
from collections.abc import Sequence

from pykcm.selftest import diff, report, stress
from pykcm.selftest.formats import FORMATS

_EXIT_STATUS = """\
exit status: 0, all is as it should be or as the table of known deviations says; 1, something is
not; 2, a mistake in the command line; 4, this kernel or this process can't be tested, wholly or in
part, and the report says why; 130, interrupted."""

_WEEK = 7 * 24 * 60 * 60


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= _WEEK:  # nor is NaN
        raise argparse.ArgumentTypeError(f"more than 0, and at most {_WEEK} (a week)")
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kcm selftest",
        description="Check the kernel's KCM against its documentation and source.",
        epilog=_EXIT_STATUS,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--list", action="store_true", help="list the checks and make none")
    add(
        "--filter",
        metavar="PATTERN",
        help="only checks whose name matches: a shell pattern (attach.*), or a regular expression "
        "between slashes (/efault|enoent/)",
    )
    add(
        "--format",
        choices=FORMATS,
        default="ktap",
        help="of the report: ktap is KTAP 1, nested (the default); tap is TAP 13, flat; ksft is "
        "what the kernel's selftests write",
    )
    add(
        "--json",
        action="store_const",
        dest="format",
        const="json",
        help="the same as --format json",
    )
    add(
        "--expect-known",
        action="store_true",
        help="pass only if the kernel behaves exactly as the table of known deviations says: one "
        "that is gone is a failure too",
    )
    add("--jobs", type=_at_least_one, default=1, metavar="N", help="N checks at once (1)")
    add("--repeat", type=_at_least_one, default=1, metavar="N", help="make each check N times (1)")
    add(
        "--stress",
        type=_seconds,
        metavar="SECONDS",
        help="instead of the checks: processes and threads that do everything at once on one "
        "multiplexor, each message checked",
    )
    add("--seed", type=int, metavar="N", help="of --stress; told in the report, random by default")
    add(
        "--export",
        metavar="FILE.pyz",
        help="make no checks: write the selftest as one file that needs nothing but Python 3.10, "
        "for any machine",
    )
    add(
        "--diff",
        nargs=2,
        metavar="FILE",
        help="make no checks: tell what differs between two reports in JSON; exit status 1 if any "
        "check does",
    )
    return parser


def option_names() -> list[str]:
    """The names of its options, for those who complete what is typed."""
    return sorted(set(re.findall(r"--[a-z-]+", _parser().format_usage())))


def main(arguments: Sequence[str], program: Sequence[str] = ("kcm", "selftest")) -> int:
    """Do what a command line says.

    Args:
        arguments: its words, without the program's name.
        program: the words of the program's name.

    Returns:
        The exit status.
    """
    parser = _parser()
    parser.prog = " ".join(program)
    given = parser.parse_args(arguments)
    if given.export is not None:
        if not given.export:
            parser.error("--export: the name of a file is empty")
        return _export(given.export)
    if given.diff:
        return diff.run(*given.diff)
    if given.stress is not None and (given.filter or given.list):
        parser.error("--stress makes no other checks: leave --filter and --list away")
    if given.seed is not None and given.stress is None:
        parser.error("--seed is nothing without --stress")
    try:
        groups = report.select(given.filter)
    except ValueError as error:
        parser.error(f"--filter: {error}")
    if given.list:
        report.list_checks(groups, given.format == "json")
        return 0
    if given.stress is not None:
        seed = random.SystemRandom().randrange(1 << 32) if given.seed is None else given.seed
        groups = [stress.group(given.stress, seed)]
    options = report.Options(
        format=given.format,
        expect_known=given.expect_known,
        parallel=given.jobs,
        repeat=given.repeat,
        command=(*program, *arguments),
    )
    try:
        return report.run(groups, options)
    except BrokenPipeError:  # as of head: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _export(path: str) -> int:
    try:
        from pykcm.selftest import export
    except ImportError:
        print("kcm selftest: this is an exported file itself: copy it", file=sys.stderr)
        return 1
    try:
        export.write(path)
    except OSError as error:
        print(f"kcm selftest: {path} can't be written: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

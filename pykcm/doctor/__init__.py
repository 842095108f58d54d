"""Whether KCM can be used here, by this process, for a framing: found by trying.

`examine` opens a socket, loads programs, attaches connections of the loopback interface and passes
messages.  What it says is a list of `Finding`s, each with what would put it right.
"""

from __future__ import annotations

from pykcm.doctor.examination import examine
from pykcm.doctor.finding import Finding, Status, exit_status
from pykcm.doctor.others import Target, examine_for
from pykcm.doctor.report import write as write_report

__all__ = [
    "Finding",
    "Status",
    "Target",
    "examine",
    "examine_for",
    "exit_status",
    "write_report",
]

"""What has been found so far, for what is tried next."""

from __future__ import annotations

import dataclasses

from pykcm._offset import Strategy
from pykcm.doctor.system import System
from pykcm.framing import FixedLength, Framing


@dataclasses.dataclass
class Situation:
    """What has been found so far.

    Attributes:
        system: where files are read.
        framing: the one that is asked for.
        opens: whether a KCM socket can be opened.
        calls: whether bpf(2) reaches the kernel; None if it can't be told.
        loads: whether a program can be loaded, as it is or with a token.
        plain: whether one can without a token.
        by_token: whether one can with a token.
        refused: why none can be loaded.
        connects: whether there is a TCP connection to attach.
        tries_offset: whether the strategy was asked for.
        strategy: how a program finds the message's offset.
        passes: whether messages got through.
    """

    system: System
    framing: Framing | None = None
    opens: bool = False
    calls: bool | None = None
    loads: bool = False
    plain: bool = False
    by_token: bool = False
    refused: str = ""
    connects: bool = False
    tries_offset: bool = False
    strategy: Strategy | None = None
    passes: bool = False

    @property
    def needs_offset(self) -> bool:
        """Whether the framing that is asked for, or any, needs the message's offset."""
        return not isinstance(self.framing, FixedLength)

    @property
    def obstacle(self) -> str:
        """Why no connection can be attached; empty if one can."""
        if not self.opens:
            return "not tried: no KCM socket can be opened"
        if not self.loads:
            return "not tried: no program can be loaded"
        if not self.connects:
            return "not tried: no TCP connection to 127.0.0.1 can be made"
        if self.tries_offset and self.strategy is None:
            return "not tried: no program can find the message's offset"
        return ""

"""Network namespaces."""

from __future__ import annotations

import os
import time

from pykcm.selftest.check import Group, code
from pykcm.selftest.lab import Lab, framed

GROUP = Group("namespace", "Network namespaces")


@GROUP.check(code("kcm_init_net"))
def each_has_its_own_statistics(lab: Lab) -> None:
    """A new namespace lists none of the multiplexors of another one."""
    lab.kcm()
    lab.isolate()
    first = lab.calls.proc("kcm").splitlines()[0]
    lab.expect("the first line", first, "*** KCM statistics (0 MUX) ****")


@GROUP.check(code("kcm_create, net_generic"))
def socket_belongs_to_the_one_it_was_opened_in(lab: Lab) -> None:
    """A socket that is opened in a new namespace is listed there."""
    lab.isolate()
    lab.kcm()
    first = lab.calls.proc("kcm").splitlines()[0]
    lab.expect("the first line", first, "*** KCM statistics (1 MUX) ****")


@GROUP.check(code("kcm_clone, sock_net"))
def clone_belongs_to_the_multiplexors(lab: Lab) -> None:
    """A clone made from within another namespace makes no multiplexor there."""
    kcm = lab.kcm()
    lab.isolate()
    lab.clone(kcm)
    first = lab.calls.proc("kcm").splitlines()[0]
    lab.expect("the first line", first, "*** KCM statistics (0 MUX) ****")


@GROUP.check(code("kcm_attach"))
def messages_flow_in_a_new_one(lab: Lab) -> None:
    """KCM works in a new namespace."""
    lab.isolate()
    kcm, _, far = lab.attached()
    lab.calls.tcp_send(far, framed(b"inside"))
    lab.received(kcm, [framed(b"inside")])
    lab.calls.send(kcm.fileno(), [b"and out"])
    lab.streamed(far, b"and out")


_SIOCGSKNS = 0x894C  # include/uapi/linux/sockios.h


@GROUP.check(code("kcm_clone, sk_alloc"))
def clone_keeps_its_namespace(lab: Lab) -> None:
    """A namespace that nobody is in any more stays while a clone of a socket of it is open."""
    lab.isolate()
    kcm = lab.kcm()
    clone = lab.clone(kcm)
    lab.calls.close(kcm)
    lab.isolate()
    time.sleep(lab.quiet)  # it would be given up in the background
    os.close(lab.calls.ioctl(clone.fileno(), _SIOCGSKNS, 0))

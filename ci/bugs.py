"""Bugs that KCM and the stream parser have had, each as a small change that puts it back.

A change is a piece of the source as it is in Debian's 6.12 and what replaces it. The fixes'
subjects are those of the kernel's history, where each can be read; the changes are not the fixes
turned round: they make the same mistake in today's code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

KCM = "net/kcm/kcmsock.c"
STRPARSER = "net/strparser/strparser.c"

# The checks that a bug in a function is most likely seen by, which are made first: a regular
# expression for their names.
NEAR = {
    "kcm_sendmsg": "^(transmit|errors|together)",
    "kcm_ioctl": "^(attach|clone).*(efault|failed)",
    "kcm_attach": "^attach",
    "kcm_clone": "^(clone|namespace)",
    "kcm_tx_work": "^(transmit|together)",
    "requeue_rx_msgs": "^(disable|clone|together)",
    "kcm_write_msgs": "^transmit",
    "kcm_getsockopt": "^options",
    "kcm_release": "^(clone|unattach|together)",
    "strp_abort_strp": "^(delineation|resources.aborted)",
}
NEAR_ELSE = "^(delineation|receive)"


class PlaceMissingError(Exception):
    """A source lacks the place that a change is for, or has it more than once."""


@dataclass(frozen=True)
class Bug:
    """A bug, and the change that puts it back.

    name: for `--only`. file, function: where. year, fix: when it was fixed, and that commit's
    subject. does: what the kernel does with it. changes: pieces of the function, each with what
    replaces it. unseen: why nothing sees it, where that is so.
    """

    name: str
    file: str
    function: str
    year: int
    fix: str
    does: str
    changes: tuple[tuple[str, str], ...]
    unseen: str = ""

    @property
    def near(self) -> str:
        """The checks to begin with: a regular expression for their names."""
        return NEAR.get(self.function, NEAR_ELSE)

    def put_back(self, source: str) -> str:
        """The file's text with the bug in it.

        Raises:
            PlaceMissingError: the text is not the one that the change was written for.
        """
        for old, new in self.changes:
            if (count := source.count(old)) != 1:
                raise PlaceMissingError(
                    f"{self.file}, {self.function}() has not once but {count} times: "
                    f"{old.strip().splitlines()[0].strip()!r}"
                )
            source = source.replace(old, new)
        return source

    def put_back_in(self, tree: Path) -> str:
        """The same of a kernel's source tree."""
        return self.put_back((tree / self.file).read_text(encoding="utf-8"))


BUGS = (
    Bug(
        "empty-message-is-null",
        KCM,
        "kcm_sendmsg",
        2017,
        "kcm: fix a null pointer dereference in kcm_sendmsg()",
        "a send of no bytes queues a message that does not exist",
        (
            (
                "\t\tif (head) {\n\t\t\t/* Message complete, queue it on send buffer */\n",
                "\t\t{\n\t\t\t/* Message complete, queue it on send buffer */\n",
            ),
        ),
    ),
    Bug(
        "empty-message-is-queued",
        KCM,
        "kcm_sendmsg",
        2017,
        "kcm: fix 0-length case for kcm_sendmsg()",
        "a send of no bytes queues a message without a fragment",
        (("\tif (msg_data_left(msg)) {\n\t\t/* New message", "\tif (true) {\n\t\t/* New message"),),
    ),
    Bug(
        "attach-goes-on-after-efault",
        KCM,
        "kcm_ioctl",
        2017,
        "kcm: return immediately after copy_from_user() failure",
        "SIOCKCMATTACH with a bad address goes on with what is on the stack",
        (
            (
                "\t\tstruct kcm_attach info;\n\n"
                "\t\tif (copy_from_user(&info, (void __user *)arg, sizeof(info)))\n"
                "\t\t\treturn -EFAULT;\n",
                "\t\tstruct kcm_attach info;\n\n"
                "\t\tif (copy_from_user(&info, (void __user *)arg, sizeof(info)))\n"
                "\t\t\terr = -EFAULT;\n",
            ),
        ),
    ),
    Bug(
        "clone-installs-too-soon",
        KCM,
        "kcm_ioctl",
        2017,
        "fix kcm_clone()",
        "a clone whose number can't be told to the caller stays open",
        (
            (
                "\t\t\tput_unused_fd(info.fd);\n\t\t\tfput(file);\n\t\t\treturn -EFAULT;\n\t\t}\n"
                "\t\tfd_install(info.fd, file);\n",
                "\t\t\tfd_install(info.fd, file);\n\t\t\treturn -EFAULT;\n\t\t}\n"
                "\t\tfd_install(info.fd, file);\n",
            ),
        ),
    ),
    Bug(
        "attach-takes-any-family",
        KCM,
        "kcm_attach",
        2018,
        "kcm: Only allow TCP sockets to be attached to a KCM mux",
        "sockets that are not TCP's are attached",
        (
            (
                "\tif ((csk->sk_family != AF_INET && csk->sk_family != AF_INET6) ||\n"
                "\t    csk->sk_protocol != IPPROTO_TCP) {\n",
                "\tif (!csk->sk_family) {\n",
            ),
        ),
    ),
    Bug(
        "attach-takes-listeners",
        KCM,
        "kcm_attach",
        2018,
        "kcm: Only allow TCP sockets to be attached to a KCM mux",
        "listening and closed sockets are attached",
        (("\tif (csk->sk_state == TCP_LISTEN || csk->sk_state == TCP_CLOSE) {", "\tif (false) {"),),
    ),
    Bug(
        "attach-twice",
        KCM,
        "kcm_attach",
        2018,
        "kcm: Check if sk_user_data already set in kcm_attach",
        "a connection that is attached already is attached once more",
        (("\tif (csk->sk_user_data) {", "\tif (false) {"),),
    ),
    Bug(
        "clone-holds-no-namespace",
        KCM,
        "kcm_clone",
        2018,
        "kcm: Fix use-after-free caused by clonned sockets",
        "a clone does not keep its network namespace",
        (("\t\t\t &kcm_proto, false);", "\t\t\t &kcm_proto, true);"),),
    ),
    Bug(
        "program-may-move",
        KCM,
        "kcm_parse_func_strparser",
        2019,
        "kcm: disable preemption in kcm_parse_func_strparser()",
        "the delineation program may be moved to another CPU while it runs",
        (("\tres = bpf_prog_run_pin_on_cpu(prog, skb);", "\tres = bpf_prog_run(prog, skb);"),),
        "only a program with data of its own for each CPU could show it, and a socket filter that "
        "delineates has none; a kernel with CONFIG_DEBUG_ATOMIC_SLEEP warns (cant_migrate)",
    ),
    Bug(
        "work-after-release",
        KCM,
        "kcm_tx_work",
        2022,
        "kcm: avoid potential race in kcm_tx_work",
        "work that was queued looks at the socket's flags when that is closed already",
        (("\tif (likely(sk->sk_socket) &&\n\t    test_bit(", "\tif (test_bit("),),
    ),
    Bug(
        "requeue-without-the-lock",
        KCM,
        "requeue_rx_msgs",
        2022,
        "kcm: close race conditions on sk_receive_queue",
        "messages are moved to other sockets while a receive takes them",
        (("\twhile ((skb = skb_dequeue(head))) {", "\twhile ((skb = __skb_dequeue(head))) {"),),
    ),
    Bug(
        "unreserve-without-connection",
        KCM,
        "kcm_write_msgs",
        2023,
        "kcm: Fix unnecessary psock unreservation.",
        "a send of no bytes gives up a connection that it does not have",
        (
            (
                "\t\tif (psock)\n\t\t\tunreserve_psock(kcm);\n",
                "\t\tunreserve_psock(kcm);\n",
            ),
        ),
    ),
    Bug(
        "failed-part-stays",
        KCM,
        "kcm_sendmsg",
        2023,
        "kcm: Fix error handling for SOCK_DGRAM in kcm_sendmsg().",
        "after a part that faulted, the next message goes behind what was begun",
        (
            (
                "\t} else {\n\t\tkfree_skb(head);\n\t\tkcm->seq_skb = NULL;\n\t}\n",
                "\t} else if (head != kcm->seq_skb) {\n\t\tkfree_skb(head);\n\t}\n",
            ),
        ),
    ),
    Bug(
        "negative-length",
        KCM,
        "kcm_getsockopt",
        2024,
        "net: kcm: fix incorrect parameter validation in the kcm_getsockopt) function",
        "getsockopt takes a negative length for a long one",
        (("\tif (len < 0)\n\t\treturn -EINVAL;\n", ""),),
    ),
    Bug(
        "sends-overlap",
        KCM,
        "kcm_sendmsg",
        2024,
        "kcm: Serialise kcm_sendmsg() for the same socket.",
        "a send goes on with a message that another one, which waits for room, has begun",
        (
            ("\tmutex_lock(&kcm->tx_mutex);\n\tlock_sock(sk);\n", "\tlock_sock(sk);\n"),
            (
                "\trelease_sock(sk);\n\tmutex_unlock(&kcm->tx_mutex);\n\treturn copied;\n",
                "\trelease_sock(sk);\n\treturn copied;\n",
            ),
            (
                "\trelease_sock(sk);\n\tmutex_unlock(&kcm->tx_mutex);\n\treturn err;\n",
                "\trelease_sock(sk);\n\treturn err;\n",
            ),
        ),
    ),
    Bug(
        "work-after-unattach",
        KCM,
        "kcm_release",
        2025,
        "net: kcm: Fix race condition in kcm_unattach()",
        "closing gives up a connection without the lock, while unattaching queues work for it",
        (
            (
                "\tdisable_work_sync(&kcm->tx_work);\n\n\tlock_sock(sk);\n"
                "\tpsock = kcm->tx_psock;\n",
                "\tcancel_work_sync(&kcm->tx_work);\n\n\tpsock = kcm->tx_psock;\n",
            ),
            (
                "\t\tunreserve_psock(kcm);\n\t}\n\trelease_sock(sk);\n\n\tWARN_ON(kcm->tx_wait);\n",
                "\t\tunreserve_psock(kcm);\n\t}\n\n\tWARN_ON(kcm->tx_wait);\n",
            ),
        ),
        "the window is a few instructions wide, and the work that was queued in it mostly runs "
        "before the socket is freed; together.connection_can_be_unattached_while_its_socket_is_"
        "closed tries it for a second and a half",
    ),
    Bug(
        "empty-last-fragment",
        KCM,
        "kcm_sendmsg",
        2026,
        "kcm: fix zero-frag skb in frag_list on partial sendmsg error",
        "a fault just where another socket buffer began leaves that one in the message, empty",
        (("\tif (frag_prev && !skb_shinfo(skb)->nr_frags) {", "\tif (false) {"),),
    ),
    Bug(
        "errno-has-the-wrong-sign",
        STRPARSER,
        "strp_abort_strp",
        2018,
        "strparser: Fix sign of err codes",
        "the error that is posted on the TCP socket is negative",
        (("\t\tsk->sk_err = -err;", "\t\tsk->sk_err = err;"),),
    ),
    Bug(
        "timer-is-set-for-ever",
        STRPARSER,
        "strp_start_timer",
        2018,
        "strparser: Do not call mod_delayed_work with a timeout of LONG_MAX",
        "without SO_RCVTIMEO, a timer is set to a time that may have passed already",
        (("\tif (timeo && timeo != LONG_MAX)", "\tif (timeo)"),),
    ),
    Bug(
        "full-buffer-stalls",
        STRPARSER,
        "__strp_recv",
        2018,
        "strparser: Remove early eaten to fix full tcp receive buffer stall",
        "the bytes of a message stay in the TCP socket until all of it is there",
        (
            (
                "\t\t\tif (stm->strp.full_len - stm->accum_len >\n"
                "\t\t\t    strp_peek_len(strp)) {\n",
                "\t\t\tif (!stm->accum_len &&\n"
                "\t\t\t    stm->strp.full_len > strp_peek_len(strp)) {\n"
                "\t\t\t\tstrp_start_timer(strp, timeo);\n"
                "\t\t\t\tstrp->need_bytes = stm->strp.full_len;\n"
                "\t\t\t\tstrp->skb_head = NULL;\n"
                "\t\t\t\tkfree_skb(head);\n"
                "\t\t\t\tdesc->count = 0;\n"
                "\t\t\t\tbreak;\n"
                "\t\t\t}\n"
                "\t\t\tif (stm->strp.full_len - stm->accum_len >\n"
                "\t\t\t    strp_peek_len(strp)) {\n",
            ),
        ),
    ),
    Bug(
        "need-bytes-counts-what-was-before",
        STRPARSER,
        "__strp_recv",
        2018,
        "strparser: Fix incorrect strp->need_bytes value.",
        "of a message that follows another one in a segment, the wrong number of bytes is waited "
        "for",
        (
            (
                "\t\t\t\tstrp->need_bytes = stm->strp.full_len -\n"
                "\t\t\t\t\t\t       stm->accum_len;\n",
                "\t\t\t\tstrp->need_bytes = stm->strp.full_len -\n\t\t\t\t\t\t       head->len;\n",
            ),
        ),
        "the number is wrong only if the segment after the one in which the message began is short "
        "too, and the message as a whole shorter than what came with it; no check sends that yet",
    ),
    Bug(
        "fragments-are-shared",
        STRPARSER,
        "__strp_recv",
        2019,
        'net: strparser: partially revert "strparser: Call skb_unclone conditionally"',
        "the rest of a message is hung on a list that other socket buffers share",
        (
            (
                "\t\t\terr = skb_unclone(head, GFP_ATOMIC);\n",
                "\t\t\terr = skb_has_frag_list(head) ?\n"
                "\t\t\t\tskb_unclone(head, GFP_ATOMIC) : 0;\n",
            ),
        ),
    ),
    Bug(
        "abort-leaks",
        STRPARSER,
        "strp_abort_strp",
        2026,
        "CVE-2026-46102",
        "what was there of a message whose assembly ends with an error is never freed",
        (
            (
                "\tif (strp->skb_head) {\n\t\tkfree_skb(strp->skb_head);\n"
                "\t\tstrp->skb_head = NULL;\n\t}\n\n\tstrp->skb_nextp = NULL;\n",
                "\tstrp->skb_head = NULL;\n\n\tstrp->skb_nextp = NULL;\n",
            ),
        ),
    ),
)

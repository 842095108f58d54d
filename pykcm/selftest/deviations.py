"""The known deviations: checks that fail on some kernels, and why.

A range of kernels begins with the oldest one that was seen to behave so, unless the commit is
known that brought it.
"""

from __future__ import annotations

import dataclasses

from pykcm.selftest import versions


@dataclasses.dataclass(frozen=True)
class Deviation:
    """A check that fails on some kernels.

    Attributes:
        check: the check's name.
        kernels: on which it fails, as versions.within takes them.
        happens: what the kernel does instead.
        cause: the place in the kernel's source, as far as it is known.
        since: the commit or version that brought it.
    """

    check: str
    kernels: str
    happens: str
    cause: str
    since: str


_SEEN = "at least 5.10; the code is older"
_NO_TAIL = "5.10.156-5.10, 5.15.80-5.15, 6.0.10-"
_NO_TAIL_SINCE = "5121197ecc5d (kcm: close race conditions on sk_receive_queue), 6.1"
_NO_SPLICE_SINCE = "5bb3a5cb3e21 (kcm: Convert kcm_sendpage() to use MSG_SPLICE_PAGES), 6.5"

_SPLICE_FLAGS = "5.10-6.15, 6.16-6.16.0"
_SPLICE_FLAGS_SINCE = (
    "at least 6.1; fixed by 9063de636cee (kcm: Fix splice support), 6.17 and 6.16.1"
)

DEVIATIONS: tuple[Deviation, ...] = (
    Deviation(
        "clone.clone_is_close_on_exec",
        "5.10-",
        "a clone survives exec",
        "kcm_ioctl() takes its descriptor with get_unused_fd_flags(0), and SIOCKCMCLONE has no "
        "place for a flag",
        _SEEN,
    ),
    Deviation(
        "unattach.complete_message_is_kept",
        "5.10-",
        "unattaching drops a complete message that no KCM socket had room for",
        "kcm_unattach() frees psock->ready_rx_msg; it counts that in RX-RdyDrops",
        _SEEN,
    ),
    Deviation(
        "unattach.partial_message_is_kept",
        "5.10-",
        "unattaching drops the first bytes of a message that is not complete",
        "the stream parser has taken them off the TCP socket, and strp_done() frees them",
        _SEEN,
    ),
    Deviation(
        "delineation.documented_program_separates_messages",
        "5.10-",
        "every message of a segment gets the first one's length",
        "__strp_recv() gives the program the segment from its first byte; where the message "
        "begins stands in strp_msg.offset, of which kcm.rst says nothing",
        _SEEN,
    ),
    Deviation(
        "delineation.message_of_the_limit_is_delivered",
        "5.10-",
        "a message of nearly SO_RCVBUF (on 6.1: of more than half of it) never arrives, and no "
        "error is posted",
        "strp_data_ready() leaves the bytes in the TCP socket until need_bytes of them are there, "
        "which is more than the TCP window lets in; the limit in strp_recv() is all of sk_rcvbuf",
        _SEEN,
    ),
    Deviation(
        "delineation.nothing_is_sent_after_an_error",
        "5.10-",
        "after a receive error was read by SO_ERROR, KCM goes on sending over the connection",
        "strp_abort_strp() stops receiving only; sending stops by sk_err, which SO_ERROR clears",
        _SEEN,
    ),
    Deviation(
        "receive.short_seqpacket_keeps_the_rest",
        _NO_TAIL,
        "the rest of the message is lost",
        "kcm_recvmsg() moves stm->offset of a message that skb_recv_datagram() has taken off the "
        "queue already",
        _NO_TAIL_SINCE,
    ),
    Deviation(
        "errors.failed_receive_leaves_the_message",
        _NO_TAIL,
        "the message is lost",
        "kcm_recvmsg() copies a message that skb_recv_datagram() has taken off the queue already",
        _NO_TAIL_SINCE,
    ),
    Deviation(
        "receive.msg_trunc_tells_the_real_length",
        "5.10-",
        "MSG_TRUNC changes nothing",
        "kcm_recvmsg() does not look at the flag",
        _SEEN,
    ),
    Deviation(
        "receive.fionread_tells_the_length",
        "5.10-",
        "FIONREAD is ENOTTY",
        "kcm_ioctl() has its three own requests only",
        _SEEN,
    ),
    Deviation(
        "errors.message_that_faults_is_not_counted",
        "5.10-",
        "what was taken before the fault stays counted for ever",
        "kcm_sendmsg() frees the message at out_error, and leaves sk_wmem_queued as it is",
        _SEEN,
    ),
    Deviation(
        "errors.messages_that_fault_leave_room",
        "5.10-",
        "a socket without a message in it is full",
        "as in errors.message_that_faults_is_not_counted",
        _SEEN,
    ),
    Deviation(
        "transmit.poll_tells_of_a_full_buffer",
        "5.10-",
        "poll reports POLLOUT always",
        "datagram_poll() asks sock_writeable(), that is sk_wmem_alloc, which KCM does not use: it "
        "counts in sk_wmem_queued",
        _SEEN,
    ),
    Deviation(
        "transmit.closing_sends_the_rest",
        "5.10-",
        "what was still queued is thrown away",
        "kcm_release() purges sk_write_queue, and aborts the connection it was writing to",
        _SEEN,
    ),
    Deviation(
        "options.get_negative_length_is_einval",
        "5.10-5.10.213, 5.11-5.15.152, 5.16-6.1.82, 6.2-6.6.22, 6.7-6.7.10, 6.8-6.8.1",
        "a negative length is taken as four bytes",
        "kcm_getsockopt() asked whether the length is negative after an unsigned minimum; fixed "
        "by 'net: kcm: fix incorrect parameter validation in the kcm_getsockopt) function', 6.9",
        _SEEN,
    ),
    Deviation(
        "together.parts_that_wait_for_room_are_joined",
        "5.10-5.10.224, 5.11-5.15.165, 5.16-6.1.106, 6.2-6.6.47, 6.7-6.10.6",
        "of two parts that wait for room at once, one is lost",
        "a send that waits in kcm_sendmsg() lets go of the socket's lock, and another begins "
        "a message of its own meanwhile; fixed by 'kcm: Serialise kcm_sendmsg() for the same "
        "socket.' (CVE-2024-44946), 6.11",
        _SEEN,
    ),
    Deviation(
        "disconnect.reader_learns_of_the_end",
        "5.10-",
        "a reader of the KCM socket waits for ever",
        "psock_state_change() posts the error on the TCP socket alone",
        _SEEN,
    ),
    Deviation(
        "disconnect.nothing_is_sent_after_the_end",
        "5.10-",
        "after EPIPE was read by SO_ERROR, KCM goes on sending over a half closed connection",
        "psock_state_change() sets sk_err and nothing else; SO_ERROR clears it",
        _SEEN,
    ),
    Deviation(
        "splice.short_splice_keeps_the_rest",
        _NO_TAIL,
        "the rest of the message is lost",
        "as in kcm_recvmsg(): skb_recv_datagram() has taken it off the queue",
        _NO_TAIL_SINCE,
    ),
    Deviation(
        "splice.receive_after_splice_tells_the_end",
        _NO_TAIL,
        "the message is gone, and its MSG_EOR with it",
        "as in kcm_recvmsg(): skb_recv_datagram() has taken it off the queue",
        _NO_TAIL_SINCE,
    ),
    Deviation(
        "splice.splice_that_may_not_wait_takes_the_message",
        _SPLICE_FLAGS,
        "the message stays, and is empty",
        "kcm_splice_read() hands SPLICE_F_NONBLOCK on to skb_recv_datagram(), where it is MSG_PEEK",
        _SPLICE_FLAGS_SINCE,
    ),
    Deviation(
        "splice.splice_that_may_not_wait_is_eagain",
        _SPLICE_FLAGS,
        "it waits",
        "kcm_splice_read() hands SPLICE_F_NONBLOCK on to skb_recv_datagram(), where it is MSG_PEEK",
        _SPLICE_FLAGS_SINCE,
    ),
    Deviation(
        "splice.pipe_goes_out_of_a_seqpacket_socket",
        "6.5-",
        "the message stays open, and nothing is sent",
        "kcm_sendmsg() ends a message of SOCK_SEQPACKET at MSG_EOR only, which splice can't give",
        _NO_SPLICE_SINCE,
    ),
    Deviation(
        "splice.file_goes_out_of_a_seqpacket_socket",
        "6.5-",
        "the message stays open, and nothing is sent",
        "kcm_sendmsg() ends a message of SOCK_SEQPACKET at MSG_EOR only, which sendfile can't give",
        _NO_SPLICE_SINCE,
    ),
    Deviation(
        "splice.splice_goes_on_with_a_full_buffer",
        "6.5-",
        "splice waits for ever, or until a signal or SO_SNDTIMEO ends it",
        "where the last of a socket buffer's fragments could be longer, kcm_sendmsg() begins no "
        "other buffer; it takes EMSGSIZE of skb_splice_from_iter() for a want of memory",
        _NO_SPLICE_SINCE,
    ),
    Deviation(
        "splice.file_goes_out_whose_end_comes_early",
        "5.10-",
        "the message stays open, and nothing is sent",
        "sendfile gives MSG_MORE with all that is not the last of what was asked for, and at the "
        "end nothing ends the message: kcm_splice_eof() writes what is queued only",
        _SEEN,
    ),
    Deviation(
        "statistics.unattach_is_counted",
        "5.10-",
        "the column Unattach shows what belongs to UnattchRsvd",
        "kcm_stats_seq_show() prints the two values the wrong way round",
        _SEEN,
    ),
    Deviation(
        "statistics.unattach_of_a_reserved_connection_is_counted",
        "5.10-",
        "the column UnattchRsvd shows what belongs to Unattach",
        "kcm_stats_seq_show() prints the two values the wrong way round",
        _SEEN,
    ),
    Deviation(
        "statistics.abort_is_counted",
        "5.10-",
        "RX-Aborts is always 0",
        "save_strp_stats() counts strp->aborted, which nothing sets",
        _SEEN,
    ),
    Deviation(
        "statistics.sending_again_is_counted",
        "5.10-",
        "TX-Retries is always 0",
        "aggregate_mux_stats() leaves tx_retries out",
        _SEEN,
    ),
)


def known(check: str, version: versions.Version) -> Deviation | None:
    """What the table says of a check on a kernel."""
    for deviation in DEVIATIONS:
        if deviation.check == check and versions.within(version, deviation.kernels):
            return deviation
    return None


def table() -> str:
    """The deviations as a table in Markdown."""
    lines = ["| check | kernels | what happens | cause | since |", "|---|---|---|---|---|"]
    for deviation in DEVIATIONS:
        words = (deviation.kernels, deviation.happens, deviation.cause, deviation.since)
        lines.append(f"| `{deviation.check}` | {' | '.join(words)} |")
    return "\n".join(lines) + "\n"

"""Why some of KCM's code is reached by no check: by function and by the text of the line."""

from __future__ import annotations

import re

from ci.coverage import Line

ASSERTION = "an assertion, which only a bug of the kernel's own makes fail"
AFTER = "what follows an assertion that failed"
BOOT = "memory is lacking while KCM is loaded or the kernel boots"
RACE = "another CPU has to come between two lines of the kernel's; the stress gets there at times"
REFERENCED = "a socket without its struct sock: who calls holds the file, and so has one"
OTHERS = "for users of the stream parser that are not KCM on TCP"
FRAG_LIST = "a received segment with a frag_list: TCP makes none over the loopback interface"
NOT_ACCOUNTED = "KCM's memory is not accounted, so that there is always some"
NOT_AVAILABLE = "a connection is free only when no socket waits for one"
NO_ERROR = "an error that the function called does not return here"
MACRO = (
    "a way that the compiler leaves beside the real ones, of a macro, an inlined function or a "
    "test made twice, and that nothing takes"
)

# A function's name and the line's text, each a pattern for all of it; the first that fits counts.
REASONS: tuple[tuple[str, str, str], ...] = (
    (r".*", r".*WARN_ON(_ONCE)?\(.*", ASSERTION),
    (r"kcm_init|kcm_proc_init_net|strp_dev_init", r".*", BOOT),
    # kcmsock.c
    (r"kcm_abort_tx_psock", r"if \(psock->tx_stopped\).*|return;", RACE),
    (r"kcm_abort_tx_psock", r"if \(!psock->tx_kcm\).*|list_del\(.*", RACE),
    (r"kcm_rcv_ready", r"if \(unlikely\(kcm->rx_wait .*", MACRO),
    (r"kcm_rfree", r"if \(!READ_ONCE\(kcm->rx_wait\).*", MACRO),
    (r"kcm_queue_rcv_skb", r"if \(!sk_rmem_schedule.*", NOT_ACCOUNTED),
    (r"kcm_sendmsg", r"if \(!sk_wmem_schedule.*", NOT_ACCOUNTED),
    (r"reserve_rx_kcm", r".*psock->rx_kcm.*", RACE),
    (r"unreserve_rx_kcm", r"\} else if \(rcv_ready .*", RACE),
    (r"psock_data_ready|psock_write_space", r"if \(\w+\(!?psock\)\)|goto out;", RACE),
    (
        r"reserve_psock",
        r"if \(unlikely\(psock.*|unreserve_psock\(kcm\);|return kcm->tx_psock;",
        RACE,
    ),
    (r"reserve_psock", r".*(kcm->tx_wait|kcm->wait_psock_list).*", NOT_AVAILABLE),
    (r"unreserve_psock", r"return;", AFTER),
    (r"kcm_write_msgs", r"if \(skb_queue_empty\(.*", RACE),
    (r"kcm_write_msgs", r"goto out;|out:", AFTER),
    (r"kcm_write_msgs", r"while \(\(head = .*|if \(!txm->started_tx\) \{", MACRO),
    (r"kcm_write_msgs", r"kcm_abort_tx_psock\(psock, ret \? .*", NO_ERROR),
    (r"kcm_tx_work", r"if \(err < 0\).*|pr_warn.*|goto out;", AFTER),
    (r"kcm_tx_work", r"test_bit\(SOCK_NOSPACE.*", MACRO),
    (r"kcm_sendmsg", r"if \(err < 0\) \{|pr_warn.*|report_csk_error.*", AFTER),
    (r"kcm_sendmsg", r"if \(sk->sk_err\)|goto out_error;", AFTER),
    (r"kcm_sendmsg", r"if \(err == -EMSGSIZE\)", NO_ERROR),
    (r"kcm_sendmsg", r"goto wait_for_memory;", NOT_ACCOUNTED),
    (r"kcm_sendmsg", r"\} else if \(kcm->tx_wait_more .*", MACRO),
    (r"kcm_push", r"if \(kcm->tx_wait_more\)", MACRO),
    (r"kcm_splice_read", r"if \(copied < 0\).*|err = copied;|goto err_out;", NO_ERROR),
    (r"kcm_recv_disable|kcm_done", r"if \(kcm->rx_wait\) \{", MACRO),
    (r"kcm_release", r"if \(kcm->tx_wait\) \{", MACRO),
    (r"kcm_getsockopt", r"if \((put_user|copy_to_user)\(.*", MACRO),
    (r"kcm_attach|kcm_unattach_ioctl", r"if \(!csk\).*|err = -EINVAL;|goto out;", REFERENCED),
    (r"kcm_attach", r"if \(err\) \{|write_unlock_bh.*|kmem_cache_free.*", NO_ERROR),
    (r"kcm_unattach", r"write_unlock_bh.*|release_sock.*|return;", AFTER),
    (r"kcm_unattach", r"if \(!psock->tx_kcm\) \{|goto no_reserved;", RACE),
    # kcmproc.c
    (r"kcm_format_sock", r"if \(kcm->\w+\)", MACRO),
    (r"kcm_format_psock", r"if \(!psock->strp\.paused .*", MACRO),
    (r"kcm_format_psock", r"if \(psock->(done|strp\.paused|ready_rx_msg)\)", RACE),
    # strparser.c
    (r"strp_process|__strp_unpause|default_read_sock_done|strp_init|strp_peek_len", r".*", OTHERS),
    (r"strp_abort_strp", r"if \(strp->sk\).*", OTHERS),
    (r"strp_abort_strp", r"if \(strp->stopped\)|return;", RACE),
    (r"strp_read_sock", r".*(sock->ops|cb\.read_sock).*", OTHERS),
    (r"__strp_recv", r".*(frag_list|alloc_skb_for_msg|skb_unclone\(skb, ).*", FRAG_LIST),
    (
        r"__strp_recv",
        r"if \(!skb\) \{|strp->skb_nextp = &head->next;|strp->skb_head = skb;",
        FRAG_LIST,
    ),
    (
        r"__strp_recv",
        r"if \(err\) \{|STRP_STATS_INCR\(strp->stats.mem_fail\);|desc->error = .*|break;|return 0;",
        FRAG_LIST,
    ),
)


def reason(file: str, line: Line) -> str:
    """Why a line of a file, or a way that it may go, is not reached; empty if nobody knows."""
    for function, text, why in REASONS:
        if re.fullmatch(function, line.function) and re.fullmatch(text, line.text):
            return why
    return ""

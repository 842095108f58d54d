"""pykcm's list of what kernels say of their own faults, against what they really say."""

from __future__ import annotations

from pathlib import Path

import pytest

from pykcm import _faults

# As kernels of 5.10 to 7.2, and for arm64 and s390x, word them; the first line that tells.
FAULTS = """\
------------[ cut here ]------------
WARNING: CPU: 1 PID: 4711 at net/kcm/kcmsock.c:1784 kcm_exit_net+0x4f/0x60 [kcm]
WARNING: net/kcm/kcmsock.c:1784 at kcm_exit_net+0x4f/0x60 [kcm], CPU#0: kworker/u8:3/47
WARNING: possible circular locking dependency detected
WARNING: possible recursive locking detected
WARNING: possible irq lock inversion dependency detected
WARNING: SOFTIRQ-safe -> SOFTIRQ-unsafe lock order detected
WARNING: inconsistent lock state
WARNING: suspicious RCU usage
WARNING: bad unlock balance detected!
WARNING: held lock freed!
WARNING: lock held when returning to user space!
WARNING: python/4711 still has locks held!
BUG: kernel NULL pointer dereference, address: 0000000000000008
BUG: unable to handle page fault for address: ffffc90000a3c000
BUG: KASAN: slab-use-after-free in kcm_release+0x2b4/0x4a0 [kcm]
BUG: KASAN: use-after-free in psock_now_avail+0x1c/0xd0
BUG: KCSAN: data-race in kcm_write_msgs / requeue_rx_msgs
BUG: KMSAN: uninit-value in __strp_recv+0x31c/0x1020
BUG: KFENCE: use-after-free read in strp_done+0x1f/0x40
BUG: sleeping function called from invalid context at net/core/sock.c:3537
BUG: scheduling while atomic: python/4711/0x00000002
BUG: workqueue leaked atomic, lock or RCU: kworker/0:1[9]
BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 34s!
BUG: spinlock bad magic on CPU#0, python/4711
BUG: Bad page state in process python  pfn:0a3c1
BUG: Bad rss-counter state mm:00000000f7a5c3a1 type:MM_ANONPAGES val:2
BUG: MAX_LOCKDEP_CHAINS too low!
BUG kmalloc-64 (Not tainted): Poison overwritten
BUG kcm_psock_cache (Tainted: G    B   W         ): Objects remaining on __kmem_cache_shutdown()
kernel BUG at net/core/skbuff.c:2086!
watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [python:4711]
watchdog: Watchdog detected hard LOCKUP on cpu 0
NMI watchdog: Watchdog detected hard LOCKUP on cpu 1
Oops: 0002 [#1] PREEMPT SMP NOPTI
Oops: general protection fault, probably for non-canonical address 0xdead000000000122: 0000 [#1]
general protection fault, probably for non-canonical address 0xdead000000000122: 0000 [#1] SMP
general protection fault: 0000 [#1] SMP KASAN
KASAN: null-ptr-deref in range [0x0000000000000000-0x0000000000000007]
stack segment: 0000 [#2] PREEMPT SMP NOPTI
invalid opcode: 0000 [#1] SMP
divide error: 0000 [#1] PREEMPT SMP
PANIC: double fault, error_code: 0x0
Kernel panic - not syncing: Fatal exception in interrupt
Kernel panic - not syncing: stack-protector: Kernel stack is corrupted in: kcm_ioctl+0x5f1/0x600
Internal error: Oops: 0000000096000004 [#1] SMP
Unable to handle kernel NULL pointer dereference at virtual address 0000000000000008
Unable to handle kernel paging request at virtual address dead000000000122
Unable to handle kernel pointer dereference in virtual kernel address space
specification exception: 0006 ilc:2 [#1] SMP
kernel tried to execute NX-protected page - exploit attempt? (uid: 0)
refcount_t: underflow; use-after-free.
refcount_t: addition on 0; use-after-free.
list_add corruption. prev->next should be next (ffff8880), but was dead0100. (prev=ffff8881).
list_add double add: new=ffff888003a1, prev=ffff888003a1, next=ffff888003b2.
list_del corruption, ffff888003a1->next is LIST_POISON1 (dead000000000100)
list_del corruption. prev->next should be ffff888003a1, but was ffff888003b2. (prev=ffff888003c3)
UBSAN: array-index-out-of-bounds in net/kcm/kcmproc.c:121:13
UBSAN: shift-out-of-bounds in net/strparser/strparser.c:210:31
UBSAN: signed-integer-overflow in net/strparser/strparser.c:231:40
kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)
INFO: task kworker/u4:2:31 blocked for more than 120 seconds.
INFO: task python:4711 blocked in I/O wait for more than 60 seconds.
INFO: rcu_sched detected stalls on CPUs/tasks:
INFO: rcu_tasks detected stalls on tasks:
rcu: INFO: rcu_preempt self-detected stall on CPU
rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:
rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 0-.... } 21 jiffies s: 57
rcu: rcu_preempt kthread starved for 5253 jiffies! g-1131 f0x0 RCU_GP_WAIT_FQS(5) ->state=0x402
rcu: rcu_preempt kthread timer wakeup didn't happen for 5249 jiffies! g-1131 f0x0
INFO: trying to register non-static key.
ODEBUG: free active (active state 0) object: 00000000 object type: timer_list hint: strp_msg_timeout
DEBUG_LOCKS_WARN_ON(lock->magic != lock)
unregister_netdevice: waiting for lo to become free. Usage count = 2
ref_tracker: net notrefcnt@ffff888004f2c1a0 has 1/1 users at
IPv4: Attempt to release TCP socket in state 1 00000000a5c3f7a5
IPv4: Attempt to release alive inet socket 00000000a5c3f7a5
huh, entered softirq 3 NET_RX 00000000a5c3f7a5 with preempt_count 00000101, exited with 00000100?
sock_release: fasync list not empty!
usercopy: Kernel memory exposure attempt detected from SLUB object 'kmalloc-64' (offset 60, size 8)!
""".splitlines()

# What a healthy kernel says, here and there in such words.
HARMLESS = """\
Linux version 6.12.117+deb12-amd64 (debian-kernel@lists.debian.org)
Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on, data leaks possible!
MDS: Vulnerable: Clear CPU buffers attempted, no microcode; MDS CPU bug present and SMT on
[Firmware Bug]: TSC doesn't count with P0 frequency!
RAS: Correctable Errors collector initialized.
hrtimer: interrupt took 30809062 ns
clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable
traps: python3[4711] general protection fault ip:55d0 sp:7ffc error:0 in python3.11[55d0+1000]
python3[4711]: segfault at 8 ip 000055d0 sp 00007ffc error 4 in python3.11[55d0+1000]
kcm: loading out-of-tree module taints kernel.
kcm: module verification failed: signature and/or required key missing - tainting kernel
Warning: unable to open an initial console.
rcu: Preemptible hierarchical RCU implementation.
rcu: RCU calculated value of scheduler-enlistment delay is 25 jiffies.
watchdog: Delayed init of the lockup detector failed: -19
NET: Registered PF_KCM protocol family
TCP: request_sock_TCP: Possible SYN flooding on port 127.0.0.1:9. Sending cookies.
FAULT_INJECTION: forcing a failure.
KTAP version 1
DEBUG: this is nothing
python invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE), order=0, oom_score_adj=0
perf: interrupt took too long (2511 > 2500), lowering kernel.perf_event_max_sample_rate to 79500
""".splitlines()

PREFIXES = {
    "bare": "",
    "dmesg": "[   12.345678] ",
    "dmesg with the caller": "[   12.345678][ T4711] ",
    "caller of the kernel's log": "[12.345678] [    C1] ",
    "dmesg --raw": "<4>[   12.345678] ",
    "dmesg --reltime": "[  +0.000012] ",
    "dmesg --ctime": "[Fri Nov  6 08:40:11 2026] ",
    "dmesg --decode": "kern  :warn  : [   12.345678] ",
    "dmesg --decode --ctime": "kern  :err   : [Fri Nov 27 08:40:11 2026] ",
    "dmesg --time-format iso": "2026-11-27T08:40:11,123456+00:00 ",
    "dmesg --time-format iso with the caller": "2026-11-27T08:40:11,123456+00:00 [ T4711] ",
    "journalctl --dmesg": "Nov 27 08:40:11 kcm.example kernel: ",
    "journalctl --output short-iso": "2026-11-27T08:40:11+0000 kcm kernel: ",
    "journalctl --output short-precise": "Nov 27 08:40:11.123456 kcm kernel: ",
    "/dev/kmsg": "4,1234,12345678,-;",
    "/dev/kmsg with the caller": "4,1234,12345678,-,caller=T4711;",
}


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
@pytest.mark.parametrize("message", FAULTS)
def test_a_fault_is_recognised(message: str, prefix: str) -> None:
    assert _faults.message(prefix + message) == message
    assert _faults.faults([prefix + message]) == [prefix + message]


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
@pytest.mark.parametrize("message", HARMLESS)
def test_what_a_healthy_kernel_says_is_none(message: str, prefix: str) -> None:
    assert _faults.faults([prefix + message]) == []


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        (0, 0, []),
        (0, 1 << 9, ["warning (W)"]),
        (1 << 9, 1 << 9, []),
        (1 << 9, 1 << 9 | 1 << 7, ["oops or BUG (D)"]),
        (0, 1 << 4 | 1 << 5 | 1 << 14, list(_faults.new_taints(0, 0x4030))),
        (0, 1 << 12 | 1 << 13 | 1 << 1, []),  # a module of one's own, forced
    ],
)
def test_a_taint_that_is_a_fault(before: int, now: int, new: list[str]) -> None:
    assert _faults.new_taints(before, now) == new


def test_each_taint_that_is_a_fault_has_a_name() -> None:
    assert len(_faults.new_taints(0, -1)) == 5
    assert len(_faults.new_taints(0, 1 << 4 | 1 << 5 | 1 << 14)) == 3


class Kernel:
    """A kernel's log and taint in files of ours."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taint = tmp_path / "tainted"
        self.taint.write_text("512\n")
        monkeypatch.setattr(_faults, "_TAINTED", self.taint)
        self.log = tmp_path / "kmsg"
        self.log.write_text("4,1,1,-;BUG: before\n")
        monkeypatch.setattr(_faults, "_KMSG", self.log)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path, monkeypatch)


def test_what_was_there_before_is_not_told(kernel: Kernel) -> None:
    watch = _faults.Watch()
    assert watch.blind == ""
    assert watch.faults() == []
    watch.close()


def test_each_fault_is_told_once(kernel: Kernel) -> None:
    watch = _faults.Watch()
    with kernel.log.open("a") as log:
        log.write("4,2,1,-;UBSAN: shift-out-of-bounds in a.c:1:2\n SUBSYSTEM=net\n")
    kernel.taint.write_text("544\n")
    assert watch.faults() == [
        "4,2,1,-;UBSAN: shift-out-of-bounds in a.c:1:2",
        "the kernel became tainted: bad page, or memory used wrongly (B)",
    ]
    assert watch.faults() == []
    watch.close()


def test_what_user_space_writes_into_the_log_is_none(kernel: Kernel) -> None:
    """It has another facility than the kernel's, in the bits above the level."""
    watch = _faults.Watch()
    for level in (12, 30, 7):
        with kernel.log.open("a") as log:
            log.write(f"{level},5,1,-;systemd[1]: BUG: {level}\n")
        found = watch.faults()
        assert found == ([f"{level},5,1,-;systemd[1]: BUG: {level}"] if level == 7 else [])
    watch.close()


def test_without_the_log_the_taint_is_seen(kernel: Kernel) -> None:
    kernel.log.unlink()
    watch = _faults.Watch()
    assert "can't be read" in watch.blind
    kernel.taint.write_text("640\n")
    assert watch.faults() == ["the kernel became tainted: oops or BUG (D)"]
    watch.close()
    watch.close()

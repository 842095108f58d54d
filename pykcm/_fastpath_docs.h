/* SPDX-License-Identifier: MIT */
/* The docstrings of _fastpath.c's public methods. */

#define SIGNATURE(text) text "\n--\n\n"

#define SOCKET_RECV_DOC \
	SIGNATURE("recv($self, bufsize=None, flags=0, /, *, timeout=...)") \
	"Receive one whole message.\n\n" \
	"Args:\n" \
	"    bufsize: room for the message in bytes, if it is more than max_message_size; a longer\n" \
	"        message than bufsize is returned whole all the same.\n" \
	"    flags: MSG_PEEK, MSG_DONTWAIT.\n" \
	"    timeout: seconds, None for no limit; by default the socket's own.\n\n" \
	"Raises:\n" \
	"    MessageTruncated: the message was longer than the room.  Its beginning is in the error's\n" \
	"        `message`; its rest is lost.\n" \
	"    BlockingIOError, TimeoutError: no message is there, by flags and timeout.\n" \
	"    ArgumentError: bufsize is negative, or timeout not a number of seconds.\n\n" \
	"An exception that a signal handler raises meanwhile leaves the message for the next call.\n" \
	"Source: kcm_recvmsg, net/kcm/kcmsock.c."

#define SOCKET_RECV_MANY_DOC \
	SIGNATURE("recv_many($self, limit=64, flags=0, *, timeout=...)") \
	"Receive up to `limit` whole messages with one system call: wait for the first, then take\n" \
	"what is there, 64 at most, or so many super messages.\n\n" \
	"Args:\n" \
	"    limit: at least 1.\n" \
	"    flags, timeout: as for `recv`; with MSG_PEEK the first message alone.\n\n" \
	"Raises:\n" \
	"    MessageTruncated: as for `recv`; those that came before it were returned before."

#define SOCKET_SEND_DOC \
	SIGNATURE("send($self, data, flags=0, /, *, timeout=...)") \
	"Send one whole message; returns its length in bytes.\n\n" \
	"The kernel queues the message and hands it to one of the transports; with none attached it\n" \
	"is kept until one is.  `unsent` and `flush` tell when it has reached TCP.\n\n" \
	"Args:\n" \
	"    data: the message, header included, as the framing of the transports has it.\n" \
	"    flags: MSG_DONTWAIT; MSG_BATCH: queue only, the next send without it hands all to TCP;\n" \
	"        MSG_MORE: the message goes on with the next send.\n" \
	"    timeout: seconds to wait for room, None for no limit; by default the socket's own.\n\n" \
	"Raises:\n" \
	"    KCMOSError: EINVAL, the message is empty: the kernel would drop it in silence.\n" \
	"    BlockingIOError, TimeoutError: the queue is full; nothing of the message was queued.\n\n" \
	"Source: kcm_sendmsg, net/kcm/kcmsock.c."

#define SOCKET_SEND_MANY_DOC \
	SIGNATURE("send_many($self, messages, flags=0, *, timeout=...)") \
	"Queue whole messages with one system call for each 64; with a `batch`, for each 64 super\n" \
	"messages of so many messages and 64 KiB at most, each of which goes over one transport.\n\n" \
	"Returns:\n" \
	"    How many were queued: all, unless the queue was full in non-blocking mode or when the\n" \
	"    timeout ended, or an error came after the first; the next call meets that error again.\n" \
	"    If a signal handler's exception ends the call, `sent_many` has the number.\n\n" \
	"Raises:\n" \
	"    TypeError, KCMOSError: a message is not a buffer, or is empty (EINVAL), or a message was\n" \
	"        begun with MSG_MORE (EBUSY); nothing was sent.\n" \
	"    BlockingIOError, TimeoutError: not even the first could be queued."

#define MULTIPLEXOR_RECV_DOC \
	SIGNATURE("recv($self, *, timeout=None)") \
	"Receive one whole message.\n\n" \
	"Args:\n" \
	"    timeout: seconds; None waits as long as it takes, 0 not at all.\n\n" \
	"Raises:\n" \
	"    Disconnected: no transport is left, and all messages were read.\n" \
	"    TimeoutError: no message came in time.\n" \
	"    MessageTruncated: see `KCMSocket.recv`; not with a `Framing`, which has a maximum."

#define MULTIPLEXOR_RECV_MANY_DOC \
	SIGNATURE("recv_many($self, limit=64, *, timeout=None)") \
	"Receive up to `limit` messages: wait for the first, then take what is there, 64 at most, or\n" \
	"with a `batch` so many super messages.\n\n" \
	"Raises as `recv`."

#define MULTIPLEXOR_SEND_DOC \
	SIGNATURE("send($self, data, flags=0, *, timeout=None)") \
	"Send one whole message over one of the transports; returns its length in bytes.\n\n" \
	"Args:\n" \
	"    data: the message, header included.\n" \
	"    flags: as for `KCMSocket.send`.\n" \
	"    timeout: seconds to wait for room in the queue; None for no limit.\n\n" \
	"Raises:\n" \
	"    Disconnected: no transport is attached, and queue_unattached is False.\n" \
	"    TimeoutError: the queue stayed full; nothing of the message was queued."

#define MULTIPLEXOR_SEND_MANY_DOC \
	SIGNATURE("send_many($self, messages, flags=0, *, timeout=None)") \
	"Send whole messages; see `KCMSocket.send_many`.\n\n" \
	"Returns:\n" \
	"    How many were queued: all, unless the timeout or the last transport ended after some."

#define ARECV_DOC \
	SIGNATURE("arecv($self)") \
	"As `recv`, on asyncio or Trio, without a time-out.  Cancelling it loses no message.\n\n" \
	"One task at a time can wait on one object; others use a `clone`."

#define ARECV_MANY_DOC \
	SIGNATURE("arecv_many($self, limit=64)") \
	"As `recv_many`, on asyncio or Trio; cancelling it loses no message."

#define ASEND_DOC \
	SIGNATURE("asend($self, data, flags=0)") \
	"As `send`, on asyncio or Trio; cancelled, either all of the message was queued or nothing."

#define ASEND_MANY_DOC \
	SIGNATURE("asend_many($self, messages, flags=0)") \
	"As `send_many`, on asyncio or Trio; cancelled, `sent_many` has how many were queued."

#define RECV_INTO_DOC \
	SIGNATURE("recv_into($self, buffer, nbytes=0, flags=0)") \
	"Receive one whole message into a buffer; returns its length in bytes.\n\n" \
	"Args:\n" \
	"    buffer: a writable buffer.\n" \
	"    nbytes: how much of it to use; 0 for all.\n" \
	"    flags: as for `recv`.\n\n" \
	"Raises:\n" \
	"    MessageTruncated: the message does not fit; it is whole in the error's `message`."

#define RECVFROM_DOC \
	SIGNATURE("recvfrom($self, bufsize=None, flags=0)") \
	"As `recv`, with None for the address: a message does not tell its transport."

#define RECVFROM_INTO_DOC \
	SIGNATURE("recvfrom_into($self, buffer, nbytes=0, flags=0)") \
	"As `recv_into`, with None for the address."

#define RECVMSG_DOC \
	SIGNATURE("recvmsg($self, bufsize, ancbufsize=0, flags=0)") \
	"Receive one message, cut to bufsize bytes.\n\n" \
	"Returns:\n" \
	"    The data, no ancillary data, msg_flags, and None for the address.  msg_flags has MSG_EOR,\n" \
	"    and MSG_TRUNC if the message was longer; what was cut is lost, as with recvmsg(2)."

#define RECVMSG_INTO_DOC \
	SIGNATURE("recvmsg_into($self, buffers, ancbufsize=0, flags=0)") \
	"As `recvmsg`, into several buffers, filled one after the other."

#define WAIT_DISCONNECTION_DOC \
	SIGNATURE("wait_disconnection($self, timeout=None)") \
	"Wait until a transport has ended, without receiving: for the parent of workers.\n\n" \
	"Returns:\n" \
	"    A `Disconnection`; each end is returned once, by this or by `disconnections`.\n\n" \
	"Raises:\n" \
	"    TimeoutError: none did in time.\n" \
	"    KCMOSError: EBUSY, this object receives messages itself, or has received some that were\n" \
	"        not read; set `socket.recv_disabled`, and receive on clones."

#define AWAIT_DISCONNECTION_DOC \
	SIGNATURE("await_disconnection($self)") \
	"As `wait_disconnection`, on asyncio or Trio."

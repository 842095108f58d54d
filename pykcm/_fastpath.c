// SPDX-License-Identifier: MIT
/*
 * The calls that have to be fast, and whose results no exception may lose.
 *
 * A Port is one KCM descriptor with all that is known of it: messages that were received and not
 * handed out, a message that is half sent, whether one is open.  What the kernel hands over is in
 * the Port before anything else can run: from the system call's return on the GIL is held and no
 * Python code runs until it is.  A message leaves the Port as the last thing that a call does.
 *
 * SocketCalls and MultiplexorCalls are the methods that KCMSocket and Multiplexor inherit; they
 * find their Port as self._port.  Each tries its system call first.  Only when the kernel says
 * EAGAIN does anything else happen: receives wait here by poll(2), and sends and asynchronous calls
 * advance a generator of pykcm._wait, which never holds a message.
 *
 * Every system call is made with MSG_DONTWAIT and without the GIL.  The stable ABI suffices.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "_delineate.h"
#include "_serving.h"

#ifndef MSG_BATCH
#define MSG_BATCH 0x40000
#endif

/* Messages of one system call; its headers lie on the stack. */
#define BATCH 64

/* How many messages of a super message are divided at a time. */
#define DIVIDED 64

/* The longest super message that is sent, and the longest message that is joined to others, in
 * bytes: a copy of a longer one costs more than it saves. */
#define JOINED (1 << 16)
#define WORTH_JOINING 4096

/* From these sizes on, in bytes, a message is received into its bytes object, since a copy costs more:
 * in a batch; and alone, where recvmsg costs more than recv. */
#define LARGE 4096
#define LARGE_ALONE 8192

/* Up to this size, in bytes, Python's own allocator serves an object; above it malloc. */
#define SMALL 400

/* How many messages a watched port lets pass, and how long in seconds, before it looks after the
 * transports without need. */
#define PATIENCE_MESSAGES 512
#define PATIENCE_SECONDS 0.05

/* How many reports of ends are kept, the newest. */
#define MOST_EVENTS 4096

/* How long asynchronous calls that never wait go on before they let other tasks run, in seconds. */
#define TURN 0.002

/* Counted in the child and in the parent of each fork: a Port belongs to the process that made it,
 * and is shared with another once that has forked. */
static unsigned long generation, forks;

static void count_fork(void) { forks++; }
static void count_generation(void) { generation++; }

/* What pykcm._messages gives: what makes the exception for an errno and for a bad argument, what
 * makes bytes of another buffer, and the exceptions for a message that was cut and for the end. */
static PyObject *make_error, *make_argument_error, *make_bytes, *truncated_type, *disconnected_type;

/* The name by which owners have their Port, interned: else each look-up walks through the classes. */
static PyObject *port_name, *value_name;

/* Put a new reference in the place of an old one. */
#define REPLACE(place, object) \
	do { \
		PyObject *old = (PyObject *)(place); \
		(place) = (object); \
		Py_XDECREF(old); \
	} while (0)

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

/* The same to some milliseconds, for less. */
static double about_now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

/* Raise an exception object, whose reference is taken; NULL for one that is raised already. */
static void raise(PyObject *error)
{
	if (error) {
		PyErr_SetObject((PyObject *)Py_TYPE(error), error);
		Py_DECREF(error);
	}
}

/* Raise the exception for an errno. */
static void raise_error(const char *operation, int number)
{
	raise(PyObject_CallFunction(make_error, "si", operation, number));
}

/* ---- What a Port holds ---- */

/*
 * Messages in order; a bytearray stands for a message that was cut: like bytes it is made without
 * the garbage collector, which runs other code.
 */
struct queue {
	PyObject **items;
	size_t size, head, count;
	size_t lent; /* taken out for a try: there is a place for each to come back to */
};

/* The size is a power of two. */
static PyObject *queue_at(struct queue *queue, size_t at)
{
	return queue->items[(queue->head + at) & (queue->size - 1)];
}

static int queue_reserve(struct queue *queue, size_t more)
{
	size_t size = queue->size ? queue->size : BATCH;
	PyObject **items;

	while (size < queue->count + queue->lent + more)
		size *= 2;
	if (size == queue->size)
		return 0;
	items = PyMem_Malloc(size * sizeof(*items));
	if (!items) {
		PyErr_NoMemory();
		return -1;
	}
	for (size_t i = 0; i < queue->count; i++)
		items[i] = queue_at(queue, i);
	PyMem_Free(queue->items);
	queue->items = items;
	queue->size = size;
	queue->head = 0;
	return 0;
}

/* There must be room; takes the reference. */
static void queue_push(struct queue *queue, PyObject *item)
{
	queue->items[(queue->head + queue->count++) & (queue->size - 1)] = item;
}

static PyObject *queue_front(struct queue *queue)
{
	return queue->items[queue->head];
}

static PyObject *queue_pop(struct queue *queue)
{
	PyObject *item = queue_front(queue);

	queue->head = (queue->head + 1) & (queue->size - 1);
	queue->count--;
	return item;
}

/* Take the front out for a try; queue_settle ends it. */
static PyObject *queue_lend(struct queue *queue)
{
	queue->lent++;
	return queue_pop(queue);
}

/* The item that was lent is done with, or else is the front again. */
static void queue_settle(struct queue *queue, PyObject *item, int done)
{
	queue->lent--;
	if (done) {
		Py_DECREF(item);
		return;
	}
	queue->head = (queue->head - 1) & (queue->size - 1);
	queue->items[queue->head] = item;
	queue->count++;
}

static void queue_clear(struct queue *queue)
{
	while (queue->count)
		Py_DECREF(queue_pop(queue));
}

/* Memory that one receive writes into, message i at i * room. */
struct batch {
	struct batch *next;
	char *memory;
	size_t size, room;
	int count, at; /* messages in it, and how many of those were made objects of */
	int parts;     /* the kernel hands out in parts what has no room: MSG_EOR tells a part from the last */
	PyObject *objects[BATCH]; /* the message itself, where it was received into its object */
	struct mmsghdr headers[BATCH]; /* for recvmmsg, the first `prepared` made for this room */
	struct iovec vectors[2 * BATCH];
	int prepared;
};

/* The length of message i, and whether its end was received. */
static size_t batch_length(struct batch *batch, int i)
{
	return batch->headers[i].msg_len;
}

static int batch_ends(struct batch *batch, int i)
{
	return batch->parts ? batch->headers[i].msg_hdr.msg_flags & MSG_EOR :
			      batch_length(batch, i) < batch->room;
}

/* Batches that nobody uses; one for each thread that receives at the same time is enough for all
 * Ports, since a batch is empty again before its call returns. */
static struct batch *spare_batches;

static void batch_free(struct batch *batch)
{
	munmap(batch->memory, batch->size);
	PyMem_Free(batch);
}

/*
 * A batch for up to *count messages, fewer if memory is short.  It is a mapping, of which only the
 * pages that messages reach are ever used: hence no huge pages, which would use 2 MiB at a touch.
 */
static struct batch *batch_new(size_t room, int *count)
{
	struct batch *batch, **link;
	char *memory;

	for (link = &spare_batches; (batch = *link); link = &batch->next)
		if (batch->size / room >= (size_t)*count) {
			*link = batch->next;
			goto found;
		}
	if ((batch = spare_batches)) { /* too small: its memory goes, and more comes in its place */
		spare_batches = batch->next;
		batch_free(batch);
	}
	batch = PyMem_Malloc(sizeof(*batch));
	if (!batch) {
		PyErr_NoMemory();
		return NULL;
	}
	while (*count > 1 && room > SIZE_MAX / 2 / *count)
		*count /= 2; /* of 32 bits */
	for (;;) {
		batch->size = (room * *count + 4095) & ~(size_t)4095;
		memory = mmap(NULL, batch->size, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (memory != MAP_FAILED)
			break;
		if (*count == 1) {
			PyMem_Free(batch);
			PyErr_NoMemory();
			return NULL;
		}
		*count /= 2;
	}
	madvise(memory, batch->size, MADV_NOHUGEPAGE);
	batch->memory = memory;
	batch->room = 0;
	memset(batch->objects, 0, sizeof(batch->objects));
found:
	batch->next = NULL;
	if (batch->room != room) {
		batch->room = room;
		batch->prepared = 0;
	}
	batch->count = batch->at = 0;
	return batch;
}

static void batch_spare(struct batch *batch)
{
	batch->next = spare_batches;
	spare_batches = batch;
}

typedef struct {
	PyObject_HEAD
	int fd, seqpacket, keeps_rest;
	size_t room; /* the longest message, and one more by which a longer one shows */
	unsigned long generation, forks;

	/* received */
	struct queue inbox;
	struct batch *pending; /* of which not all are in the inbox yet: memory was short */
	PyObject *part;        /* the beginning of a message that the kernel hands out in parts */
	PyObject *rule;        /* the program that divides super messages, as bytes; NULL if none come */
	PyObject *super;       /* a super message that came in parts */
	size_t super_at;       /* how much of the one that is being divided is in the inbox */
	int most, each;        /* messages that one may be, and that the last one was */
	size_t last, expected; /* bytes of the last message; and of the next, if they are alike */
	int burst;             /* how many messages the last receive brought */
	PyObject *guard;       /* see take_fetched */
	int ahead;             /* how many messages to receive at once, however few are asked for */
	PyThread_type_lock receiving; /* nobody may overtake what is between the kernel and pending */
	/* messages received; receives begun, and the last of them that found none */
	unsigned long long taken, begun, empty;

	/* being sent */
	PyObject *rest; /* a message of which the kernel took rest_at bytes */
	Py_ssize_t rest_at;
	int rest_flags;
	int open;    /* a message was begun with MSG_MORE */
	int batched; /* messages are held back by MSG_BATCH */
	unsigned long withheld; /* how often sends that hold messages back have begun and ended */
	int shared;  /* another object or process may use the same socket */
	/* Nobody may send between the parts of a SOCK_SEQPACKET message; nor may a batch, or what hands
	 * over what is held back, come between a look at `open` and a send with MSG_MORE. */
	PyThread_type_lock sending;
	Py_ssize_t sent_many; /* messages that the last send_many queued */

	/* of a Port that is watched: its owner looks after transports */
	int watch, told;
	int bound; /* to the process that made it: a Multiplexor's */
	int watched, attached, queueing, over;
	int observed, telling, waiting;
	int holding; /* its owner keeps clones, in which messages wait, as long as the call waits */
	int patience;
	double look_at, turn;
	struct queue events; /* what is reported of transports that have ended */
} Port;

static PyTypeObject *port_type;

static void port_drop_pending(Port *port)
{
	struct batch *batch;

	port->super_at = 0;
	while ((batch = port->pending)) {
		port->pending = batch->next;
		while (batch->at < batch->count)
			Py_CLEAR(batch->objects[batch->at++]);
		batch_spare(batch);
	}
}

/* Another lock in the place of one that a thread may have held which is not there after a fork. */
static void renew(PyThread_type_lock *lock)
{
	PyThread_type_lock other = *lock ? PyThread_allocate_lock() : NULL;

	if (other)
		*lock = other;
}

/* After a fork: others share the socket; and the child has none of its parent's messages, and goes
 * on with none of them. */
static void port_inherit(Port *port)
{
	if (port->forks != forks) {
		port->forks = forks;
		port->shared = 1;
		if (port->generation != generation)
			renew(&port->receiving);
	}
	if (port->generation == generation || port->bound)
		return;
	port->generation = generation;
	renew(&port->sending);
	queue_clear(&port->inbox);
	port->open = port->batched = 0;
	port->told = -1; /* it is the parent's too; the owner makes another */
	port->telling = port->waiting = port->observed = 0;
	Py_CLEAR(port->rest);
	Py_CLEAR(port->part);
	Py_CLEAR(port->super);
	port_drop_pending(port);
}

static void take(PyThread_type_lock lock)
{
	if (!PyThread_acquire_lock(lock, NOWAIT_LOCK)) {
		Py_BEGIN_ALLOW_THREADS
		PyThread_acquire_lock(lock, WAIT_LOCK);
		Py_END_ALLOW_THREADS
	}
}

/* The owner's Port, a new reference. */
static Port *port_of(PyObject *owner)
{
	PyObject *port = PyObject_GetAttr(owner, port_name);

	if (!port)
		return NULL;
	if (Py_TYPE(port) != port_type) {
		Py_DECREF(port);
		PyErr_SetString(PyExc_TypeError, "_port is not a Port");
		return NULL;
	}
	return (Port *)port;
}

/* Whether messages were received that are not in the inbox yet. */
static int port_has_more(Port *port)
{
	return port->pending || port->super;
}

/* Make the descriptor that tells of messages in the Port readable, or not, if anybody looks. */
static void port_tell(Port *port)
{
	int wanted = port->inbox.count || port_has_more(port) || port->over;
	uint64_t value = 1;

	if (port->told < 0 || wanted == port->telling || (!port->observed && !port->waiting))
		return;
	if (wanted ? write(port->told, &value, sizeof(value)) > 0 :
		     read(port->told, &value, sizeof(value)) > 0 || errno == EAGAIN)
		port->telling = wanted;
}

/* ---- Receiving ---- */

/* Message i of a batch, as the inbox has it; NULL with an exception. */
static PyObject *port_message(Port *port, struct batch *batch, int i)
{
	PyObject *item = batch->objects[i], *joined;

	if (item)
		Py_INCREF(item);
	else
		item = PyBytes_FromStringAndSize(batch->memory + i * batch->room,
						 batch_length(batch, i));
	if (item && port->part) {
		joined = PySequence_Concat(port->part, item);
		Py_DECREF(item);
		item = joined;
	}
	if (item && !batch->parts && !batch_ends(batch, i)) {
		joined = PyByteArray_FromObject(item);
		Py_DECREF(item);
		item = joined;
	}
	if (item) /* else the next call takes it from there again */
		Py_CLEAR(batch->objects[i]);
	return item;
}

/*
 * Divide a super message, from super_at on: each of its messages goes to the inbox.  What the rule
 * does not divide, since another program has delineated it, goes there as what was cut does.
 */
static int port_divide(Port *port, const char *data, size_t size)
{
	const struct bpf_insn *rule = (const struct bpf_insn *)PyBytes_AsString(port->rule);
	uint32_t lengths[DIVIDED];
	int each = 0;

	do {
		const char *at = data + port->super_at;
		size_t left = size - port->super_at, used;
		size_t count = pykcm_divide(rule, at, left, lengths, DIVIDED, &used);

		if (queue_reserve(&port->inbox, count + 1) < 0)
			return -1;
		for (size_t i = 0; i < count; i++) {
			PyObject *item = PyBytes_FromStringAndSize(at, lengths[i]);

			if (!item)
				return -1;
			queue_push(&port->inbox, item);
			port->super_at += lengths[i];
			at += lengths[i];
		}
		if (!count) {
			PyObject *item = PyByteArray_FromStringAndSize(at, left);

			if (!item)
				return -1;
			queue_push(&port->inbox, item);
			port->super_at = size;
		}
		each += count;
	} while (port->super_at < size);
	port->super_at = 0;
	port->each = each > 0 ? each : 1;
	return 0;
}

/* Divide a super message that is an object already; one that is a single message stays it. */
static int port_divide_object(Port *port)
{
	const struct bpf_insn *rule = (const struct bpf_insn *)PyBytes_AsString(port->rule);
	const char *data = PyBytes_AsString(port->super);
	size_t size = PyBytes_Size(port->super), used;
	uint32_t length;

	if (!port->super_at && pykcm_divide(rule, data, size, &length, 1, &used) && length == size) {
		if (queue_reserve(&port->inbox, 1) < 0)
			return -1;
		queue_push(&port->inbox, port->super);
		port->super = NULL;
		port->each = 1;
		return 0;
	}
	if (port_divide(port, data, size) < 0)
		return -1;
	Py_CLEAR(port->super);
	return 0;
}

/* Message i of a batch to the inbox, or to the part that it goes on with. */
static int port_convert_one(Port *port, struct batch *batch, int i)
{
	PyObject *item;

	if (port->rule && !port->part && !batch->objects[i] && batch_ends(batch, i))
		return port_divide(port, batch->memory + i * batch->room, batch_length(batch, i));
	if (queue_reserve(&port->inbox, 1) < 0 || !(item = port_message(port, batch, i)))
		return -1;
	if (!batch_ends(batch, i) && batch->parts) {
		REPLACE(port->part, item); /* more of it comes with the next */
		return 0;
	}
	Py_CLEAR(port->part);
	if (port->rule && PyBytes_CheckExact(item))
		port->super = item;
	else
		queue_push(&port->inbox, item);
	return 0;
}

/* Make bytes objects of what was received; the rest stays where it is if memory is short. */
static int port_convert(Port *port)
{
	struct batch *batch;

	while (port_has_more(port)) {
		if (port->super && port_divide_object(port) < 0)
			return -1;
		if (!(batch = port->pending))
			break;
		while (batch->at < batch->count && !port->super) {
			if (port_convert_one(port, batch, batch->at) < 0)
				return -1;
			batch->at++;
		}
		if (batch->at == batch->count) {
			port->pending = batch->next;
			batch_spare(batch);
		}
	}
	return 0;
}

/* Prepare to receive count messages, each into its place in the batch. */
static void batch_prepare(struct batch *batch, int count)
{
	memset(batch->headers, 0, count * sizeof(*batch->headers));
	for (int i = 0; i < count; i++) {
		batch->vectors[2 * i] =
			(struct iovec){ batch->memory + i * batch->room, batch->room };
		batch->headers[i].msg_hdr.msg_iov = batch->vectors + 2 * i;
		batch->headers[i].msg_hdr.msg_iovlen = 1;
	}
	batch->prepared = count;
}

/* Have the first messages be received each straight into an object of the length that is expected,
 * and only what exceeds it into its place. */
static void batch_expect(struct batch *batch, int objects, size_t expected)
{
	batch->prepared = 0;
	for (int i = 0; i < objects; i++) {
		struct iovec *vector = batch->vectors + 2 * i;

		batch->objects[i] = PyBytes_FromStringAndSize(NULL, expected);
		if (!batch->objects[i]) {
			PyErr_Clear(); /* then without */
			return;
		}
		vector[0] = (struct iovec){ PyBytes_AsString(batch->objects[i]), expected };
		vector[1] = (struct iovec){ batch->memory + i * batch->room + expected,
					    batch->room - expected };
		batch->headers[i].msg_hdr.msg_iovlen = 2;
	}
}

/* Keep the objects that messages fill; give up the others, after a copy of what they hold. */
static void batch_settle(struct batch *batch, int objects, int received, size_t expected)
{
	for (int i = 0; i < objects; i++) {
		PyObject *object = batch->objects[i];
		size_t length;

		if (!object)
			return;
		if (i < received) {
			length = batch_length(batch, i);
			if (length == expected)
				continue;
			memcpy(batch->memory + i * batch->room, PyBytes_AsString(object),
			       length < expected ? length : expected);
		}
		batch->objects[i] = NULL;
		Py_DECREF(object);
	}
}

/*
 * One receive of up to count messages, which are then port->pending.  Returns how many, 0 when none
 * is there, -1 with an exception.
 */
static int port_fetch(Port *port, int count, size_t room)
{
	struct batch *batch, **link;
	unsigned long long begun;
	int received, number, objects = 0, fd;
	size_t expected;

	if (count > BATCH)
		count = BATCH;
	take(port->receiving); /* until it is free again no Python code runs */
	if (room < port->room) /* it may have become more while the call waited */
		room = port->room;
	batch = batch_new(room, &count);
	if (!batch) {
		PyThread_release_lock(port->receiving);
		return -1;
	}
	fd = port->fd;
	begun = ++port->begun;
	/* What has to be divided needs no object of its own. */
	expected = port->expected < room && (!port->rule || port->each == 1) ? port->expected : 0;
	if (count == 1 && expected < LARGE_ALONE)
		expected = 0;
	batch->parts = port->keeps_rest && port->seqpacket;
	if (count == 1 && !batch->parts && !expected) {
		ssize_t length;

		Py_BEGIN_ALLOW_THREADS
		length = recv(fd, batch->memory, room, MSG_DONTWAIT);
		number = errno;
		Py_END_ALLOW_THREADS
		received = length < 0 ? -1 : 1;
		batch->headers[0].msg_len = (unsigned int)length;
	} else {
		if (batch->prepared < count)
			batch_prepare(batch, count);
		if (expected) {
			objects = port->burst + 1 < count ? port->burst + 1 : count;
			batch_expect(batch, objects, expected);
		}
		Py_BEGIN_ALLOW_THREADS
		if (count == 1 && !batch->parts) {
			ssize_t length = recvmsg(fd, &batch->headers[0].msg_hdr, MSG_DONTWAIT);

			received = length < 0 ? -1 : 1;
			batch->headers[0].msg_len = (unsigned int)length;
		} else {
			received = recvmmsg(fd, batch->headers, count, MSG_DONTWAIT, NULL);
		}
		number = errno;
		Py_END_ALLOW_THREADS
		batch_settle(batch, objects, received, expected);
	}
	if (received <= 0) {
		batch_spare(batch);
		PyThread_release_lock(port->receiving);
		if (received == 0 || number == EAGAIN || number == EINTR) {
			if (number == EAGAIN)
				port->empty = begun;
			return 0;
		}
		raise_error("receive", number);
		return -1;
	}
	batch->count = received;
	port->taken += received;
	if (received < count)
		port->empty = begun;
	if (count > 1)
		port->burst = received;
	port->expected = batch_length(batch, received - 1) == port->last &&
					 port->last >= LARGE ?
				 port->last :
				 0;
	port->last = batch_length(batch, received - 1);
	for (link = &port->pending; *link; link = &(*link)->next)
		;
	*link = batch;
	PyThread_release_lock(port->receiving);
	return received;
}

/* One receive of up to count messages into the inbox.  Returns as port_fetch. */
static int port_receive(Port *port, int count, size_t room)
{
	int received = port_fetch(port, count, room);

	return received > 0 && port_convert(port) < 0 ? -1 : received;
}

/* ---- Sending ---- */

/* What went wrong in a send.  It is raised when the lock is free again, for making an exception runs
 * Python code: a signal's handler may send. */
struct failure {
	const char *operation; /* NULL while nothing did */
	int number;
};

static int fail(struct failure *failure, const char *operation, int number)
{
	*failure = (struct failure){ operation, number };
	return -1;
}

/* One send.  Returns the bytes that the kernel took, or -1: without a failure when it has no room. */
static ssize_t port_write(Port *port, const char *data, size_t size, int flags,
			  struct failure *failure)
{
	ssize_t sent;
	int number, fd = port->fd;

	if (fd < 0)
		return fail(failure, "send", EBADF);
	Py_BEGIN_ALLOW_THREADS
	sent = send(fd, data, size, flags | MSG_DONTWAIT | MSG_NOSIGNAL);
	number = errno;
	Py_END_ALLOW_THREADS
	if (sent >= 0)
		return sent;
	if (port->open && !port->seqpacket && !port->rest) {
		/* kcm_sendmsg frees a SOCK_DGRAM message that is open when anything fails. */
		port->open = 0;
		return fail(failure, "continue", number);
	}
	return number == EAGAIN || number == EINTR ? -1 : fail(failure, "send", number);
}

/* Send on what the kernel took in part.  Returns 1 when nothing is left of it, 0 when it has no
 * room, -1 with a failure. */
static int port_finish(Port *port, struct failure *failure)
{
	while (port->rest) {
		ssize_t sent = port_write(port, PyBytes_AsString(port->rest) + port->rest_at,
					  PyBytes_Size(port->rest) - port->rest_at,
					  port->rest_flags, failure);

		if (sent < 0)
			return failure->operation ? -1 : 0;
		port->rest_at += sent;
		if (port->rest && port->rest_at >= PyBytes_Size(port->rest))
			Py_CLEAR(port->rest);
	}
	return 1;
}

/* Keep what the kernel did not take: the message is accepted, and each later call goes on with it. */
static void port_keep_rest(Port *port, PyObject *message, ssize_t sent, int flags)
{
	struct failure later = { 0 }; /* the next call meets it again */

	port->rest = Py_NewRef(message);
	port->rest_at = sent;
	port->rest_flags = flags;
	port_finish(port, &later);
}

/* The flags as the kernel is given them. */
static int port_flags(Port *port, int flags)
{
	if (port->seqpacket && !(flags & MSG_MORE))
		flags |= MSG_EOR;
	/* What is held back must be pushed by a message's end, which may be another's message. */
	return port->shared ? flags & ~MSG_BATCH : flags;
}

/* Raise what went wrong, if anything did.  Returns done. */
static int done_or_error(int done, struct failure *failure)
{
	if (done < 0)
		raise_error(failure->operation, failure->number);
	return done;
}

/* After a send: whether messages are held back.  One that holds none back has pushed what was there
 * before it, but not what other threads hold back since `before`. */
static void port_note_batched(Port *port, int holds_back, unsigned long before)
{
	if (holds_back) {
		port->withheld++;
		port->batched = 1;
	} else if (port->withheld == before) {
		port->batched = 0;
	}
}

/* Send one message.  Returns as port_finish. */
static int port_send_locked(Port *port, PyObject *message, int flags, struct failure *failure)
{
	ssize_t size = PyBytes_Size(message), sent;
	unsigned long before;
	int done = port_finish(port, failure);

	if (done <= 0)
		return done;
	if (!size && !(port->open && !(flags & MSG_MORE)))
		return fail(failure, "empty", EINVAL);
	flags = port_flags(port, flags);
	before = port->withheld += !!(flags & MSG_BATCH);
	sent = port_write(port, PyBytes_AsString(message), size, flags, failure);
	if (sent < 0)
		return failure->operation ? -1 : 0;
	port->open = !!(flags & MSG_MORE);
	if (!port->open)
		port_note_batched(port, flags & MSG_BATCH, before);
	if (sent < size)
		port_keep_rest(port, message, sent, flags);
	return 1;
}

/* How many messages the first of a list are: ends says how many each super message ends with. */
static Py_ssize_t messages_until(PyObject *ends, Py_ssize_t at)
{
	return ends && at ? ((const Py_ssize_t *)PyBytes_AsString(ends))[at - 1] : at;
}

/*
 * Join the messages of a list, up to so many, into super messages.  Returns their list, a new
 * reference; *ends says how many messages each of them ends with.
 */
static PyObject *join(PyObject *list, int most, PyObject **ends)
{
	Py_ssize_t count = PyList_Size(list);
	PyObject *joined = PyList_New(0), *whole;

	*ends = PyBytes_FromStringAndSize(NULL, count * sizeof(Py_ssize_t));
	if (!joined || !*ends)
		goto failed;
	for (Py_ssize_t first = 0, next, size, longest; first < count; first = next) {
		size = PyBytes_Size(PyList_GetItem(list, first));
		longest = size > WORTH_JOINING ? size : JOINED;
		for (next = first + 1; next < count && next - first < most; next++) {
			Py_ssize_t more = PyBytes_Size(PyList_GetItem(list, next));

			if (more > WORTH_JOINING || more > longest - size)
				break;
			size += more;
		}
		whole = next == first + 1 ? Py_NewRef(PyList_GetItem(list, first)) :
					    PyBytes_FromStringAndSize(NULL, size);
		if (!whole)
			goto failed;
		if (next > first + 1) {
			char *to = PyBytes_AsString(whole);

			for (Py_ssize_t i = first; i < next; i++) {
				PyObject *message = PyList_GetItem(list, i);

				memcpy(to, PyBytes_AsString(message), PyBytes_Size(message));
				to += PyBytes_Size(message);
			}
		}
		((Py_ssize_t *)PyBytes_AsString(*ends))[PyList_Size(joined)] = next;
		if (PyList_Append(joined, whole) < 0) {
			Py_DECREF(whole);
			goto failed;
		}
		Py_DECREF(whole);
	}
	return joined;
failed:
	Py_XDECREF(joined);
	return NULL;
}

/*
 * Send messages of a list from *at on, up to BATCH, and move *at to the first that was not.
 * Returns as port_finish.
 */
static int port_send_batch_locked(Port *port, PyObject *list, PyObject *ends, Py_ssize_t *at,
				  int flags, struct failure *failure)
{
	struct mmsghdr headers[BATCH];
	struct iovec vectors[BATCH];
	Py_ssize_t left = PyList_Size(list) - *at;
	unsigned long before;
	int count = left < BATCH ? (int)left : BATCH, number, sent, fd;
	int done = port_finish(port, failure);

	if (done <= 0)
		return done;
	if (port->open) /* another thread or task has begun a message meanwhile */
		return fail(failure, "open", EBUSY);
	fd = port->fd; /* now, since others ran while the rest was sent */
	if (fd < 0)
		return fail(failure, "send", EBADF);
	flags = port_flags(port, flags);
	memset(headers, 0, count * sizeof(*headers));
	for (int i = 0; i < count; i++) {
		PyObject *message = PyList_GetItem(list, *at + i);

		vectors[i] = (struct iovec){ PyBytes_AsString(message), PyBytes_Size(message) };
		headers[i].msg_hdr.msg_iov = &vectors[i];
		headers[i].msg_hdr.msg_iovlen = 1;
	}
	before = ++port->withheld;
	Py_BEGIN_ALLOW_THREADS
	/* musl's sendmmsg calls sendmsg for each, and goes on after one that was taken in part. */
	sent = (int)syscall(SYS_sendmmsg, fd, headers, count, flags | MSG_DONTWAIT | MSG_NOSIGNAL);
	number = errno;
	Py_END_ALLOW_THREADS
	if (sent < 0)
		return number == EAGAIN || number == EINTR ? 0 : fail(failure, "send", number);
	/* sendmmsg holds all but the last back, and does not come to it when one fails. */
	port_note_batched(port, flags & MSG_BATCH || sent < count, before);
	*at += sent;
	port->sent_many = messages_until(ends, *at);
	if (sent && headers[sent - 1].msg_len < vectors[sent - 1].iov_len)
		port_keep_rest(port, PyList_GetItem(list, *at - 1), headers[sent - 1].msg_len,
			       flags);
	return 1;
}

static int port_send(Port *port, PyObject *message, int flags)
{
	struct failure failure = { 0 };
	int done, locked = port->seqpacket || flags & MSG_MORE;

	if (locked)
		take(port->sending);
	done = port_send_locked(port, message, flags, &failure);
	if (locked)
		PyThread_release_lock(port->sending);
	return done_or_error(done, &failure);
}

static int port_send_batch(Port *port, PyObject *list, PyObject *ends, Py_ssize_t *at, int flags)
{
	struct failure failure = { 0 };
	int done;

	take(port->sending);
	done = port_send_batch_locked(port, list, ends, at, flags, &failure);
	PyThread_release_lock(port->sending);
	return done_or_error(done, &failure);
}

/* ---- A call, whichever way it waits ---- */

enum kind { EVENT, RECV, RECV_MANY, RECV_THROUGH, SEND, SEND_MANY };

struct call {
	enum kind kind;
	PyObject *owner;
	Port *port;
	int flags;
	Py_ssize_t limit, at; /* of recv_many; of send_many, what is next */
	size_t room;
	PyObject *data;              /* a message, or a list of messages */
	PyObject *ends;              /* of a list of super messages; see messages_until */
	const char *through;         /* RECV_THROUGH: the owner's method that makes the result ... */
	PyObject *args, *kwargs;     /* ... and what it is given after the message */
	PyObject *waiter;            /* a generator that waits, once it is needed */
};

/* Call a method of the owner that returns nothing; -1 with an exception. */
static int owner_does(PyObject *owner, const char *method)
{
	PyObject *result = PyObject_CallMethod(owner, method, NULL);

	Py_XDECREF(result);
	return result ? 0 : -1;
}

/* Let go of what was kept for a call. Before it takes a message: what a signal's handler raises here
 * must find it where the next call does. */
static int let_clones_go(struct call *call)
{
	return call->port->holding ? owner_does(call->owner, "_let_clones_go") : 0;
}

/* A call ends. */
static void call_clear(struct call *call)
{
	if (call->port && call->port->holding) {
		PyObject *type, *value, *traceback;

		PyErr_Fetch(&type, &value, &traceback);
		if (let_clones_go(call) < 0) {
			/* What the call returns, or raises, must not be lost for it; Ctrl-C comes after. */
			if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) {
				PyErr_Clear();
				PyErr_SetInterrupt();
			} else {
				PyErr_WriteUnraisable(call->owner);
			}
		}
		PyErr_Restore(type, value, traceback);
	}
	Py_CLEAR(call->owner);
	Py_CLEAR(call->port);
	Py_CLEAR(call->data);
	Py_CLEAR(call->ends);
	Py_CLEAR(call->args);
	Py_CLEAR(call->kwargs);
	Py_CLEAR(call->waiter);
}

/* Raise the exception that a method of the owner returns; it may be given an object. */
static void owner_raises(PyObject *owner, const char *method, PyObject *argument)
{
	raise(argument ? PyObject_CallMethod(owner, method, "O", argument) :
			 PyObject_CallMethod(owner, method, NULL));
}

/* After other code has run, which may have forked: a child goes on with nothing of its parent's.
 * Returns -1 with an exception where it may not go on. */
static int still_ours(struct call *call)
{
	port_inherit(call->port);
	if (call->port->generation == generation)
		return 0;
	owner_raises(call->owner, "_not_after_fork", NULL);
	return -1;
}

static int check_signals(struct call *call)
{
	return PyErr_CheckSignals() < 0 ? -1 : still_ours(call);
}

/* Have a watched Port's owner look after its transports now and then.  -1 with an exception. */
static int look_now_and_then(struct call *call)
{
	Port *port = call->port;
	struct pollfd watch = { port->watch, POLLIN, 0 };
	double time;

	if (still_ours(call) < 0)
		return -1;
	if (!port->watched)
		return 0;
	time = about_now();
	if (port->patience-- > 0 && time < port->look_at)
		return 0;
	port->patience = PATIENCE_MESSAGES;
	port->look_at = time + PATIENCE_SECONDS;
	if (!poll(&watch, 1, 0))
		return 0;
	return owner_does(call->owner, "_look") < 0 ? -1 : still_ours(call);
}

/* What the owner's method makes of a message; without one it only checks its arguments. */
static PyObject *pass_through(struct call *call, PyObject *message)
{
	PyObject *method = PyObject_GetAttrString(call->owner, call->through), *result = NULL;
	PyObject *first = PyTuple_Pack(1, message), *all = NULL;

	if (method && first && (all = PySequence_Concat(first, call->args)))
		result = PyObject_Call(method, all, call->kwargs);
	Py_XDECREF(method);
	Py_XDECREF(first);
	Py_XDECREF(all);
	return result;
}

/* Raise the exception for a message that was cut. */
static void raise_truncated(struct call *call, PyObject *item)
{
	PyObject *message = PyBytes_FromObject(item);

	if (message) {
		owner_raises(call->owner, "_truncated", message);
		Py_DECREF(message);
	}
}

/* The front of the inbox as a result; it is the front again if there is an exception. */
static PyObject *take_front(struct call *call)
{
	struct queue *inbox = &call->port->inbox;
	PyObject *item, *result = NULL;

	if (call->kind != RECV_THROUGH && PyBytes_CheckExact(queue_front(inbox)))
		return queue_pop(inbox);
	/* Meanwhile other code runs, to which this message must not be there. */
	item = queue_lend(inbox);
	if (PyBytes_CheckExact(item))
		result = pass_through(call, item);
	else
		raise_truncated(call, item);
	queue_settle(inbox, item, result || PyErr_ExceptionMatches(truncated_type));
	return result;
}

/* How many whole messages are at the front of the inbox, up to the call's limit. */
static Py_ssize_t whole_messages(struct call *call)
{
	struct queue *inbox = &call->port->inbox;
	Py_ssize_t count = 0;

	while (count < call->limit && (size_t)count < inbox->count &&
	       PyBytes_CheckExact(queue_at(inbox, count)))
		count++;
	return count;
}

/* As many as there are.  NULL without an exception if other code has taken them. */
static PyObject *take_many(struct call *call)
{
	struct queue *inbox = &call->port->inbox;
	Py_ssize_t count = whole_messages(call);
	PyObject *list;

	if (!count)
		return take_front(call); /* raises */
	list = PyList_New(count); /* the garbage collector may run other code */
	if (list && count > whole_messages(call)) {
		Py_DECREF(list);
		return NULL;
	}
	for (Py_ssize_t i = 0; list && i < count; i++)
		PyList_SetItem(list, i, queue_pop(inbox));
	return list;
}

/* What a call that peeks returns for a message, whose reference is taken; also NULL. */
static PyObject *peeked(struct call *call, PyObject *message)
{
	PyObject *result = NULL;

	if (!message)
		return NULL;
	if (!PyBytes_CheckExact(message))
		raise_truncated(call, message);
	else if (call->kind == RECV_THROUGH)
		result = pass_through(call, message);
	else
		result = call->kind == RECV_MANY ? Py_BuildValue("[O]", message) : Py_NewRef(message);
	Py_DECREF(message);
	return result;
}

/* The next message without taking it; it is nowhere but in the kernel. */
static int peek(struct call *call, PyObject **result)
{
	Port *port = call->port;
	int count = 1, number, fd = port->fd;
	size_t room = call->room > port->room ? call->room : port->room; /* more since it began */
	struct batch *batch = batch_new(room, &count);
	PyObject *message = NULL;
	ssize_t length;

	if (!batch)
		return -1;
	Py_BEGIN_ALLOW_THREADS
	length = recv(fd, batch->memory, room, MSG_DONTWAIT | MSG_PEEK);
	number = errno;
	Py_END_ALLOW_THREADS
	if (length >= 0)
		message = (size_t)length < room ?
				  PyBytes_FromStringAndSize(batch->memory, length) :
				  PyByteArray_FromStringAndSize(batch->memory, length);
	batch_spare(batch);
	if (length < 0 && (number == EAGAIN || number == EINTR))
		return 0;
	if (length < 0)
		raise_error("receive", number);
	*result = peeked(call, message);
	return *result ? 1 : -1;
}

/*
 * What was just fetched as the result at once, without a way through the inbox.  NULL without an
 * exception if it is not so simple: then all of it is still pending.
 */
static PyObject *take_fetched(struct call *call)
{
	Port *port = call->port;
	struct batch *batch;
	int count = port->pending->count;
	PyObject *list = NULL;

	if (port->rule || count > (call->kind == RECV ? 1 : call->kind == RECV_MANY ? call->limit : 0))
		return NULL;
	/* First, since the garbage collector may run other code, which may receive. */
	if (call->kind == RECV_MANY && !(list = PyList_New(count)))
		return NULL;
	batch = port->pending;
	if (!batch || batch->count != count || batch->next || batch->at || batch->parts ||
	    port->inbox.count)
		goto no;
	for (int i = 0; i < count; i++)
		if (!batch_ends(batch, i))
			goto no;
	if (call->kind == RECV) {
		PyObject *message = port_message(port, batch, 0);

		if (message) {
			port->pending = NULL;
			batch_spare(batch);
		}
		return message;
	}
	for (int i = 0; i < count; i++) {
		PyObject *message = port_message(port, batch, i);

		if (!message) { /* back to where it was */
			while (i--)
				batch->objects[i] = Py_NewRef(PyList_GetItem(list, i));
			goto no;
		}
		PyList_SetItem(list, i, message);
	}
	/* While an object that lies above these lives, malloc does not give their memory back to the
	 * system each time that they are freed, to ask for it again the next time. */
	if (port->last > SMALL && port->guard < PyList_GetItem(list, count - 1)) {
		REPLACE(port->guard, PyBytes_FromStringAndSize(NULL, port->last));
		PyErr_Clear();
	}
	port->pending = NULL;
	batch_spare(batch);
	return list;
no:
	Py_XDECREF(list);
	return NULL;
}

static int receive_once(struct call *call, PyObject **result)
{
	Port *port = call->port;
	int count = call->kind != RECV_MANY ? 1 : call->limit < BATCH ? (int)call->limit : BATCH;

	if (look_now_and_then(call) < 0)
		return -1;
	if (port->fd < 0) {
		raise_error("receive", EBADF);
		return -1;
	}
	if (port_has_more(port) && port_convert(port) < 0)
		return -1;
	if (call->flags & MSG_PEEK && !port->inbox.count && !port->part && !port->rule)
		return peek(call, result);
	if (!port->inbox.count) {
		int received;

		if (!port->waiting && count < port->ahead)
			count = port->ahead;
		if (port->rule) /* not many more than are asked for: they die with this process */
			count = count > port->each ? count / port->each : 1;
		received = port_fetch(port, count, call->room);
		if (received <= 0)
			return received;
		/* A signal's handler runs while the message is here, not when it is in nobody's hands. */
		if (check_signals(call) < 0)
			return -1;
		if (port->pending && !port->holding && (*result = take_fetched(call)))
			return 1;
		if (PyErr_Occurred() || port_convert(port) < 0)
			return -1;
		if (!port->inbox.count)
			return 0; /* a part of a message */
	} else if (check_signals(call) < 0) {
		return -1;
	}
	if (let_clones_go(call) < 0)
		return -1;
	if (!port->inbox.count) /* another may have received */
		return 0;
	if (call->flags & MSG_PEEK)
		*result = peeked(call, Py_NewRef(queue_front(&port->inbox)));
	else
		*result = call->kind == RECV_MANY ? take_many(call) : take_front(call);
	return *result ? 1 : PyErr_Occurred() ? -1 : 0;
}

static int attempt_receive(struct call *call, PyObject **result)
{
	int done = receive_once(call, result);

	port_tell(call->port); /* also after an exception, which leaves messages in the Port */
	return done;
}

/* Whether a watched Port has no transport; with an exception that says so, or another. */
static int is_over(struct call *call)
{
	Port *port = call->port;

	if (!port->watched || port->attached)
		return 0;
	if (owner_does(call->owner, "_look") < 0)
		return 1;
	if (port->attached || (call->kind < SEND && port->inbox.count))
		return 0;
	owner_raises(call->owner, "_unattached", NULL);
	return 1;
}

/* The next report of a transport's end. */
static int attempt_event(struct call *call, PyObject **result)
{
	struct queue *events = &call->port->events;

	if (look_now_and_then(call) < 0 || owner_does(call->owner, "_look_for_ends") < 0 ||
	    PyErr_CheckSignals() < 0 || (events->count && let_clones_go(call) < 0))
		return -1;
	if (events->count)
		*result = queue_pop(events);
	return *result != NULL;
}

static int attempt_send(struct call *call, PyObject **result)
{
	Port *port = call->port;
	int done = 1;

	if (look_now_and_then(call) < 0)
		return -1;
	if (!port->queueing && is_over(call))
		done = -1;
	if (call->kind == SEND) {
		/* First, for nothing may fail once the message is sent. */
		if (done > 0 && !(*result = PyLong_FromSsize_t(PyBytes_Size(call->data))))
			return -1;
		if (done > 0)
			done = port_send(port, call->data, call->flags);
		if (done <= 0)
			Py_CLEAR(*result);
	} else {
		while (done > 0 && call->at < PyList_Size(call->data))
			done = port_send_batch(port, call->data, call->ends, &call->at, call->flags);
		/* What stopped it after the first is found again by the next call. */
		if (done < 0 && call->at && PyErr_ExceptionMatches(PyExc_OSError)) {
			PyErr_Clear();
			done = 1;
		}
		if (done > 0)
			*result = PyLong_FromSsize_t(messages_until(call->ends, call->at));
	}
	return done > 0 && !*result ? -1 : done;
}

/* Returns 1 with a result, 0 when the call has to wait, -1 with an exception. */
static int attempt(struct call *call, PyObject **result)
{
	*result = NULL;
	return call->kind == EVENT ? attempt_event(call, result) :
	       call->kind < SEND   ? attempt_receive(call, result) :
				     attempt_send(call, result);
}

/* ---- Waiting in a thread ---- */

/* Seconds.  A signal that comes between the look for signals and poll(2) does not end poll(2): it
 * must not have to wait for a message. */
#define LONGEST_POLL 1

/* Wait until something can be received; 1 then, or when a signal came, 0 at the deadline, -1 with an
 * exception. */
static int wait_to_receive(struct call *call, double deadline)
{
	Port *port = call->port;
	struct pollfd fds[3] = { { port->watch, POLLIN, 0 }, { port->fd, POLLIN, 0 },
				 { port->told, POLLIN, 0 } };
	int only_events = call->kind == EVENT, first = !port->watched;
	double left = deadline - now();
	int ready, number;

	if (PyErr_CheckSignals() < 0)
		return -1;
	port->waiting++;
	port_tell(port);
	Py_BEGIN_ALLOW_THREADS
	ready = poll(fds + first, only_events ? 1 : 3 - first,
		     left < 0 ? 0 : left > LONGEST_POLL ? LONGEST_POLL * 1000 : (int)ceil(left * 1e3));
	number = errno;
	Py_END_ALLOW_THREADS
	port->waiting--;
	if (port->fd < 0) {
		raise_error("receive", EBADF);
		return -1;
	}
	if (ready < 0 && number != EINTR) {
		raise_error("receive", number);
		return -1;
	}
	if (ready < 0 && PyErr_CheckSignals() < 0)
		return -1;
	if (!only_events && ready >= 0 && (ready == 0 || (port->watched && fds[0].revents)) &&
	    owner_does(call->owner, ready ? "_look" : "_idle") < 0)
		return -1;
	/* It is tried once more in any case; what is always readable must not keep it from its end. */
	return now() < deadline;
}

/* Raise what a call that may wait no longer raises; or return what send_many did. */
static PyObject *too_late(struct call *call, int blocking)
{
	if (call->kind == SEND_MANY && call->at)
		return PyLong_FromSsize_t(messages_until(call->ends, call->at));
	if (!blocking)
		raise_error(call->kind >= SEND ? "send" : "receive", EAGAIN);
	else
		PyErr_SetString(PyExc_TimeoutError,
				call->kind == EVENT ? "timed out: no transport ended" :
				call->kind < SEND   ? "timed out: no message came" :
						      "timed out: no transport took the message");
	return NULL;
}

/* A time-out in seconds, INFINITY for None; -1 with an exception. */
static double seconds_of(PyObject *timeout)
{
	double seconds;

	if (timeout == Py_None)
		return INFINITY;
	seconds = PyFloat_AsDouble(timeout);
	if (seconds >= 0)
		return seconds;
	if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_TypeError) &&
	    !PyErr_ExceptionMatches(PyExc_ValueError) && !PyErr_ExceptionMatches(PyExc_OverflowError))
		return -1;
	PyErr_Clear();
	raise(PyObject_CallFunction(make_argument_error, "sO", "timeout", timeout));
	return -1;
}

/* Make a call in a thread.  timeout is NULL for the socket's own. */
static PyObject *drive(struct call *call, PyObject *timeout)
{
	PyObject *result;
	double deadline = -1, seconds = -1;
	int blocking = !(call->flags & MSG_DONTWAIT), waited = 1;

	if (timeout && (seconds = seconds_of(timeout)) < 0)
		return NULL;
	for (;;) {
		int done = attempt(call, &result);

		if (done)
			return done > 0 ? result : NULL;
		if (call->kind != EVENT && call->kind < SEND && is_over(call))
			return NULL;
		if (call->kind < SEND && call->kind != EVENT && call->port->inbox.count)
			continue;
		if (seconds < 0 && blocking) {
			PyObject *own = PyObject_CallMethod(call->owner, "gettimeout", NULL);

			if (!own)
				return NULL;
			seconds = seconds_of(own);
			Py_DECREF(own);
			blocking = seconds > 0;
		}
		if (!waited || !blocking || seconds <= 0)
			return too_late(call, blocking);
		if (deadline < 0)
			deadline = now() + seconds;
		if (call->kind < SEND) {
			waited = wait_to_receive(call, deadline);
			if (waited < 0)
				return NULL;
		} else {
			PyObject *more;

			if (!call->waiter &&
			    !(call->waiter = PyObject_CallMethod(call->owner, "_send_steps", NULL)))
				return NULL;
			more = PyObject_CallMethod(call->owner, "_wait", "Od", call->waiter, deadline);
			if (!more)
				return NULL;
			waited = PyObject_IsTrue(more);
			Py_DECREF(more);
			if (waited < 0)
				return NULL;
		}
	}
}

/* ---- Waiting in a task ---- */

/* An asynchronous call: what `await` gets.  It has no frame, and so no place where a result could
 * be lost between the Port and the caller. */
typedef struct {
	PyObject_HEAD
	struct call call;
	PyObject *inner; /* the coroutine that waits now */
	int begun, running, ended;
	int iterating; /* `async for`, which the end of all transports ends */
} Operation;

static PyTypeObject *operation_type;

/* Whether it can't go on now: it runs, in another thread or below this call.  With an exception. */
static int operation_busy(Operation *self)
{
	if (self->running)
		PyErr_SetString(PyExc_ValueError, "call already executing");
	return self->running;
}

/* Advance.  Returns PYGEN_NEXT with what the event loop is given, PYGEN_RETURN with the result. */
static PySendResult operation_advance(Operation *self, PyObject *value, PyObject **result)
{
	struct call *call = &self->call;
	Port *port = call->port;
	int done;

	*result = NULL;
	if (self->ended) {
		PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited call");
		return PYGEN_ERROR;
	}
	if (!self->begun) {
		double time = about_now();

		self->begun = 1;
		if (time - port->turn > TURN) {
			port->turn = time;
			if (!(self->inner = PyObject_CallMethod(call->owner, "_checkpoint", NULL)))
				goto failed;
		}
	}
	for (;;) {
		if (self->inner) {
			PyObject *given;
			PySendResult status = PyIter_Send(self->inner, value, &given);

			if (status == PYGEN_NEXT) {
				*result = given;
				return PYGEN_NEXT;
			}
			Py_CLEAR(self->inner);
			if (status == PYGEN_ERROR)
				goto failed;
			Py_XDECREF(given);
			port->turn = about_now();
			value = Py_None;
		}
		done = attempt(call, result);
		if (done > 0) {
			self->ended = 1;
			call_clear(call);
			return PYGEN_RETURN;
		}
		if (done < 0)
			goto failed;
		if (call->kind != EVENT && call->kind < SEND && is_over(call))
			goto failed;
		if (call->kind != EVENT && call->kind < SEND && port->inbox.count)
			continue;
		if (!call->waiter &&
		    !(call->waiter = PyObject_CallMethod(
			      call->owner,
			      call->kind >= SEND     ? "_send_steps" :
			      call->kind == EVENT ? "_event_steps" :
						    "_receive_steps",
			      NULL)))
			goto failed;
		if (!(self->inner = PyObject_CallMethod(call->owner, "_await", "O", call->waiter)))
			goto failed;
	}
failed:
	self->ended = 1;
	call_clear(call);
	if (self->iterating && PyErr_ExceptionMatches(disconnected_type)) {
		PyErr_Clear();
		PyErr_SetNone(PyExc_StopAsyncIteration);
	}
	return PYGEN_ERROR;
}

static PySendResult operation_send(PyObject *object, PyObject *value, PyObject **result)
{
	Operation *self = (Operation *)object;
	PySendResult status;

	*result = NULL;
	if (operation_busy(self))
		return PYGEN_ERROR;
	self->running = 1;
	status = operation_advance(self, value, result);
	self->running = 0;
	return status;
}

static PyObject *operation_send_method(PyObject *self, PyObject *value)
{
	/* Made first: what the call then returns must not be lost for want of memory. */
	PyObject *result, *stop = PyObject_CallObject(PyExc_StopIteration, NULL);

	if (!stop)
		return NULL;
	if (operation_send(self, value, &result) != PYGEN_RETURN) {
		Py_DECREF(stop);
		return result;
	}
	if (!PyObject_SetAttr(stop, value_name, result))
		PyErr_SetObject(PyExc_StopIteration, stop);
	Py_DECREF(stop);
	Py_DECREF(result);
	return NULL;
}

static PyObject *operation_next(PyObject *self)
{
	return operation_send_method(self, Py_None);
}

static PyObject *operation_throw(Operation *self, PyObject *args)
{
	PyObject *type, *value = NULL, *traceback = NULL, *method, *result;

	if (!PyArg_ParseTuple(args, "O|OO", &type, &value, &traceback) || operation_busy(self))
		return NULL;
	if (!self->inner || self->ended) {
		self->ended = 1;
		call_clear(&self->call);
		if (PyExceptionInstance_Check(type))
			PyErr_SetObject((PyObject *)Py_TYPE(type), type);
		else
			PyErr_SetObject(type, value);
		return NULL;
	}
	method = PyObject_GetAttrString(self->inner, "throw");
	if (!method)
		return NULL;
	self->running = 1;
	result = PyObject_CallObject(method, args);
	self->running = 0;
	Py_DECREF(method);
	if (result)
		return result;
	Py_CLEAR(self->inner);
	if (PyErr_ExceptionMatches(PyExc_StopIteration)) { /* it did not end the wait */
		PyErr_Clear();
		return operation_next((PyObject *)self);
	}
	self->ended = 1;
	call_clear(&self->call);
	return NULL;
}

static PyObject *operation_close(Operation *self, PyObject *unused)
{
	PyObject *inner = self->inner, *result = Py_NewRef(Py_None);

	if (operation_busy(self)) {
		Py_DECREF(result);
		return NULL;
	}
	self->inner = NULL;
	self->ended = 1;
	if (inner) {
		Py_DECREF(result);
		result = PyObject_CallMethod(inner, "close", NULL);
		Py_DECREF(inner);
	}
	call_clear(&self->call);
	return result;
}

static int operation_traverse(Operation *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(self->call.owner);
	Py_VISIT(self->call.port);
	Py_VISIT(self->call.waiter);
	Py_VISIT(self->call.args);
	Py_VISIT(self->call.kwargs);
	Py_VISIT(self->inner);
	return 0;
}

static int operation_clear(Operation *self)
{
	Py_CLEAR(self->inner);
	call_clear(&self->call);
	return 0;
}

/* As Python does of a coroutine; for a message that was not sent the more. */
static void warn_of_never_awaited(enum kind kind)
{
	PyObject *type, *value, *traceback;

	PyErr_Fetch(&type, &value, &traceback);
	if (PyErr_WarnEx(PyExc_RuntimeWarning,
			 kind < SEND ? "a call that receives was never awaited" :
				       "a send was never awaited: nothing was sent",
			 1) < 0)
		PyErr_WriteUnraisable(NULL);
	PyErr_Restore(type, value, traceback);
}

static void operation_dealloc(Operation *self)
{
	PyTypeObject *type = Py_TYPE(self);

	PyObject_GC_UnTrack(self);
	if (!self->begun && !self->ended)
		warn_of_never_awaited(self->call.kind);
	operation_clear(self);
	PyObject_GC_Del(self);
	Py_DECREF(type);
}

static PyObject *itself(PyObject *self)
{
	return Py_NewRef(self);
}

static PyMethodDef operation_methods[] = {
	{ "send", operation_send_method, METH_O, "Go on, as a coroutine." },
	{ "throw", (PyCFunction)operation_throw, METH_VARARGS, "Raise an exception where it waits." },
	{ "close", (PyCFunction)operation_close, METH_NOARGS, "Give it up." },
	{ NULL, NULL, 0, NULL },
};

static PyType_Slot operation_slots[] = {
	{ Py_tp_doc, "A receive or a send that can be awaited once." },
	{ Py_tp_dealloc, operation_dealloc },
	{ Py_tp_traverse, operation_traverse },
	{ Py_tp_clear, operation_clear },
	{ Py_tp_iter, itself },
	{ Py_tp_iternext, operation_next },
	{ Py_am_await, itself },
	{ Py_am_send, operation_send },
	{ Py_tp_methods, operation_methods },
	{ 0, NULL },
};

static PyType_Spec operation_spec = {
	"pykcm._fastpath.Operation", sizeof(Operation), 0,
	Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, operation_slots,
};

/* Make a call in a task: takes what the call holds. */
static PyObject *operate(struct call *call)
{
	Operation *self = (Operation *)PyType_GenericAlloc(operation_type, 0);

	if (!self) {
		call_clear(call);
		return NULL;
	}
	self->call = *call;
	memset(call, 0, sizeof(*call));
	return (PyObject *)self;
}

/* ---- The methods ---- */

#define FAST PyObject *owner, PyObject *const *given, Py_ssize_t count, PyObject *names

/* Arguments by position and by name into values, which are NULL where nothing is given. */
static int parse(FAST, const char *const *known, int positional, int required, PyObject **values)
{
	Py_ssize_t named = names ? PyTuple_Size(names) : 0;
	int all = 0;

	while (known[all])
		values[all++] = NULL;
	if (count > positional) {
		PyErr_Format(PyExc_TypeError, "takes %d positional arguments at most, not %zd",
			     positional, count);
		return -1;
	}
	for (Py_ssize_t i = 0; i < count; i++)
		values[i] = given[i];
	for (Py_ssize_t i = 0; i < named; i++) {
		PyObject *name = PyTuple_GetItem(names, i);
		int at = 0;

		while (known[at] && PyUnicode_CompareWithASCIIString(name, known[at]))
			at++;
		if (!known[at] || values[at]) {
			PyErr_Format(PyExc_TypeError, "unexpected argument %R", name);
			return -1;
		}
		values[at] = given[count + i];
	}
	for (int i = 0; i < required; i++)
		if (!values[i]) {
			PyErr_Format(PyExc_TypeError, "argument '%s' is missing", known[i]);
			return -1;
		}
	return 0;
}

/* An integer argument, or its default; -1 with an exception. */
static int integer(PyObject *value, Py_ssize_t least, Py_ssize_t *result, const char *name)
{
	Py_ssize_t number;

	if (!value)
		return 0;
	number = PyNumber_AsSsize_t(value, NULL);
	if (number == -1 && PyErr_Occurred())
		return -1;
	if (number < least) {
		raise(PyObject_CallFunction(make_argument_error, "sO", name, value));
		return -1;
	}
	*result = number;
	return 0;
}

static int begin(struct call *call, enum kind kind, PyObject *owner, PyObject *flags)
{
	Py_ssize_t number = 0;

	memset(call, 0, sizeof(*call));
	call->kind = kind;
	if (integer(flags, INT_MIN, &number, "flags") < 0)
		return -1;
	if (number > INT_MAX) {
		raise(PyObject_CallFunction(make_argument_error, "sO", "flags", flags));
		return -1;
	}
	call->flags = (int)number;
	call->port = port_of(owner);
	if (!call->port)
		return -1;
	call->owner = Py_NewRef(owner);
	call->room = call->port->room;
	return 0;
}

static int begin_recv(struct call *call, PyObject *owner, PyObject *bufsize, PyObject *flags)
{
	Py_ssize_t size = 0;

	if (integer(bufsize == Py_None ? NULL : bufsize, 0, &size, "bufsize") < 0 ||
	    begin(call, RECV, owner, flags) < 0)
		return -1;
	if ((size_t)size >= call->room)
		call->room = (size_t)(size < INT_MAX ? size : INT_MAX - 1) + 1;
	return 0;
}

static int begin_recv_many(struct call *call, PyObject *owner, PyObject *limit, PyObject *flags)
{
	Py_ssize_t number = BATCH;

	if (integer(limit, 1, &number, "limit") < 0 || begin(call, RECV_MANY, owner, flags) < 0)
		return -1;
	call->limit = number;
	return 0;
}

/* The most bytes that the kernel takes at once (MAX_RW_COUNT, include/linux/fs.h): it would end the
 * message there. */
#define LONGEST_MESSAGE 0x7ffff000

/* The object itself if it is bytes, else bytes made of it; a new reference. */
static PyObject *bytes_of(PyObject *data)
{
	PyObject *bytes = PyBytes_CheckExact(data) ?
				  Py_NewRef(data) :
				  PyObject_CallFunctionObjArgs(make_bytes, data, NULL);

	if (bytes && PyBytes_Size(bytes) > LONGEST_MESSAGE) {
		Py_CLEAR(bytes);
		raise_error("send", EMSGSIZE);
	}
	return bytes;
}

static int begin_send(struct call *call, PyObject *owner, PyObject *data, PyObject *flags)
{
	if (begin(call, SEND, owner, flags) < 0)
		return -1;
	call->data = bytes_of(data);
	return call->data ? 0 : -1;
}

static int begin_send_many(struct call *call, PyObject *owner, PyObject *messages, PyObject *flags)
{
	PyObject *list;

	if (begin(call, SEND_MANY, owner, flags) < 0)
		return -1;
	call->port->sent_many = 0;
	call->data = list = PySequence_List(messages);
	if (!list)
		return -1;
	for (Py_ssize_t i = 0; i < PyList_Size(list); i++) {
		PyObject *data = PyList_GetItem(list, i);

		if (!PyBytes_CheckExact(data) || PyBytes_Size(data) > LONGEST_MESSAGE) {
			data = bytes_of(data);
			if (!data || PyList_SetItem(list, i, data) < 0)
				return -1;
		}
		if (!PyBytes_Size(data)) {
			raise_error("empty", EINVAL);
			return -1;
		}
	}
	if (call->flags & MSG_MORE) {
		raise_error("more", EINVAL);
		return -1;
	}
	if (call->port->open) {
		raise_error("open", EBUSY);
		return -1;
	}
	if (call->port->most > 1) {
		call->data = join(list, call->port->most, &call->ends);
		Py_DECREF(list);
	}
	return call->data ? 0 : -1;
}

static PyObject *finish(struct call *call, int begun, PyObject *timeout)
{
	PyObject *result = begun < 0 ? NULL : drive(call, timeout);

	call_clear(call);
	return result;
}

static PyObject *finish_later(struct call *call, int begun)
{
	if (begun < 0) {
		call_clear(call);
		return NULL;
	}
	return operate(call);
}

/* An argument; what stands for it where it is left out, or is the `...` that signatures show. */
#define GIVEN(value, otherwise) ((value) && (value) != Py_Ellipsis ? (value) : (otherwise))

#define CALL_METHODS(name, default_timeout) \
	static PyObject *name##_recv_many(FAST) \
	{ \
		static const char *const known[] = { "limit", "flags", "timeout", NULL }; \
		PyObject *values[3]; \
		struct call call = { 0 }; \
\
		if (parse(owner, given, count, names, known, 2, 0, values) < 0) \
			return NULL; \
		return finish(&call, begin_recv_many(&call, owner, values[0], values[1]), \
			      GIVEN(values[2], default_timeout)); \
	} \
	static PyObject *name##_send(FAST) \
	{ \
		static const char *const known[] = { "data", "flags", "timeout", NULL }; \
		PyObject *values[3]; \
		struct call call = { 0 }; \
\
		if (parse(owner, given, count, names, known, 2, 1, values) < 0) \
			return NULL; \
		return finish(&call, begin_send(&call, owner, values[0], values[1]), \
			      GIVEN(values[2], default_timeout)); \
	} \
	static PyObject *name##_send_many(FAST) \
	{ \
		static const char *const known[] = { "messages", "flags", "timeout", NULL }; \
		PyObject *values[3]; \
		struct call call = { 0 }; \
\
		if (parse(owner, given, count, names, known, 2, 1, values) < 0) \
			return NULL; \
		return finish(&call, begin_send_many(&call, owner, values[0], values[1]), \
			      GIVEN(values[2], default_timeout)); \
	}

CALL_METHODS(socket, NULL)
CALL_METHODS(multiplexor, Py_None)

static PyObject *socket_recv(FAST)
{
	static const char *const known[] = { "bufsize", "flags", "timeout", NULL };
	PyObject *values[3];
	struct call call = { 0 };

	if (parse(owner, given, count, names, known, 2, 0, values) < 0)
		return NULL;
	return finish(&call, begin_recv(&call, owner, values[0], values[1]), GIVEN(values[2], NULL));
}

static PyObject *multiplexor_recv(FAST)
{
	static const char *const known[] = { "timeout", NULL };
	PyObject *values[1];
	struct call call = { 0 };

	if (parse(owner, given, count, names, known, 0, 0, values) < 0)
		return NULL;
	return finish(&call, begin_recv(&call, owner, NULL, NULL), GIVEN(values[0], Py_None));
}

static PyObject *both_arecv(FAST)
{
	static const char *const known[] = { NULL };
	struct call call = { 0 };

	if (parse(owner, given, count, names, known, 0, 0, NULL) < 0)
		return NULL;
	return finish_later(&call, begin_recv(&call, owner, NULL, NULL));
}

static PyObject *both_anext(PyObject *owner)
{
	struct call call = { 0 };
	PyObject *operation = finish_later(&call, begin_recv(&call, owner, NULL, NULL));

	if (operation)
		((Operation *)operation)->iterating = 1;
	return operation;
}

static PyObject *multiplexor_next(PyObject *owner)
{
	struct call call = { 0 };
	PyObject *message = finish(&call, begin_recv(&call, owner, NULL, NULL), Py_None);

	if (!message && PyErr_ExceptionMatches(disconnected_type))
		PyErr_Clear();
	return message;
}

static PyObject *multiplexor_wait_disconnection(FAST)
{
	static const char *const known[] = { "timeout", NULL };
	PyObject *values[1];
	struct call call = { 0 };

	if (parse(owner, given, count, names, known, 1, 0, values) < 0)
		return NULL;
	return finish(&call, begin(&call, EVENT, owner, NULL), GIVEN(values[0], Py_None));
}

static PyObject *multiplexor_await_disconnection(FAST)
{
	static const char *const known[] = { NULL };
	struct call call = { 0 };

	if (parse(owner, given, count, names, known, 0, 0, NULL) < 0)
		return NULL;
	return finish_later(&call, begin(&call, EVENT, owner, NULL));
}

static PyObject *both_arecv_many(FAST)
{
	static const char *const known[] = { "limit", NULL };
	PyObject *values[1];
	struct call call = { 0 };

	if (parse(owner, given, count, names, known, 1, 0, values) < 0)
		return NULL;
	return finish_later(&call, begin_recv_many(&call, owner, values[0], NULL));
}

static PyObject *both_asend(FAST)
{
	static const char *const known[] = { "data", "flags", NULL };
	PyObject *values[2];
	struct call call = { 0 };

	if (parse(owner, given, count, names, known, 2, 1, values) < 0)
		return NULL;
	return finish_later(&call, begin_send(&call, owner, values[0], values[1]));
}

static PyObject *both_asend_many(FAST)
{
	static const char *const known[] = { "messages", "flags", NULL };
	PyObject *values[2];
	struct call call = { 0 };

	if (parse(owner, given, count, names, known, 2, 1, values) < 0)
		return NULL;
	return finish_later(&call, begin_send_many(&call, owner, values[0], values[1]));
}

/* The standard library's other receives: a method in Python makes the result of the message, which
 * leaves the Port when that is done. */
static PyObject *receive_through(PyObject *owner, PyObject *args, PyObject *kwargs,
				 const char *through, Py_ssize_t flags_at)
{
	struct call call = { 0 };
	PyObject *flags = NULL;
	int begun;

	if (kwargs)
		flags = PyDict_GetItemString(kwargs, "flags");
	if (!flags && PyTuple_Size(args) > flags_at)
		flags = PyTuple_GetItem(args, flags_at);
	begun = begin(&call, RECV_THROUGH, owner, flags);
	call.through = through;
	call.args = Py_NewRef(args);
	call.kwargs = Py_XNewRef(kwargs);
	if (begun == 0) {
		PyObject *nothing = pass_through(&call, Py_None);

		Py_XDECREF(nothing);
		begun = nothing ? 0 : -1;
	}
	return finish(&call, begun, NULL);
}

#define THROUGH(name, flags_at) \
	static PyObject *socket_##name(PyObject *owner, PyObject *args, PyObject *kwargs) \
	{ \
		return receive_through(owner, args, kwargs, "_" #name, flags_at); \
	}

THROUGH(recv_into, 2)
THROUGH(recvfrom, 1)
THROUGH(recvfrom_into, 2)
THROUGH(recvmsg, 2)
THROUGH(recvmsg_into, 2)

#define FASTCALL(function) (PyCFunction)(void (*)(void))function, METH_FASTCALL | METH_KEYWORDS
#define KEYWORDS(function) (PyCFunction)(void (*)(void))function, METH_VARARGS | METH_KEYWORDS

#include "_fastpath_docs.h"

#define BOTH_METHODS \
	{ "arecv", FASTCALL(both_arecv), ARECV_DOC }, \
	{ "arecv_many", FASTCALL(both_arecv_many), ARECV_MANY_DOC }, \
	{ "asend", FASTCALL(both_asend), ASEND_DOC }, \
	{ "asend_many", FASTCALL(both_asend_many), ASEND_MANY_DOC }, \
	{ NULL, NULL, 0, NULL }

static PyMethodDef socket_methods[] = {
	{ "recv", FASTCALL(socket_recv), SOCKET_RECV_DOC },
	{ "recv_many", FASTCALL(socket_recv_many), SOCKET_RECV_MANY_DOC },
	{ "send", FASTCALL(socket_send), SOCKET_SEND_DOC },
	{ "send_many", FASTCALL(socket_send_many), SOCKET_SEND_MANY_DOC },
	{ "recv_into", KEYWORDS(socket_recv_into), RECV_INTO_DOC },
	{ "recvfrom", KEYWORDS(socket_recvfrom), RECVFROM_DOC },
	{ "recvfrom_into", KEYWORDS(socket_recvfrom_into), RECVFROM_INTO_DOC },
	{ "recvmsg", KEYWORDS(socket_recvmsg), RECVMSG_DOC },
	{ "recvmsg_into", KEYWORDS(socket_recvmsg_into), RECVMSG_INTO_DOC },
	BOTH_METHODS,
};

static PyMethodDef multiplexor_methods[] = {
	{ "recv", FASTCALL(multiplexor_recv), MULTIPLEXOR_RECV_DOC },
	{ "recv_many", FASTCALL(multiplexor_recv_many), MULTIPLEXOR_RECV_MANY_DOC },
	{ "send", FASTCALL(multiplexor_send), MULTIPLEXOR_SEND_DOC },
	{ "send_many", FASTCALL(multiplexor_send_many), MULTIPLEXOR_SEND_MANY_DOC },
	{ "wait_disconnection", FASTCALL(multiplexor_wait_disconnection), WAIT_DISCONNECTION_DOC },
	{ "await_disconnection", FASTCALL(multiplexor_await_disconnection), AWAIT_DISCONNECTION_DOC },
	BOTH_METHODS,
};

static PyType_Slot socket_slots[] = {
	{ Py_tp_methods, socket_methods },
	{ Py_am_aiter, itself },
	{ Py_am_anext, both_anext },
	{ 0, NULL },
};

static PyType_Slot multiplexor_slots[] = {
	{ Py_tp_methods, multiplexor_methods },
	{ Py_tp_iter, itself },
	{ Py_tp_iternext, multiplexor_next },
	{ Py_am_aiter, itself },
	{ Py_am_anext, both_anext },
	{ 0, NULL },
};

static PyType_Spec socket_spec = {
	"pykcm._fastpath.SocketCalls", 0, 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, socket_slots,
};
static PyType_Spec multiplexor_spec = {
	"pykcm._fastpath.MultiplexorCalls", 0, 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
	multiplexor_slots,
};

/* ---- Port, as Python sees it ---- */

static PyObject *port_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *known[] = { "fd", "seqpacket", "room", NULL };
	int fd, seqpacket;
	Py_ssize_t room;
	Port *self;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "ipn", known, &fd, &seqpacket, &room))
		return NULL;
	if (room < 1) {
		PyErr_SetString(PyExc_ValueError, "room must be 1 or more");
		return NULL;
	}
	self = (Port *)PyType_GenericAlloc(type, 0);
	if (!self)
		return NULL;
	self->fd = fd;
	self->seqpacket = seqpacket;
	self->room = room;
	self->generation = generation;
	self->forks = forks;
	self->watch = self->told = -1;
	if (!(self->receiving = PyThread_allocate_lock()) ||
	    !(self->sending = PyThread_allocate_lock())) {
		Py_DECREF(self);
		return PyErr_NoMemory();
	}
	return (PyObject *)self;
}

/* Reports hold the caller's sockets; all else is bytes. */
static int port_traverse(Port *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	for (size_t i = 0; i < self->events.count; i++)
		Py_VISIT(queue_at(&self->events, i));
	return 0;
}

static int port_clear(Port *self)
{
	queue_clear(&self->events);
	return 0;
}

static void port_dealloc(Port *self)
{
	PyTypeObject *type = Py_TYPE(self);

	PyObject_GC_UnTrack(self);
	queue_clear(&self->inbox);
	PyMem_Free(self->inbox.items);
	queue_clear(&self->events);
	PyMem_Free(self->events.items);
	port_drop_pending(self);
	Py_CLEAR(self->part);
	Py_CLEAR(self->super);
	Py_CLEAR(self->rule);
	Py_CLEAR(self->rest);
	Py_CLEAR(self->guard);
	if (self->receiving)
		PyThread_free_lock(self->receiving);
	if (self->sending)
		PyThread_free_lock(self->sending);
	PyObject_GC_Del(self);
	Py_DECREF(type);
}

static PyObject *port_pull(Port *self, PyObject *unused)
{
	int received = port_has_more(self) && port_convert(self) < 0 ?
			       -1 :
			       port_receive(self, BATCH, self->room);

	port_tell(self);
	return received < 0 ? NULL : PyBool_FromLong(received);
}

/* Keep a report for whoever asks; once, however often it is given. */
static PyObject *port_report(Port *self, PyObject *report)
{
	struct queue *events = &self->events;
	PyObject *oldest = NULL;

	for (size_t i = 0; i < events->count; i++)
		if (queue_at(events, i) == report)
			Py_RETURN_NONE;
	if (queue_reserve(events, 1) < 0)
		return NULL;
	if (events->count >= MOST_EVENTS)
		oldest = queue_pop(events);
	queue_push(events, Py_NewRef(report));
	Py_XDECREF(oldest); /* last, since it may run other code */
	Py_RETURN_NONE;
}

/* A Port is an iterator of its reports. */
static PyObject *port_next(Port *self)
{
	return self->events.count ? queue_pop(&self->events) : NULL;
}

static PyObject *port_tell_method(Port *self, PyObject *unused)
{
	port_inherit(self);
	port_tell(self);
	Py_RETURN_NONE;
}

/* Raise what went wrong, if anything did. */
static PyObject *none_or_error(int result)
{
	if (result < 0) {
		raise_error("receive", -result);
		return NULL;
	}
	Py_RETURN_NONE;
}

/* No receive that is under way when this returns has less. */
static PyObject *port_make_room(Port *self, PyObject *value)
{
	Py_ssize_t room = PyNumber_AsSsize_t(value, PyExc_OverflowError);

	if (room == -1 && PyErr_Occurred())
		return NULL;
	port_inherit(self);
	take(self->receiving);
	if (room > 0 && (size_t)room > self->room)
		self->room = room;
	PyThread_release_lock(self->receiving);
	Py_RETURN_NONE;
}

static PyObject *port_disable(Port *self, PyObject *value)
{
	int disabled = PyObject_IsTrue(value), result;

	if (disabled < 0)
		return NULL;
	port_inherit(self);
	take(self->receiving);
	Py_BEGIN_ALLOW_THREADS
	result = pykcm_set_disabled(self->fd, disabled);
	Py_END_ALLOW_THREADS
	PyThread_release_lock(self->receiving);
	return none_or_error(result);
}

/* What waits in the kernel already would be given to others, and comes without. */
static PyObject *port_serve(Port *self, PyObject *unused)
{
	int result = 0;

	port_inherit(self);
	take(self->receiving);
	if (!self->inbox.count && !port_has_more(self)) {
		struct pollfd ready = { self->fd, POLLIN, 0 };

		Py_BEGIN_ALLOW_THREADS
		if (poll(&ready, 1, 0) == 0)
			result = pykcm_serve_again(ready.fd);
		Py_END_ALLOW_THREADS
	}
	PyThread_release_lock(self->receiving);
	return none_or_error(result);
}

/* Go on with a message that the kernel took in part, and hand over what MSG_BATCH holds back. */
static PyObject *port_push(Port *self, PyObject *unused)
{
	struct failure failure = { 0 };
	unsigned long before;
	int done;

	port_inherit(self);
	take(self->sending);
	done = port_finish(self, &failure);
	before = self->withheld;
	if (done > 0 && self->batched && !self->open && !self->shared) {
		if (port_write(self, "", 0, port_flags(self, 0), &failure) < 0 && failure.operation)
			done = -1;
		else
			port_note_batched(self, 0, before); /* pushed also where it is full */
	}
	PyThread_release_lock(self->sending);
	return done_or_error(done, &failure) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *port_held(Port *self, void *unused)
{
	size_t count = self->inbox.count;

	count += self->super != NULL;
	for (struct batch *batch = self->pending; batch; batch = batch->next)
		count += batch->count - batch->at;
	return PyLong_FromSize_t(count);
}

static PyObject *port_rest(Port *self, void *unused)
{
	return PyLong_FromSsize_t(self->rest ? PyBytes_Size(self->rest) - self->rest_at : 0);
}

static PyObject *port_rule(Port *self, void *unused)
{
	return Py_NewRef(self->rule ? self->rule : Py_None);
}

static PyObject *port_inherited(Port *self, void *unused)
{
	return PyBool_FromLong(self->generation != generation);
}

static PyObject *port_forked(Port *self, void *unused)
{
	return PyBool_FromLong(self->forks != forks);
}

/* From now on super messages come, of up to so many messages, and such are sent; or none, if the
 * rule is None. */
static PyObject *port_set_rule(Port *self, PyObject *args)
{
	PyObject *rule;
	int most;

	if (!PyArg_ParseTuple(args, "Oi", &rule, &most))
		return NULL;
	/* What came under the old rule is divided by it. */
	if (port_has_more(self) && port_convert(self) < 0)
		return NULL;
	if (rule == Py_None) {
		Py_CLEAR(self->rule);
		self->most = 0;
		Py_RETURN_NONE;
	}
	if (!PyBytes_CheckExact(rule)) {
		PyErr_SetString(PyExc_TypeError, "a rule is bytes");
		return NULL;
	}
	if (most < 1 || PyBytes_Size(rule) % sizeof(struct bpf_insn) ||
	    pykcm_delineate_check((const struct bpf_insn *)PyBytes_AsString(rule),
				  PyBytes_Size(rule) / sizeof(struct bpf_insn)) < 0) {
		PyErr_SetString(PyExc_ValueError, "not a rule for so many messages");
		return NULL;
	}
	REPLACE(self->rule, Py_NewRef(rule));
	self->most = self->each = most;
	Py_RETURN_NONE;
}

static PyMethodDef port_methods[] = {
	{ "set_rule", (PyCFunction)port_set_rule, METH_VARARGS,
	  "set_rule(rule, most): super messages come, and are divided by the rule." },
	{ "pull", (PyCFunction)port_pull, METH_NOARGS, "Receive into the Port; whether there was a message." },
	{ "report", (PyCFunction)port_report, METH_O, "Keep a report, once." },
	{ "tell", (PyCFunction)port_tell_method, METH_NOARGS, "Set or clear what tells of messages in the Port." },
	{ "make_room", (PyCFunction)port_make_room, METH_O, "Have room for so many bytes, if there is less." },
	{ "disable", (PyCFunction)port_disable, METH_O, "Disable receiving, or enable it." },
	{ "serve", (PyCFunction)port_serve, METH_NOARGS, "Have what waits for a socket given to this one." },
	{ "push", (PyCFunction)port_push, METH_NOARGS, "Hand over what is held back, as far as there is room." },
	{ NULL, NULL, 0, NULL },
};

static PyGetSetDef port_getset[] = {
	{ "held", (getter)port_held, NULL, "messages received and not handed out", NULL },
	{ "rest", (getter)port_rest, NULL, "bytes of a message that the kernel took in part", NULL },
	{ "rule", (getter)port_rule, NULL, "what divides super messages, or None", NULL },
	{ "inherited", (getter)port_inherited, NULL, "whether it was made by another process", NULL },
	{ "forked", (getter)port_forked, NULL, "whether a fork has come since it was made", NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

#define MEMBER(name, type, flags) { #name, type, offsetof(Port, name), flags, NULL }

static PyMemberDef port_members[] = {
	MEMBER(fd, T_INT, 0),
	MEMBER(keeps_rest, T_INT, 0),
	MEMBER(room, T_PYSSIZET, 0),
	MEMBER(ahead, T_INT, 0),
	MEMBER(taken, T_ULONGLONG, READONLY),
	MEMBER(begun, T_ULONGLONG, READONLY),
	MEMBER(empty, T_ULONGLONG, READONLY),
	MEMBER(open, T_INT, READONLY),
	MEMBER(batched, T_INT, READONLY),
	MEMBER(shared, T_INT, 0),
	MEMBER(sent_many, T_PYSSIZET, READONLY),
	MEMBER(most, T_INT, READONLY),
	MEMBER(watch, T_INT, 0),
	MEMBER(told, T_INT, 0),
	MEMBER(bound, T_INT, 0),
	MEMBER(watched, T_INT, 0),
	MEMBER(attached, T_INT, 0),
	MEMBER(queueing, T_INT, 0),
	MEMBER(over, T_INT, 0),
	MEMBER(observed, T_INT, 0),
	MEMBER(holding, T_INT, 0),
	MEMBER(patience, T_INT, 0),
	{ NULL, 0, 0, 0, NULL },
};

static PyType_Slot port_slots[] = {
	{ Py_tp_doc, "One KCM descriptor, and what was received from it and is being sent on it." },
	{ Py_tp_new, port_new },
	{ Py_tp_dealloc, port_dealloc },
	{ Py_tp_traverse, port_traverse },
	{ Py_tp_clear, port_clear },
	{ Py_tp_methods, port_methods },
	{ Py_tp_getset, port_getset },
	{ Py_tp_members, port_members },
	{ Py_tp_iter, itself },
	{ Py_tp_iternext, port_next },
	{ 0, NULL },
};

static PyType_Spec port_spec = {
	"pykcm._fastpath.Port", sizeof(Port), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, port_slots,
};

/* ---- The module ---- */

static PyObject *setup(PyObject *module, PyObject *args)
{
	PyObject *error, *argument, *bytes, *truncated, *disconnected;

	if (!PyArg_ParseTuple(args, "OOOOO", &error, &argument, &bytes, &truncated, &disconnected))
		return NULL;
	REPLACE(make_error, Py_NewRef(error));
	REPLACE(make_argument_error, Py_NewRef(argument));
	REPLACE(make_bytes, Py_NewRef(bytes));
	REPLACE(truncated_type, Py_NewRef(truncated));
	REPLACE(disconnected_type, Py_NewRef(disconnected));
	Py_RETURN_NONE;
}

static PyMethodDef module_methods[] = {
	{ "setup", setup, METH_VARARGS,
	  "setup(make_error, make_argument_error, make_bytes, truncated_type, disconnected_type)" },
	{ NULL, NULL, 0, NULL },
};

/* Add a type; it is made once, since a Port knows its own. */
static int add_type(PyObject *module, const char *name, PyType_Spec *spec, PyTypeObject **type)
{
	if (!*type)
		*type = (PyTypeObject *)PyType_FromSpec(spec);
	return *type ? PyModule_AddObjectRef(module, name, (PyObject *)*type) : -1;
}

static int execute(PyObject *module)
{
	static PyTypeObject *socket_type, *multiplexor_type;
	static int counts;

	/* What setup() sets is of one interpreter; others use the calls in Python. */
	if (PyInterpreterState_GetID(PyInterpreterState_Get()) != 0) {
		PyErr_SetString(PyExc_ImportError, "pykcm._fastpath is for the main interpreter");
		return -1;
	}
	if (add_type(module, "Port", &port_spec, &port_type) < 0 ||
	    add_type(module, "Operation", &operation_spec, &operation_type) < 0 ||
	    add_type(module, "SocketCalls", &socket_spec, &socket_type) < 0 ||
	    add_type(module, "MultiplexorCalls", &multiplexor_spec, &multiplexor_type) < 0)
		return -1;
	if (!(port_name = PyUnicode_InternFromString("_port")) ||
	    !(value_name = PyUnicode_InternFromString("value")))
		return -1;
	if (!counts && pthread_atfork(count_fork, NULL, count_generation)) {
		PyErr_NoMemory();
		return -1;
	}
	counts = 1;
	return 0;
}

/* It does not say Py_MOD_GIL_NOT_USED, and must not: the spare batches, and a Port between two calls
 * on it, are guarded by the GIL alone.  A free-threaded Python turns it on at the import, and warns. */
static PyModuleDef_Slot module_slots[] = {
	{ Py_mod_exec, execute },
	{ 0, NULL },
};

static PyModuleDef module_definition = {
	PyModuleDef_HEAD_INIT, "pykcm._fastpath", NULL, 0, module_methods, module_slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__fastpath(void)
{
	return PyModuleDef_Init(&module_definition);
}

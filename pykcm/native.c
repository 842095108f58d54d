// SPDX-License-Identifier: MIT
/*
 * pykcm's only C: the calls that the standard library cannot make.
 *
 * Every function returns a result that is zero or more, or a negative errno, and leaves errno
 * itself alone.  CFFI releases the GIL around each call.  EINTR is returned, not retried: the
 * caller in Python retries, so that signal handlers run in between (PEP 475).
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/kcm.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/vfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include "_serving.h"

#ifndef AF_KCM
#define AF_KCM 41
#endif
#ifndef SIOCPROTOPRIVATE /* from linux/sockios.h, which not every linux/kcm.h includes */
#define SIOCPROTOPRIVATE 0x89E0
#endif

/* ---- AF_KCM: linux/kcm.h, Documentation/networking/kcm.rst ---- */

/* *done, which may be NULL, is set to 1 before anything else can run: so that an exception in the
 * caller cannot hide that the connection is attached. */
static int pykcm_attach(int kcm_fd, int tcp_fd, int program_fd, int *done)
{
	struct kcm_attach info = { .fd = tcp_fd, .bpf_fd = program_fd };

	if (ioctl(kcm_fd, SIOCKCMATTACH, &info) < 0)
		return -errno;
	if (done)
		*done = 1;
	return 0;
}

/* *attached, which may be NULL, is set to 0 likewise, also when it was not attached. */
static int pykcm_unattach(int kcm_fd, int tcp_fd, int *attached)
{
	struct kcm_unattach info = { .fd = tcp_fd };
	int error = ioctl(kcm_fd, SIOCKCMUNATTACH, &info) < 0 ? -errno : 0;

	if (attached && (!error || error == -ENOENT))
		*attached = 0;
	return error;
}

/*
 * The kernel makes the clone without FD_CLOEXEC and offers no flag for it, so that a fork and
 * exec by another thread between these two calls can still inherit it.
 */
static int pykcm_clone(int kcm_fd)
{
	struct kcm_clone info = { .fd = -1 };

	if (ioctl(kcm_fd, SIOCKCMCLONE, &info) < 0)
		return -errno;
	if (fcntl(info.fd, F_SETFD, FD_CLOEXEC) < 0) {
		int error = errno;

		close(info.fd);
		return -error;
	}
	return info.fd;
}

/* Make fd, which is open and close-on-exec, a clone instead of what it was. */
static int pykcm_clone_onto(int kcm_fd, int fd)
{
	int clone = pykcm_clone(kcm_fd), error;

	if (clone < 0)
		return clone;
	error = dup3(clone, fd, O_CLOEXEC) < 0 ? -errno : 0;
	close(clone);
	return error;
}

/* ---- Any descriptor ---- */

/*
 * A descriptor's number lives in memory that its owner has before there is a descriptor: the call
 * that makes one writes it there, so that no exception can come between.
 */
static void pykcm_close(int *fd)
{
	int number = *fd;

	*fd = -1;
	if (number >= 0)
		close(number);
}

static int own(int *fd, int number)
{
	if (number < 0)
		return -errno;
	*fd = number;
	return 0;
}

static int pykcm_dup(int *fd, int other)
{
	return own(fd, fcntl(other, F_DUPFD_CLOEXEC, 0));
}

static int pykcm_clone_owned(int *fd, int kcm_fd)
{
	int clone = pykcm_clone(kcm_fd);

	if (clone < 0)
		return clone;
	*fd = clone;
	return 0;
}

static int pykcm_eventfd(int *fd)
{
	return own(fd, eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
}

static int pykcm_timerfd(int *fd)
{
	return own(fd, timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
}

/* Have a timer expire in so many nanoseconds, 0 for never. */
static int pykcm_set_timer(int fd, long long nanoseconds)
{
	struct itimerspec time = { .it_value = { nanoseconds / 1000000000, nanoseconds % 1000000000 } };

	return timerfd_settime(fd, 0, &time, NULL) < 0 ? -errno : 0;
}

/* Have an event be readable, or not. */
static int pykcm_set_event(int fd, int readable)
{
	uint64_t value = 1;
	ssize_t done = readable ? write(fd, &value, sizeof(value)) : read(fd, &value, sizeof(value));

	return done < 0 && errno != EAGAIN ? -errno : 0;
}

/* *size is the room in value, and then what was written of it. */
static int pykcm_getsockopt(int fd, int level, int option, void *value, unsigned int *size)
{
	return getsockopt(fd, level, option, value, size) < 0 ? -errno : 0;
}

static int pykcm_setsockopt(int fd, int level, int option, const void *value, unsigned int size)
{
	return setsockopt(fd, level, option, value, size) < 0 ? -errno : 0;
}

/* Bytes in a TCP socket's receive queue (SIOCINQ). */
static int pykcm_unread(int fd)
{
	int count;

	return ioctl(fd, FIONREAD, &count) < 0 ? -errno : count;
}

/*
 * Copy memory that may not be readable, such as a mapping of a file that has become shorter.
 * Returns the bytes copied, fewer than size if it is not, or -ENOSYS where that can't be told.
 */
static ssize_t pykcm_copy(void *to, const void *from, size_t size)
{
	struct iovec local = { to, size }, remote = { (void *)from, size };
	ssize_t copied = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);

	if (copied < 0)
		return errno == EFAULT ? 0 : -ENOSYS;
	return copied;
}

/* Messages of one call, or buffers of one message; the arrays below lie on the stack. */
#define PYKCM_BATCH 64

static int set_vectors(struct iovec *vectors, void *const *buffers, const size_t *lengths,
		       int count)
{
	if (count < 0 || count > PYKCM_BATCH)
		return -EINVAL;
	for (int i = 0; i < count; i++) {
		vectors[i].iov_base = buffers[i];
		vectors[i].iov_len = lengths[i];
	}
	return 0;
}

/* Send one message, or a part of one, gathered from several buffers.  Returns bytes taken. */
static ssize_t pykcm_sendmsg(int fd, void *const *buffers, const size_t *lengths, int count,
			     int flags)
{
	struct iovec vectors[PYKCM_BATCH];
	struct msghdr header = { .msg_iov = vectors, .msg_iovlen = count };
	ssize_t result = set_vectors(vectors, buffers, lengths, count);

	if (result < 0)
		return result;
	result = sendmsg(fd, &header, flags);
	return result < 0 ? -errno : result;
}

/* Receive one message, or a part of one, into several buffers.  Returns bytes received. */
static ssize_t pykcm_recvmsg(int fd, void *const *buffers, const size_t *lengths, int count,
			     int flags, int *message_flags)
{
	struct iovec vectors[PYKCM_BATCH];
	struct msghdr header = { .msg_iov = vectors, .msg_iovlen = count };
	ssize_t result = set_vectors(vectors, buffers, lengths, count);

	if (result < 0)
		return result;
	result = recvmsg(fd, &header, flags);
	if (result < 0)
		return -errno;
	*message_flags = header.msg_flags;
	return result;
}

/*
 * Send up to PYKCM_BATCH whole messages.  Returns how many were queued, which can be fewer than
 * count; an error is returned only if it hit the first.
 */
static int pykcm_sendmmsg(int fd, void *const *messages, const size_t *lengths, int count,
			  int flags)
{
	struct mmsghdr headers[PYKCM_BATCH];
	struct iovec vectors[PYKCM_BATCH];
	int result = set_vectors(vectors, messages, lengths, count);

	if (result < 0)
		return result;
	memset(headers, 0, sizeof(headers));
	for (int i = 0; i < count; i++) {
		headers[i].msg_hdr.msg_iov = &vectors[i];
		headers[i].msg_hdr.msg_iovlen = 1;
	}
	result = (int)syscall(SYS_sendmmsg, fd, headers, count, flags); /* musl's is a loop of sendmsg */
	return result < 0 ? -errno : result;
}

/*
 * Receive up to PYKCM_BATCH messages, message i into buffer + i * room.  Returns how many, with
 * the length and msg_flags of each; an error is returned only if it hit the first.
 */
static int pykcm_recvmmsg(int fd, char *buffer, size_t size, size_t room, int count, int flags,
			  unsigned int *lengths, int *message_flags)
{
	struct mmsghdr headers[PYKCM_BATCH];
	struct iovec vectors[PYKCM_BATCH];
	int received;

	if (count < 1 || count > PYKCM_BATCH || room == 0 || size / room < (size_t)count)
		return -EINVAL;
	memset(headers, 0, sizeof(headers));
	for (int i = 0; i < count; i++) {
		vectors[i].iov_base = buffer + i * room;
		vectors[i].iov_len = room;
		headers[i].msg_hdr.msg_iov = &vectors[i];
		headers[i].msg_hdr.msg_iovlen = 1;
	}
	received = recvmmsg(fd, headers, count, flags, NULL);
	if (received < 0)
		return -errno;
	for (int i = 0; i < received; i++) {
		lengths[i] = headers[i].msg_len;
		message_flags[i] = headers[i].msg_hdr.msg_flags;
	}
	return received;
}

/* ---- bpf(2): linux/bpf.h ---- */

/* Linux 6.9 added tokens; these are its numbers, for headers that are older. */
#define TOKEN_CREATE 36		  /* BPF_TOKEN_CREATE */
#define TOKEN_FLAG (1U << 16)	  /* BPF_F_TOKEN_FD */
#define TOKEN_IN_BTF_LOAD 36	  /* offsetof btf_token_fd; btf_flags is the word before */
#define TOKEN_IN_PROG_LOAD 144	  /* offsetof prog_token_fd */

union attributes {
	union bpf_attr attr;
	uint32_t words[TOKEN_IN_PROG_LOAD / 4 + 2];
};

static int bpf_call_of(int command, void *attr, size_t size)
{
	long result = syscall(__NR_bpf, command, attr, size);

	return result < 0 ? -errno : (int)result;
}

static int bpf_call(int command, union bpf_attr *attr)
{
	return bpf_call_of(command, attr, sizeof(*attr));
}

/* A token of the BPF file system that is mounted at a path: its descriptor. */
static int token_of(const char *path)
{
	struct { uint32_t flags, bpffs_fd; } create = { 0, 0 };
	int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), token;

	if (directory < 0)
		return -errno;
	create.bpffs_fd = directory;
	token = bpf_call_of(TOKEN_CREATE, &create, sizeof(create));
	close(directory);
	return token;
}

/* Load a program of count instructions of 8 bytes; log may be NULL with log_size 0, and so may btf:
 * the types of the program's functions, with an array of struct bpf_func_info that says where each
 * begins.  The returned descriptor is close-on-exec: the kernel makes every BPF descriptor so. */
static int load(unsigned int type, const void *instructions, size_t count, const char *license,
		const char *name, char *log, size_t log_size, unsigned int log_level,
		const void *btf, size_t btf_size, const void *functions, size_t function_count,
		int token)
{
	union attributes all;
	union bpf_attr *attr = &all.attr;
	size_t name_length = strlen(name), size = token < 0 ? sizeof(*attr) : sizeof(all);
	int btf_fd = -1, result;

	if (count > UINT32_MAX || log_size > UINT32_MAX || btf_size > UINT32_MAX ||
	    function_count > count || name_length >= sizeof(attr->prog_name))
		return -EINVAL;
	if (btf_size) {
		memset(&all, 0, sizeof(all));
		attr->btf = (uintptr_t)btf;
		attr->btf_size = btf_size;
		if (token >= 0) {
			all.words[TOKEN_IN_BTF_LOAD / 4 - 1] = TOKEN_FLAG;
			all.words[TOKEN_IN_BTF_LOAD / 4] = token;
		}
		btf_fd = bpf_call_of(BPF_BTF_LOAD, &all, size);
		if (btf_fd < 0)
			return btf_fd;
	}
	memset(&all, 0, sizeof(all));
	attr->prog_type = type;
	attr->insns = (uintptr_t)instructions;
	attr->insn_cnt = count;
	attr->license = (uintptr_t)license;
	attr->log_buf = (uintptr_t)log;
	attr->log_size = log_size;
	attr->log_level = log_level;
	memcpy(attr->prog_name, name, name_length);
	if (btf_size) {
		attr->prog_btf_fd = btf_fd;
		attr->func_info = (uintptr_t)functions;
		attr->func_info_rec_size = sizeof(struct bpf_func_info);
		attr->func_info_cnt = function_count;
	}
	if (token >= 0) {
		attr->prog_flags = TOKEN_FLAG;
		all.words[TOKEN_IN_PROG_LOAD / 4] = token;
	}
	result = bpf_call_of(BPF_PROG_LOAD, &all, size);
	if (btf_size)
		close(btf_fd); /* the program holds on to its BTF */
	return result;
}

/* What a token allows, as Linux 6.17 and later tell: linux/bpf.h, struct bpf_token_info. */
static void ask_token(int token, uint64_t *told)
{
	struct { uint64_t commands, maps, programs, attachments; } info;
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	memset(&info, 0, sizeof(info));
	attr.info.bpf_fd = token;
	attr.info.info_len = sizeof(info);
	attr.info.info = (uintptr_t)&info;
	if (bpf_call(BPF_OBJ_GET_INFO_BY_FD, &attr))
		return;
	told[1] = 1;
	told[2] = info.commands;
	told[3] = info.programs;
	told[4] = info.attachments;
}

/* The same with a token, which lives no longer, of the BPF file system mounted at token_path; without
 * one if that is NULL.  Then told[0] is the errno for which there is no token, or 0; told[1] whether
 * the kernel tells what it allows; told[2] to told[4] that: masks of commands, types of programs and
 * types of attachments. */
static int pykcm_bpf_load(unsigned int type, const void *instructions, size_t count,
			  const char *license, const char *name, char *log, size_t log_size,
			  unsigned int log_level, const void *btf, size_t btf_size,
			  const void *functions, size_t function_count, const char *token_path,
			  uint64_t *told)
{
	int token = token_path ? token_of(token_path) : -1, result;

	if (token_path && token < 0) {
		told[0] = -token;
		return token;
	}
	result = load(type, instructions, count, license, name, log, log_size, log_level, btf,
		      btf_size, functions, function_count, token);
	if (token >= 0) {
		ask_token(token, told);
		close(token);
	}
	return result;
}

/* Run a program on data; *result and *duration (mean, in ns) are set on success. */
static int pykcm_bpf_run(int fd, const void *data, size_t size, unsigned int repeat,
			 uint32_t *result, uint32_t *duration)
{
	union bpf_attr attr;
	int error;

	if (size > UINT32_MAX)
		return -EINVAL;
	memset(&attr, 0, sizeof(attr));
	attr.test.prog_fd = fd;
	attr.test.data_in = (uintptr_t)data;
	attr.test.data_size_in = size;
	attr.test.repeat = repeat;
	error = bpf_call(BPF_PROG_TEST_RUN, &attr);
	if (error == 0) {
		*result = attr.test.retval;
		*duration = attr.test.duration;
	}
	return error;
}

/* The descriptor, close-on-exec, of the program with an id. */
static int pykcm_bpf_by_id(uint32_t id)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.prog_id = id;
	return bpf_call(BPF_PROG_GET_FD_BY_ID, &attr);
}

/* *next is the first program's id after this one; -ENOENT if there is none. */
static int pykcm_bpf_next_id(uint32_t id, uint32_t *next)
{
	union bpf_attr attr;
	int error;

	memset(&attr, 0, sizeof(attr));
	attr.start_id = id;
	error = bpf_call(BPF_PROG_GET_NEXT_ID, &attr);
	if (error == 0)
		*next = attr.next_id;
	return error;
}

/* struct bpf_prog_info as of Linux 5.16, for headers that are older, as manylinux_2_28's may be.  A
 * kernel that knows less leaves the rest as it is; one that knows more fills what there is.
 */
struct pykcm_program_info {
	uint32_t type;
	uint32_t id;
	uint8_t tag[8];
	uint32_t jited_prog_len;
	uint32_t xlated_prog_len;
	uint64_t jited_prog_insns;
	uint64_t xlated_prog_insns;
	uint64_t load_time;
	uint32_t created_by_uid;
	uint32_t nr_map_ids;
	uint64_t map_ids;
	char name[16];
	uint32_t ifindex;
	uint32_t gpl_compatible; /* a bit, the lowest */
	uint64_t netns_dev;
	uint64_t netns_ino;
	uint32_t nr_jited_ksyms;
	uint32_t nr_jited_func_lens;
	uint64_t jited_ksyms;
	uint64_t jited_func_lens;
	uint32_t btf_id;
	uint32_t func_info_rec_size;
	uint64_t func_info;
	uint32_t nr_func_info;
	uint32_t nr_line_info;
	uint64_t line_info;
	uint64_t jited_line_info;
	uint32_t nr_jited_line_info;
	uint32_t line_info_rec_size;
	uint32_t jited_line_info_rec_size;
	uint32_t nr_prog_tags;
	uint64_t prog_tags;
	uint64_t run_time_ns;
	uint64_t run_cnt;
	uint64_t recursion_misses;
	uint32_t verified_insns;
	uint32_t reserved; /* attach_btf_obj_id */
};

/* Fill info.  The caller may set its xlated and jited pointers and lengths beforehand. */
static int pykcm_bpf_info(int fd, struct pykcm_program_info *info)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.info.bpf_fd = fd;
	attr.info.info_len = sizeof(*info);
	attr.info.info = (uintptr_t)info;
	return bpf_call(BPF_OBJ_GET_INFO_BY_FD, &attr);
}

static int pykcm_bpf_pin(int fd, const char *path)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.bpf_fd = fd;
	attr.pathname = (uintptr_t)path;
	return bpf_call(BPF_OBJ_PIN, &attr);
}

/* Whether a path lies in a BPF file system. */
static int pykcm_is_bpf_file_system(const char *path)
{
	struct statfs found;

	if (statfs(path, &found) < 0)
		return -errno;
	return (unsigned long)found.f_type == 0xcafe4a11; /* BPF_FS_MAGIC, linux/magic.h */
}

static int pykcm_bpf_get(const char *path)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.pathname = (uintptr_t)path;
	return bpf_call(BPF_OBJ_GET, &attr);
}

/* The helper functions that these headers know, by number: the kernel's own list. */
#define HELPER_NAME(name) [BPF_FUNC_##name] = #name
static const char *const helper_names[] = { __BPF_FUNC_MAPPER(HELPER_NAME) };

static const char *pykcm_bpf_helper_name(unsigned int number)
{
	return number < sizeof(helper_names) / sizeof(*helper_names) ? helper_names[number] : NULL;
}

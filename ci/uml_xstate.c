/* Preloaded into User-Mode Linux, to run it on CPUs newer than the kernel inside.
 *
 * UML keeps its processes' floating-point registers in a buffer of a fixed size (2,696 bytes, that
 * of AVX-512). A host whose CPU has more state (11,008 bytes with AMX) takes nothing but a whole
 * state from PTRACE_SETREGSET and fails with EFAULT. So each transfer is widened here: what UML does
 * not know of stays as it is in the process.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

long ptrace(enum __ptrace_request request, ...)
{
	static long (*next)(enum __ptrace_request, ...);
	static char state[1 << 16];
	va_list arguments;
	pid_t pid;
	void *address;
	struct iovec *theirs, whole = { state, sizeof(state) };
	size_t known;

	va_start(arguments, request);
	pid = va_arg(arguments, pid_t);
	address = va_arg(arguments, void *);
	theirs = va_arg(arguments, struct iovec *);
	va_end(arguments);

	if (!next)
		*(void **)&next = dlsym(RTLD_NEXT, "ptrace");
	if ((request != PTRACE_GETREGSET && request != PTRACE_SETREGSET) ||
	    address != (void *)NT_X86_XSTATE)
		return next(request, pid, address, theirs);

	if (next(PTRACE_GETREGSET, pid, address, &whole) < 0)
		return -1;
	known = theirs->iov_len < whole.iov_len ? theirs->iov_len : whole.iov_len;
	if (request == PTRACE_GETREGSET) {
		memcpy(theirs->iov_base, state, known);
		theirs->iov_len = known;
		return 0;
	}
	memcpy(state, theirs->iov_base, known);
	return next(PTRACE_SETREGSET, pid, address, &whole);
}

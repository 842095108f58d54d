// SPDX-License-Identifier: MIT
/* What _fastpath.c and native.c both do to a KCM socket. */

#ifndef PYKCM_SERVING_H
#define PYKCM_SERVING_H

#include <errno.h>
#include <linux/kcm.h>
#include <sys/socket.h>

#ifndef SOL_KCM
#define SOL_KCM 281
#endif

/* Before 6.1 a receive and the giving away of what is queued must not meet (kcm_recvmsg and
 * requeue_rx_msgs in net/kcm/kcmsock.c): messages are lost. So these are called where none receives. */

/* Enable or disable receiving. */
static int pykcm_set_disabled(int fd, int disabled)
{
	return setsockopt(fd, SOL_KCM, KCM_RECV_DISABLE, &disabled, sizeof(disabled)) < 0 ? -errno : 0;
}

/*
 * Put a KCM socket on the list of those that may be given messages, if it is enabled. When messages
 * of a socket that is closed are given to others, Linux takes one that has no room off that list,
 * and does not look whether it was emptied just then (requeue_rx_msgs): such a socket is passed by
 * for ever. To enable receiving puts it back (kcm_recv_enable). In one call, so that no signal's
 * handler finds it disabled.
 */
static int pykcm_serve_again(int fd)
{
	int disabled = 0, result, after;
	socklen_t size = sizeof(disabled);

	if (getsockopt(fd, SOL_KCM, KCM_RECV_DISABLE, &disabled, &size) < 0)
		return -errno;
	if (disabled)
		return 0;
	result = pykcm_set_disabled(fd, 1);
	after = pykcm_set_disabled(fd, 0);
	return after < 0 ? after : result;
}

#endif

/* Glue to libuv, for programs with an event loop. Callers are on the loop's thread. */
#pragma once

#include <uv.h>

#include "base/error.h"

/* System calls (sys/syscall.h) of a thread that runs a loop of libuv's with sockets and timers. */
#define LOOP_SYSCALLS                                                                   \
	SYS_epoll_wait, SYS_epoll_ctl, SYS_read, SYS_write, SYS_sendmsg, SYS_recvmsg,   \
	SYS_accept4, SYS_close, SYS_fcntl, SYS_futex

/* libuv's errors are negative errnos on Linux but for a few of its own; this maps those to -EIO. */
int loop_error(int uv_code);

/*
 * Calls @cb(@arg) once when @pidfd's process has ended. The caller still reaps. Owns @pidfd
 * from success on.
 */
struct loop_pidfd;
__must_check int loop_pidfd_watch(uv_loop_t *loop, int pidfd, void (*cb)(void *arg), void *arg,
				  struct loop_pidfd **ret_watch);
void loop_pidfd_cancel(struct loop_pidfd *w); /* takes NULL; frees, closes, no callback follows */

/* A one-shot timer on the heap. It frees itself when it has fired or was cancelled. */
struct loop_timer;
__must_check int loop_timer_start(uv_loop_t *loop, uint64_t timeout_ms, void (*cb)(void *arg),
				  void *arg, struct loop_timer **ret_timer);
void loop_timer_cancel(struct loop_timer *t); /* takes NULL; not after it has fired */

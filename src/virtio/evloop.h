/*
 * The event loop of a device thread: epoll, timers, and calls posted from other threads. Everything
 * but evloop_call() and evloop_quit() is for the loop's own thread.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>

#define EVLOOP_BATCH 64

struct evsource {
	int fd; /* -1 while not registered */
	void (*cb)(struct evsource *src, uint32_t events);
};

struct evtimer {
	uint64_t deadline_ns; /* 0: not armed */
	void (*cb)(struct evtimer *timer);
	struct evtimer *next;
};

struct evcall;

/* System calls (sys/syscall.h) of threads that run a loop or post calls to one. */
#define EVLOOP_SYSCALLS                                                                 \
	SYS_epoll_wait, SYS_read, SYS_write, SYS_futex, SYS_epoll_ctl,                  \
	SYS_epoll_create1, SYS_eventfd2, SYS_close

struct evloop {
	int epfd;
	struct evsource wake;
	struct epoll_event batch[EVLOOP_BATCH];
	int n_batch;
	int next_batch;
	struct evtimer *timers;
	bool quit;             /* under lock */
	bool running;          /* under lock */
	unsigned held;         /* under lock */
	struct evcall *calls;  /* under lock */
	pthread_mutex_t lock;
	pthread_cond_t done;
};

int evloop_init(struct evloop *loop);
void evloop_fini(struct evloop *loop);

/* @events as for epoll_ctl(). The source must stay in place until evloop_del(). */
int evloop_add(struct evloop *loop, struct evsource *src, int fd, uint32_t events,
	       void (*cb)(struct evsource *, uint32_t));
int evloop_mod(struct evloop *loop, struct evsource *src, uint32_t events);
/* Safe inside any callback, also for sources whose events are still waiting in this round. */
void evloop_del(struct evloop *loop, struct evsource *src);

uint64_t evloop_now_ns(void);
void evloop_arm(struct evloop *loop, struct evtimer *timer, uint64_t delay_ns,
		void (*cb)(struct evtimer *));
void evloop_disarm(struct evloop *loop, struct evtimer *timer);

/* Runs until evloop_quit(). */
void evloop_run(struct evloop *loop);
/* Handles what is ready, waiting at most @timeout_ms; for tests. */
void evloop_step(struct evloop *loop, int timeout_ms);

/*
 * Runs @fn in the loop's thread and waits for its result; in the caller's thread if the loop is not
 * running. Not from inside the loop.
 */
int evloop_call(struct evloop *loop, int (*fn)(void *), void *arg);
/*
 * Between the two the loop does nothing but evloop_call()s and its end: when evloop_hold() returns,
 * no callback runs, and none starts. From any thread but the loop's; may be nested.
 */
void evloop_hold(struct evloop *loop);
void evloop_release(struct evloop *loop);
void evloop_quit(struct evloop *loop);

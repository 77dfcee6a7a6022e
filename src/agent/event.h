/*
 * The agent's event loop: epoll, level-triggered, one thread, plus timers kept in a short
 * sorted list. Watches and timers are embedded in the caller's structs; nothing is allocated.
 *
 * A callback may remove any watch, its own included: events of the current batch that belong
 * to a removed watch are dropped.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct ev_watch {
	int fd;                /* not owned */
	bool on;               /* a zeroed watch is not watching */
	uint32_t events;
	void (*cb)(struct ev_watch *w, uint32_t events);
	void *data;
};

struct ev_timer {
	struct ev_timer *next;
	uint64_t at_ns;        /* CLOCK_MONOTONIC; 0 = not armed */
	void (*cb)(struct ev_timer *t);
	void *data;
};

int ev_init(void);
uint64_t ev_now_ns(void);

/* Starts to watch @fd. Returns 0 or a negative errno. */
int ev_add(struct ev_watch *w, int fd, uint32_t events,
	   void (*cb)(struct ev_watch *w, uint32_t events), void *data);
/* Changes the set of events; no system call if it is the same. */
void ev_set(struct ev_watch *w, uint32_t events);
/* Stops watching; does not close. To be called before the fd is closed. */
void ev_del(struct ev_watch *w);

void ev_timer_start(struct ev_timer *t, uint64_t delay_ns, void (*cb)(struct ev_timer *t),
		    void *data);
void ev_timer_stop(struct ev_timer *t);

/* Runs until ev_stop() is called. Returns the code given there, or a negative errno. */
int ev_run(void);
void ev_stop(int code);

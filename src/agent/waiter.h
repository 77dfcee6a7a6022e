/* Calls that are answered later. One that is cancelled meanwhile takes itself off its list. */
#pragma once

#include "base/list.h"
#include "ttrpc/ttrpc.h"

struct waiter {
	struct list node;
	struct ttrpc_call *call;
	uint8_t *data;          /* WriteStdin: what is left to write */
	size_t off, len;        /* ReadStdout: len is the most to read */
};

/* Appends @call to @list. -ENOMEM: the call has been failed. */
int waiter_add(struct list *list, struct ttrpc_call *call, struct waiter **ret_waiter);
/* Takes it off its list, frees it and gives its call, which the caller ends. */
struct ttrpc_call *waiter_take(struct waiter *w);
/* Fails all calls of the list. */
void waiter_fail_all(struct list *list, int code, const char *why);

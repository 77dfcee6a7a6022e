#include "agent/waiter.h"

#include <stdlib.h>

static void on_cancel(void *arg, struct ttrpc_call *call)
{
	(void)call;
	ttrpc_call_fail(waiter_take(arg), TTRPC_CANCELLED, "cancelled");
}

int waiter_add(struct list *list, struct ttrpc_call *call, struct waiter **ret_waiter)
{
	struct waiter *w = calloc(1, sizeof(*w));

	if (!w) {
		ttrpc_call_fail(call, TTRPC_RESOURCE_EXHAUSTED, "out of memory");
		return -ENOMEM;
	}
	w->call = call;
	list_push_back(list, &w->node);
	ttrpc_call_on_cancel(call, on_cancel, w);
	if (ret_waiter)
		*ret_waiter = w;
	return 0;
}

struct ttrpc_call *waiter_take(struct waiter *w)
{
	struct ttrpc_call *call = w->call;

	ttrpc_call_on_cancel(call, NULL, NULL);
	list_remove(&w->node);
	free(w->data);
	free(w);
	return call;
}

void waiter_fail_all(struct list *list, int code, const char *why)
{
	while (!list_empty(list))
		ttrpc_call_fail(waiter_take(list_entry(list->next, struct waiter, node)), code,
				"%s", why);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Events to containerd: ttRPC Forward calls, one at a time so that order is kept. A failed one is
 * sent again up to five times, later each time; the queue is bounded and drops its newest.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/base.h"
#include "base/loop.h"
#include "events.pb-c.h"
#include "shim/handover.h"

#define QUEUE_MAX  2048u
#define TRIES_MAX  5u
#define TIMEOUT_NS 5000000000ull

struct event {
	struct list node;
	char *topic;
	unsigned tries;
	size_t len;
	uint8_t data[]; /* packed ForwardRequest */
};

struct events {
	uv_loop_t *loop;
	char *address, *ns;
	struct ttrpc_client *client;
	struct list queue;
	size_t n;
	bool busy;
	struct loop_timer *retry;
};

static void send_next(struct events *e);

static void drop_first(struct events *e)
{
	struct event *ev = list_entry(e->queue.next, struct event, node);

	list_remove(&ev->node);
	e->n--;
	free(ev->topic);
	free(ev);
}

static void on_retry(void *arg)
{
	struct events *e = arg;

	e->retry = NULL;
	send_next(e);
}

static void send_failed(struct events *e, const char *why)
{
	struct event *ev = list_entry(e->queue.next, struct event, node);

	if (++ev->tries >= TRIES_MAX) {
		log_warn("event %s could not be delivered: %s", ev->topic, why);
		drop_first(e);
		if (list_empty(&e->queue))
			return;
		ev = list_entry(e->queue.next, struct event, node);
	}
	(void)!loop_timer_start(e->loop, ev->tries * 1000u, on_retry, e, &e->retry);
}

static void on_forwarded(void *arg, const struct ttrpc_result *res)
{
	struct events *e = arg;

	e->busy = false;
	if (list_empty(&e->queue))
		return;
	if (res->code != TTRPC_OK) {
		send_failed(e, res->message);
		return;
	}
	drop_first(e);
	send_next(e);
}

static void on_closed(void *arg, int err)
{
	struct events *e = arg;
	struct ttrpc_client *client = e->client;

	(void)err;
	e->client = NULL;
	ttrpc_client_close(client);
}

static void send_next(struct events *e)
{
	struct error err = { 0 };
	struct event *ev;
	int r;

	if (e->busy || e->retry || list_empty(&e->queue))
		return;
	ev = list_entry(e->queue.next, struct event, node);
	if (!e->client) {
		r = ttrpc_client_connect(e->loop, e->address, &e->client, &err);
		if (r < 0) {
			e->client = NULL;
			send_failed(e, error_text(&err));
			return;
		}
		ttrpc_client_on_closed(e->client, on_closed, e);
	}
	r = ttrpc_client_call(e->client, "containerd.services.events.ttrpc.v1.Events", "Forward",
			      ev->data, ev->len, TIMEOUT_NS, NULL, on_forwarded, e, NULL);
	if (r < 0) {
		send_failed(e, strerror(-r));
		return;
	}
	e->busy = true;
}

int events_new(uv_loop_t *loop, const char *address, const char *ns, struct events **ret)
{
	struct events *e = calloc(1, sizeof(*e));

	if (!e)
		return -ENOMEM;
	e->loop = loop;
	list_init(&e->queue);
	e->ns = strdup(ns);
	e->address = str_empty(address) ? NULL : strdup(address);
	if (!e->ns || (!str_empty(address) && !e->address)) {
		events_free(e);
		return -ENOMEM;
	}
	*ret = e;
	return 0;
}

const char *events_address(const struct events *e)
{
	return e->address ? e->address : "";
}

bool events_busy(const struct events *e)
{
	return e->busy;
}

void events_save(const struct events *e, struct arena *a, Caisson__Handover__V1__Handover *m)
{
	Caisson__Handover__V1__Event *v = arena_alloc(a, e->n, sizeof(*v));
	const struct event *ev;

	m->events = arena_alloc(a, e->n, sizeof(*m->events));
	if (!v || !m->events)
		return;
	list_for_each(ev, &e->queue, node) {
		caisson__handover__v1__event__init(v);
		v->topic = ev->topic;
		v->tries = ev->tries;
		v->request = (ProtobufCBinaryData){ ev->len, (uint8_t *)ev->data };
		m->events[m->n_events++] = v++;
	}
}

int events_restore(struct events *e, const Caisson__Handover__V1__Event *m)
{
	struct event *ev = malloc(sizeof(*ev) + m->request.len);

	if (!ev)
		return -ENOMEM;
	ev->len = m->request.len;
	ev->tries = MIN_OF(m->tries, TRIES_MAX);
	if (ev->len)
		memcpy(ev->data, m->request.data, ev->len);
	ev->topic = strdup(m->topic);
	if (!ev->topic) {
		free(ev);
		return -ENOMEM;
	}
	list_push_back(&e->queue, &ev->node);
	e->n++;
	return 0;
}

void events_resume(struct events *e)
{
	send_next(e);
}

void events_publish(struct events *e, const char *topic, const char *name,
		    const ProtobufCMessage *msg)
{
	Containerd__Events__ForwardRequest req = CONTAINERD__EVENTS__FORWARD_REQUEST__INIT;
	Containerd__Events__Envelope env = CONTAINERD__EVENTS__ENVELOPE__INIT;
	Google__Protobuf__Timestamp at = GOOGLE__PROTOBUF__TIMESTAMP__INIT;
	Google__Protobuf__Any any = GOOGLE__PROTOBUF__ANY__INIT;
	auto_free char *url = str_printf("containerd.events.%s", name);
	auto_free uint8_t *value = NULL;
	struct event *ev = NULL;
	struct timespec now;
	size_t len;

	log_debug("event %s", topic);
	if (!e->address)
		return;
	value = malloc(protobuf_c_message_get_packed_size(msg) + 1);
	if (!url || !value || e->n >= QUEUE_MAX)
		goto lost;
	(void)clock_gettime(CLOCK_REALTIME, &now);
	at.seconds = now.tv_sec;
	at.nanos = (int32_t)now.tv_nsec;
	any.type_url = url;
	any.value.data = value;
	any.value.len = protobuf_c_message_pack(msg, value);
	env.timestamp = &at;
	env.namespace_ = e->ns;
	env.topic = (char *)topic;
	env.event = &any;
	req.envelope = &env;
	len = protobuf_c_message_get_packed_size(&req.base);
	ev = malloc(sizeof(*ev) + len);
	if (!ev)
		goto lost;
	ev->len = protobuf_c_message_pack(&req.base, ev->data);
	ev->tries = 0;
	ev->topic = strdup(topic);
	if (!ev->topic)
		goto lost;
	list_push_back(&e->queue, &ev->node);
	e->n++;
	send_next(e);
	return;
lost:
	free(ev);
	log_warn("event %s was dropped", topic);
}

void events_free(struct events *e)
{
	struct ttrpc_client *client;

	if (!e)
		return;
	loop_timer_cancel(e->retry);
	client = e->client;
	e->client = NULL;
	while (!list_empty(&e->queue))
		drop_first(e);
	ttrpc_client_close(client);
	free(e->address);
	free(e->ns);
	free(e);
}

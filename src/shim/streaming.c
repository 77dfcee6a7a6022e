/* SPDX-License-Identifier: Apache-2.0 */
/*
 * containerd.services.streaming.v1.Streaming: standard streams that containerd (io_type "streaming")
 * carries over the shim's own socket in place of fifos. It opens a stream under an id; a later Create
 * or Exec names it in a URI: "ttrpc+unix://...?streaming_id=ID". Between the stream and the sandbox is a
 * pipe, which the sandbox opens as it would a fifo. Each side sends no more than the other has
 * allowed by WindowUpdate.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/base.h"
#include "base/loop.h"
#include "google/protobuf/any.pb-c.h"
#include "shim/shim.h"
#include "streaming.pb-c.h"

#define STREAMS_MAX  256u
#define PIECE        16384u
#define INPUT_WINDOW 32768u /* what containerd may send ahead */
#define ID_PARAMETER "streaming_id="

#define TYPE_INIT   "containerd.services.streaming.v1.StreamInit"
#define TYPE_DATA   "containerd.types.transfer.Data"
#define TYPE_WINDOW "containerd.types.transfer.WindowUpdate"

struct flow {
	struct list node;
	struct shim *shim;
	struct ttrpc_call *call;
	char *id;       /* NULL until it has said */
	int ends[2];    /* of the pipe; the sandbox's is closed when it has its own */
	bool claimed, is_input;
	uint64_t window; /* output: bytes that may be sent */
	struct buf pending; /* input: not taken by the pipe yet */
	uv_poll_t poll;
	bool polling;
	bool over;
};

static void on_poll_closed(uv_handle_t *h)
{
	struct flow *f = h->data;

	for (int i = 0; i < 2; i++)
		cleanup_close_(&f->ends[i]);
	buf_fini(&f->pending);
	free(f->id);
	free(f);
}

/* Ends the call, and the pipe. */
static void flow_end(struct flow *f)
{
	if (f->over)
		return;
	f->over = true;
	list_remove(&f->node);
	f->shim->n_flows--;
	ttrpc_call_on_cancel(f->call, NULL, NULL);
	ttrpc_call_on_data(f->call, NULL, NULL);
	ttrpc_reply_empty(f->call);
	if (f->polling)
		uv_close((uv_handle_t *)&f->poll, on_poll_closed);
	else
		on_poll_closed(&(uv_handle_t){ .data = f });
}

static int send_any(struct flow *f, const char *type, const ProtobufCMessage *msg)
{
	Google__Protobuf__Any any = GOOGLE__PROTOBUF__ANY__INIT;
	auto_free uint8_t *value = malloc(protobuf_c_message_get_packed_size(msg) + 1);
	auto_free uint8_t *data = NULL;
	size_t len;

	if (!value)
		return -ENOMEM;
	any.type_url = (char *)type;
	any.value.data = value;
	any.value.len = protobuf_c_message_pack(msg, value);
	data = malloc(google__protobuf__any__get_packed_size(&any) + 1);
	if (!data)
		return -ENOMEM;
	len = google__protobuf__any__pack(&any, data);
	return ttrpc_call_send(f->call, data, len);
}

static void on_pipe(uv_poll_t *poll, int status, int events);

static void await(struct flow *f, int events)
{
	if (events)
		(void)uv_poll_start(&f->poll, events, on_pipe);
	else
		(void)uv_poll_stop(&f->poll);
}

/* --- output: pipe to containerd --- */

static void pump_output(struct flow *f)
{
	Containerd__Streaming__Data msg = CONTAINERD__STREAMING__DATA__INIT;
	uint8_t data[PIECE];
	ssize_t n;
	int r;

	if (f->window == 0) {
		await(f, 0);
		return;
	}
	n = read(f->ends[0], data, MIN_OF(f->window, (uint64_t)sizeof(data)));
	if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
		await(f, UV_READABLE);
		return;
	}
	if (n <= 0) {
		flow_end(f);
		return;
	}
	msg.data = (ProtobufCBinaryData){ (size_t)n, data };
	r = send_any(f, TYPE_DATA, &msg.base);
	/* The window is far below what the connection holds: no room is an error, too. */
	if (r < 0) {
		flow_end(f);
		return;
	}
	f->window -= (uint64_t)n;
	await(f, f->window ? UV_READABLE : 0);
}

/* --- input: containerd to pipe --- */

static int allow(struct flow *f, size_t n)
{
	Containerd__Streaming__WindowUpdate msg = CONTAINERD__STREAMING__WINDOW_UPDATE__INIT;

	msg.update = (int32_t)n;
	return send_any(f, TYPE_WINDOW, &msg.base);
}

static void pump_input(struct flow *f)
{
	size_t done = 0;

	while (f->pending.len) {
		ssize_t n = write(f->ends[1], buf_head(&f->pending), f->pending.len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0) {
			/* Nobody reads it any more. */
			flow_end(f);
			return;
		}
		buf_consume(&f->pending, (size_t)n);
		done += (size_t)n;
	}
	await(f, f->pending.len ? UV_WRITABLE : 0);
	if (done && allow(f, done) < 0)
		flow_end(f);
}

static void on_pipe(uv_poll_t *poll, int status, int events)
{
	struct flow *f = poll->data;

	(void)status;
	(void)events;
	if (f->is_input)
		pump_input(f);
	else
		pump_output(f);
}

/* --- what containerd says --- */

static struct flow *find(struct shim *shim, const char *id, size_t len)
{
	struct flow *f;

	list_for_each(f, &shim->flows, node)
		if (f->id && strlen(f->id) == len && memcmp(f->id, id, len) == 0)
			return f;
	return NULL;
}

static void begin(struct flow *f, const Google__Protobuf__Any *any)
{
	Google__Protobuf__Any none = GOOGLE__PROTOBUF__ANY__INIT;
	Containerd__Streaming__StreamInit *init =
		containerd__streaming__stream_init__unpack(NULL, any->value.len, any->value.data);
	uint8_t ack[64];

	none.type_url = (char *)"google.protobuf.Empty";
	if (init && *init->id && !find(f->shim, init->id, strlen(init->id)))
		f->id = strdup(init->id);
	if (init)
		containerd__streaming__stream_init__free_unpacked(init, NULL);
	if (!f->id || ttrpc_call_send(f->call, ack, google__protobuf__any__pack(&none, ack)) < 0)
		flow_end(f);
}

static void take_data(struct flow *f, const Google__Protobuf__Any *any)
{
	Containerd__Streaming__Data *msg =
		containerd__streaming__data__unpack(NULL, any->value.len, any->value.data);
	int r = msg && f->claimed && f->is_input ?
			buf_append(&f->pending, msg->data.data, msg->data.len) : -EINVAL;

	if (msg)
		containerd__streaming__data__free_unpacked(msg, NULL);
	if (r < 0)
		flow_end(f);
	else
		pump_input(f);
}

static void take_window(struct flow *f, const Google__Protobuf__Any *any)
{
	Containerd__Streaming__WindowUpdate *msg =
		containerd__streaming__window_update__unpack(NULL, any->value.len, any->value.data);

	if (msg && msg->update > 0)
		f->window = MIN_OF(f->window + (uint64_t)msg->update, (uint64_t)TTRPC_OUT_HIGH);
	if (msg)
		containerd__streaming__window_update__free_unpacked(msg, NULL);
	if (f->claimed && !f->is_input)
		pump_output(f);
}

static bool type_is(const Google__Protobuf__Any *any, const char *type)
{
	return any->type_url && (str_eq(any->type_url, type) ||
				 (str_has_suffix(any->type_url, type) &&
				  any->type_url[strlen(any->type_url) - strlen(type) - 1] == '/'));
}

static void on_message(void *arg, struct ttrpc_call *call, const uint8_t *data, size_t len)
{
	struct flow *f = arg;
	Google__Protobuf__Any *any;

	(void)call;
	if (!data) {
		/* containerd sends no more; the process's end of input is a request of its own. */
		if (f->claimed && f->is_input && !f->pending.len)
			flow_end(f);
		return;
	}
	any = google__protobuf__any__unpack(NULL, len, data);
	if (!any)
		flow_end(f);
	else if (!f->id && type_is(any, TYPE_INIT))
		begin(f, any);
	else if (f->id && type_is(any, TYPE_DATA))
		take_data(f, any);
	else if (f->id && type_is(any, TYPE_WINDOW))
		take_window(f, any);
	else
		flow_end(f);
	if (any)
		google__protobuf__any__free_unpacked(any, NULL);
}

static void on_cancelled(void *arg, struct ttrpc_call *call)
{
	(void)call;
	flow_end(arg);
}

static void stream(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	struct shim *shim = ctx;
	struct flow *f = shim->n_flows < STREAMS_MAX ? calloc(1, sizeof(*f)) : NULL;

	(void)payload;
	(void)len;
	if (!f || pipe2(f->ends, O_CLOEXEC | O_NONBLOCK) < 0) {
		free(f);
		ttrpc_call_fail(call, TTRPC_RESOURCE_EXHAUSTED, "no room for another stream");
		return;
	}
	f->shim = shim;
	f->call = call;
	buf_init(&f->pending, 4 * INPUT_WINDOW);
	list_init(&f->node);
	list_push_back(&shim->flows, &f->node);
	shim->n_flows++;
	ttrpc_call_on_cancel(call, on_cancelled, f);
	ttrpc_call_on_data(call, on_message, f);
}

int streaming_register(struct shim *shim)
{
	static const struct ttrpc_method methods[] = {
		{ "Stream", stream, TTRPC_CLIENT_STREAM | TTRPC_SERVER_STREAM },
	};

	list_init(&shim->flows);
	return ttrpc_server_register(shim->server, "containerd.services.streaming.v1.Streaming", methods,
				     ARRAY_LEN(methods), shim);
}

/* --- what the sandbox is told --- */

/* "ttrpc+unix://...": NULL for what is no stream of ours. */
static const char *stream_id(const char *uri, size_t *ret_len)
{
	const char *at = uri && str_has_prefix(uri, "ttrpc+") ? strstr(uri, ID_PARAMETER) : NULL;

	if (!at)
		return NULL;
	at += strlen(ID_PARAMETER);
	*ret_len = strcspn(at, "&");
	return at;
}

int streaming_claim(struct shim *shim, const char *uri, bool input, char **ret_path,
		    struct error *err)
{
	size_t len = 0;
	const char *id = stream_id(uri, &len);
	struct flow *f;
	int r;

	*ret_path = NULL;
	if (!id)
		return 0;
	f = find(shim, id, len);
	if (!f || f->claimed)
		return error_set(err, -ENOENT, "no stream '%.*s' has been opened", (int)MIN_OF(len, (size_t)80),
				 id);
	r = loop_error(uv_poll_init(&shim->loop, &f->poll, f->ends[input ? 1 : 0]));
	if (r < 0)
		return error_errno(err, r, "stream '%s'", f->id);
	f->poll.data = f;
	f->polling = true;
	f->claimed = true;
	f->is_input = input;
	*ret_path = str_printf("/proc/self/fd/%d", f->ends[input ? 0 : 1]);
	return *ret_path ? 0 : error_set(err, -ENOMEM, "out of memory");
}

void streaming_claimed(struct shim *shim, const char *uri)
{
	size_t len = 0;
	const char *id = stream_id(uri, &len);
	struct flow *f = id ? find(shim, id, len) : NULL;
	int theirs;

	if (!f || !f->claimed)
		return;
	theirs = f->is_input ? 0 : 1;
	cleanup_close_(&f->ends[theirs]);
	f->ends[theirs] = -1;
	if (!f->is_input)
		pump_output(f);
	else if (allow(f, INPUT_WINDOW) < 0)
		flow_end(f);
}

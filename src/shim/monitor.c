/* SPDX-License-Identifier: Apache-2.0 */
/* The routes of monitor.sock. Paths and answers follow Kata Containers' shim where it has the same. */
#include "shim/monitor.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agentclient/agentclient.h"
#include "base/base.h"

#define PATH_LIMIT 1024u

typedef void (*route_fn)(struct shim *shim, struct http_call *call, const struct http_request *q);

static int status_of(const struct error *err)
{
	switch (err->code) {
	case -ENOENT:
		return 404;
	case -EINVAL:
		return 400;
	case -EOPNOTSUPP:
	case -ENOSYS:
		return 501;
	case -ECONNRESET:
	case -EBUSY:
		return 503;
	default:
		return 500;
	}
}

static void reply_json(struct http_call *call, json_t *j)
{
	auto_free char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;

	json_decref(j);
	if (text)
		http_reply(call, 200, "application/json", text, strlen(text));
	else
		http_reply_text(call, 500, "out of memory");
}

static void metrics(struct shim *shim, struct http_call *call, const struct http_request *q)
{
	(void)q;
	metrics_serve(shim, call);
}

static void healthz(struct shim *shim, struct http_call *call, const struct http_request *q)
{
	struct sandbox_pod_state st;

	(void)q;
	sandbox_pod_state(shim->sandbox, &st);
	http_reply_text(call, st.ready ? 200 : 503, "%s",
			st.ready ? "ok" : st.gone ? "the virtual machine has ended" :
						     "the virtual machine is not ready");
}

static void agent_url(struct shim *shim, struct http_call *call, const struct http_request *q)
{
	auto_free char *url = str_printf("hvsock://%s:%u", sandbox_vsock(shim->sandbox),
					 AGENT_PORT_TTRPC);

	(void)q;
	if (url)
		http_reply(call, 200, "text/plain; charset=utf-8", url, strlen(url));
	else
		http_reply_text(call, 500, "out of memory");
}

/* --- containers --- */

struct listing {
	struct shim *shim;
	json_t *list;
};

static const char *status_name(enum sandbox_status s)
{
	switch (s) {
	case SANDBOX_CREATED:
		return "created";
	case SANDBOX_RUNNING:
		return "running";
	case SANDBOX_PAUSED:
		return "paused";
	case SANDBOX_STOPPED:
	default:
		return "stopped";
	}
}

static void list_one(void *arg, const char *id)
{
	struct listing *l = arg;
	struct sandbox_state st;
	json_t *one;

	if (sandbox_state(l->shim->sandbox, id, NULL, &st, NULL) < 0)
		return;
	one = json_pack("{s:s, s:s, s:s, s:i, s:b, s:s, s:s, s:s}", "id", id, "bundle", st.bundle,
			"status", status_name(st.status), "pid", (int)st.pid, "terminal",
			(int)st.stdio.terminal, "stdin", st.stdio.in ? st.stdio.in : "", "stdout",
			st.stdio.out ? st.stdio.out : "", "stderr", st.stdio.err ? st.stdio.err : "");
	if (one && st.status == SANDBOX_STOPPED) {
		(void)json_object_set_new(one, "exit_status", json_integer(st.exit.status));
		(void)json_object_set_new(one, "exited_at", json_integer(st.exit.at.tv_sec));
	}
	(void)json_array_append_new(l->list, one);
}

static void containers(struct shim *shim, struct http_call *call, const struct http_request *q)
{
	struct listing l = { shim, json_array() };

	(void)q;
	sandbox_each(shim->sandbox, list_one, &l);
	reply_json(call, l.list);
}

/* --- volumes --- */

static void on_volume_stats(void *arg, const struct error *err, const Grpc__VolumeStatsResponse *st)
{
	static const char *const units[] = { "unknown", "bytes", "inodes" };
	struct http_call *call = arg;
	json_t *usage;

	if (err) {
		http_reply_text(call, status_of(err), "%s", error_text(err));
		return;
	}
	usage = json_array();
	for (size_t i = 0; i < st->n_usage; i++) {
		const Grpc__VolumeUsage *u = st->usage[i];

		(void)json_array_append_new(
			usage, json_pack("{s:I, s:I, s:I, s:i, s:s}", "available",
					 (json_int_t)u->available, "total", (json_int_t)u->total,
					 "used", (json_int_t)u->used, "unit", (int)u->unit, "unit_name",
					 (unsigned)u->unit < ARRAY_LEN(units) ? units[u->unit] : "unknown"));
	}
	reply_json(call, json_pack("{s:o, s:{s:b, s:s}}", "usage", usage, "volume_condition", "abnormal",
				   st->volume_condition ? (int)st->volume_condition->abnormal : 0,
				   "message",
				   st->volume_condition ? st->volume_condition->message : ""));
}

static void volume_stats(struct shim *shim, struct http_call *call, const struct http_request *q)
{
	char path[PATH_LIMIT];

	if (http_query(q, "path", path, sizeof(path)) < 0 || path[0] != '/')
		http_reply_text(call, 400, "path= must name a volume by its absolute path");
	else
		sandbox_volume_stats(shim->sandbox, path, on_volume_stats, call);
}

static void on_volume_resized(void *arg, const struct error *err)
{
	if (err)
		http_reply_text(arg, status_of(err), "%s", error_text(err));
	else
		http_reply_text(arg, 200, "resized");
}

static void volume_resize(struct shim *shim, struct http_call *call, const struct http_request *q)
{
	json_t *body = json_loadb((const char *)q->body, q->body_len, JSON_REJECT_DUPLICATES, NULL);
	const char *path = json_string_value(json_object_get(body, "VolumePath"));
	const json_t *size = json_object_get(body, "Size");

	if (!path || path[0] != '/' || !json_is_integer(size) || json_integer_value(size) < 0)
		http_reply_text(call, 400, "the body must be {\"VolumePath\": PATH, \"Size\": BYTES}");
	else
		sandbox_volume_resize(shim->sandbox, path, (uint64_t)json_integer_value(size),
				      on_volume_resized, call);
	json_decref(body);
}

/* --- the rest --- */

static void iptables(struct shim *shim, struct http_call *call, const struct http_request *q)
{
	(void)shim;
	(void)q;
	http_reply_text(call, 501, "the guest has no iptables: filter on the host's side of the pod's links, "
				   "which all of its packets pass");
}

static const char *const levels[] = {
	[LOG_ERROR] = "error", [LOG_WARN] = "warn",   [LOG_INFO] = "info",
	[LOG_DEBUG] = "debug", [LOG_TRACE] = "trace",
};

static void get_level(struct shim *shim, struct http_call *call, const struct http_request *q)
{
	(void)shim;
	(void)q;
	http_reply_text(call, 200, "%s", levels[log_get_level()]);
}

static void on_agent_level(void *arg, const struct error *err, const char *text)
{
	(void)text;
	if (err)
		http_reply_text(arg, status_of(err), "the shim's level is %s now; the agent's stays: %s",
				levels[log_get_level()], error_text(err));
	else
		http_reply_text(arg, 200, "%s", levels[log_get_level()]);
}

static void set_level(struct shim *shim, struct http_call *call, const struct http_request *q)
{
	auto_free char *text = strndup((const char *)q->body, MIN_OF(q->body_len, (size_t)16));
	enum log_level level;

	if (text)
		text[strcspn(text, "\r\n")] = '\0';
	if (!text || log_level_parse(text, &level) < 0) {
		http_reply_text(call, 400, "the body must be error, warn, info, debug or trace");
		return;
	}
	log_set_level(level);
	log_info("log level %s", levels[level]);
	sandbox_agent_log_level(shim->sandbox, levels[level], on_agent_level, call);
}

static const struct {
	const char *method, *path;
	route_fn fn;
} routes[] = {
	{ "GET", "/metrics", metrics },
	{ "GET", "/healthz", healthz },
	{ "GET", "/agent-url", agent_url },
	{ "GET", "/containers", containers },
	{ "GET", "/direct-volume/stats", volume_stats },
	{ "POST", "/direct-volume/stats", volume_stats },
	{ "POST", "/direct-volume/resize", volume_resize },
	{ "GET", "/iptables", iptables },
	{ "PUT", "/iptables", iptables },
	{ "GET", "/ip6tables", iptables },
	{ "PUT", "/ip6tables", iptables },
	{ "GET", "/log-level", get_level },
	{ "PUT", "/log-level", set_level },
};

static void dispatch(void *ctx, struct http_call *call, const struct http_request *q)
{
	bool known = false;

	for (size_t i = 0; i < ARRAY_LEN(routes); i++) {
		if (!str_eq(routes[i].path, q->path))
			continue;
		known = true;
		if (str_eq(routes[i].method, q->method)) {
			routes[i].fn(ctx, call, q);
			return;
		}
	}
	if (known)
		http_reply_text(call, 405, "this path has no %s", q->method);
	else
		http_reply_text(call, 404, "no such path; there are /metrics, /healthz, /agent-url, "
					   "/containers, /direct-volume/stats, /direct-volume/resize, "
					   "/log-level");
}

void monitor_open(struct shim *shim)
{
	struct error err = { 0 };
	int fd = sandbox_listen(shim->dir, SANDBOX_MONITOR_SOCKET, &err);
	int r = fd < 0 ? fd : http_server_new(&shim->loop, fd, dispatch, shim, &shim->monitor);

	if (r < 0) {
		if (fd >= 0)
			(void)close(fd);
		log_warn("no monitoring: %s", err.code ? err.msg : strerror(-r));
	}
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Going on in another program: the service caisson.shim.v1.Control, and the side that hands over. When
 * nothing is half done (see sandbox_can_hand_over()), all state is written to a memory file, the new
 * program is asked whether it understands it, and execve() does the rest: descriptors that stay are
 * named in the file. Until execve() succeeds nothing has changed here, so every failure means to go
 * on as before.
 */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/base.h"
#include "base/loop.h"
#include "shim/handover.h"
#include "shim/shim.h"

#define TICK_MS  20u
#define HOLD_MS  3000u  /* until new requests have to wait */
#define LIMIT_MS 10000u /* until it is given up */
#define CHECK_MS 5000   /* for the new program's word */

struct upgrade {
	struct shim *shim;
	struct ttrpc_call *call;
	char *program;
	uint64_t begun;
	struct loop_timer *timer;
};

static void finish(struct upgrade *u, const struct error *err)
{
	struct shim *shim = u->shim;

	loop_timer_cancel(u->timer);
	shim->upgrade = NULL;
	ttrpc_server_hold(shim->server, false);
	log_warn("not upgraded: %s", error_text(err));
	shim_call_fail(u->call, err);
	free(u->program);
	free(u);
}

/* --- the file --- */

struct connections {
	struct arena *a;
	Caisson__Handover__V1__Handover *m;
	size_t cap;
};

static int add_connection(void *arg, const struct ttrpc_saved *st)
{
	struct connections *to = arg;
	Caisson__Handover__V1__Connection *c = arena_new(to->a, Caisson__Handover__V1__Connection);
	Caisson__Handover__V1__Call *calls = arena_alloc(to->a, st->n_calls, sizeof(*calls));

	if (to->m->n_connections == to->cap || !c || !calls)
		return -ENOMEM;
	caisson__handover__v1__connection__init(c);
	c->fd = st->fd;
	c->next_id = st->next_id;
	c->in = (ProtobufCBinaryData){ st->in_len, (uint8_t *)st->in };
	c->out = (ProtobufCBinaryData){ st->out_len, (uint8_t *)st->out };
	c->calls = arena_alloc(to->a, st->n_calls, sizeof(*c->calls));
	for (size_t i = 0; c->calls && i < st->n_calls; i++) {
		caisson__handover__v1__call__init(&calls[i]);
		calls[i].id = st->calls[i].id;
		calls[i].deadline = st->calls[i].deadline;
		calls[i].request = (ProtobufCBinaryData){ st->calls[i].len,
							  (uint8_t *)st->calls[i].request };
		c->calls[c->n_calls++] = &calls[i];
	}
	to->m->connections[to->m->n_connections++] = c;
	return c->calls ? 0 : -ENOMEM;
}

static void save_shim(const struct shim *shim, Caisson__Handover__V1__Shim *m)
{
	caisson__handover__v1__shim__init(m);
	m->id = shim->id;
	m->ns = shim->ns;
	m->bundle = shim->bundle;
	m->dir = shim->dir;
	m->address = shim->address;
	m->events_address = (char *)events_address(shim->events);
	m->is_pod = shim->is_pod;
	m->own_mounts = shim->own_mounts;
	m->lasting = shim->lasting;
	m->log_fd = shim->log_fd;
	m->listen_fd = ttrpc_listener_fd(shim->listener);
	m->log_level = (uint32_t)log_get_level();
	m->scrapes = shim->scrapes;
	if (shim->config_path)
		m->config_path = shim->config_path;
	if (shim->config_body)
		m->config_body = shim->config_body;
	m->annotations = shim->annotations;
	m->n_annotations = strv_len((const char *const *)shim->annotations);
}

static int save_all(struct shim *shim, struct arena *a, Caisson__Handover__V1__Handover *m,
		    struct error *err)
{
	struct connections to = { a, m, ttrpc_server_connections(shim->server) };
	int r;

	caisson__handover__v1__handover__init(m);
	m->version = HANDOVER_VERSION;
	m->program = (char *)CAISSON_VERSION;
	m->shim = arena_new(a, Caisson__Handover__V1__Shim);
	m->connections = arena_alloc(a, to.cap, sizeof(Caisson__Handover__V1__Connection *));
	if (!m->shim || !m->connections)
		return error_set(err, -ENOMEM, "out of memory");
	save_shim(shim, m->shim);
	events_save(shim->events, a, m);
	r = sandbox_save(shim->sandbox, a, &m->sandbox, err);
	if (r < 0)
		return r;
	r = ttrpc_server_save(shim->server, add_connection, &to);
	if (r < 0 || a->failed)
		return error_errno(err, r < 0 ? r : -ENOMEM, "hand the connections over");
	return 0;
}

static int write_file(const Caisson__Handover__V1__Handover *m, struct error *err)
{
	size_t len = caisson__handover__v1__handover__get_packed_size(m);
	auto_free uint8_t *data = len <= HANDOVER_MAX ? malloc(len) : NULL;
	auto_close int fd = memfd_create("caisson-handover", MFD_CLOEXEC);
	int r;

	if (fd < 0 || !data)
		return error_set(err, -ENOMEM, "no memory for %zu bytes of state", len);
	(void)caisson__handover__v1__handover__pack(m, data);
	r = fd_write_full(fd, data, len);
	if (r < 0 || lseek(fd, 0, SEEK_SET) < 0)
		return error_errno(err, r < 0 ? r : -errno, "write the state");
	return take_fd(&fd);
}

/* --- the other program --- */

/* Reads what it says, and waits for its end, within CHECK_MS. */
static int listen_to(int out, int pidfd, char *text, size_t size)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };
	ssize_t n;
	int r;

	do
		r = poll(&p, 1, CHECK_MS);
	while (r < 0 && errno == EINTR);
	if (r <= 0)
		return -ETIMEDOUT;
	n = read(out, text, size - 1);
	text[n > 0 ? n : 0] = '\0';
	return 0;
}

static int ask(const char *program, int file, struct error *err)
{
	const char *const argv[] = { program, "-check-handover", NULL };
	char text[ERROR_MSG_MAX / 2] = "";
	int out[2], pidfd = -1, status = 0, r;
	pid_t pid;

	if (pipe2(out, O_CLOEXEC | O_NONBLOCK) < 0)
		return error_errno(err, -errno, "make a pipe");

	const struct child_fd fds[] = { { file, STDIN_FILENO }, { out[1], STDOUT_FILENO } };
	const struct child_options o = { .argv = argv, .fds = fds, .n_fds = 2, .cwd_fd = -1 };

	r = child_spawn(&o, &pid, &pidfd);
	if (r == 0) {
		r = listen_to(out[0], pidfd, text, sizeof(text));
		if (r < 0)
			(void)kill(pid, SIGKILL);
		(void)!child_wait(pid, &status);
		(void)close(pidfd);
	}
	(void)close(out[0]);
	(void)close(out[1]);
	if (r < 0)
		return error_errno(err, r, "ask '%s' whether it can take over", program);
	/* Others end well, too. */
	if (child_exit_code(status) != 0 || !str_eq(text, HANDOVER_YES))
		return error_set(err, -EOPNOTSUPP, "'%s' cannot take over: %s", program,
				 *text ? text : "it does not know how");
	return lseek(file, 0, SEEK_SET) < 0 ? -errno : 0;
}

static int keep(void *arg, int fd)
{
	return fd_set_cloexec(fd, *(const bool *)arg ? false : true);
}

static int become(struct upgrade *u, Caisson__Handover__V1__Handover *m, int file,
		  struct error *err)
{
	struct shim *shim = u->shim;
	bool yes = true, no = false;
	sigset_t set, old;
	char number[16];
	int r;

	(void)snprintf(number, sizeof(number), "%d", file);

	const char *const argv[] = { u->program, "-namespace", shim->ns,	"-id", shim->id,
				     "-handover", number,     "resume", NULL };

	/* A signal that comes meanwhile is the next program's. */
	(void)sigemptyset(&set);
	(void)sigaddset(&set, SIGTERM);
	(void)sigaddset(&set, SIGINT);
	(void)sigprocmask(SIG_BLOCK, &set, &old);
	r = handover_each_fd(m, keep, &yes);
	if (r == 0)
		r = fd_set_cloexec(file, false);
	if (r == 0) {
		log_info("going on as '%s'", u->program);
		(void)execv(u->program, (char *const *)argv);
		r = -errno;
	}
	(void)!handover_each_fd(m, keep, &no);
	(void)sigprocmask(SIG_SETMASK, &old, NULL);
	return error_errno(err, r, "execute '%s'", u->program);
}

/* Comes back only with an error. */
static int hand_over(struct upgrade *u, struct error *err)
{
	struct arena a = { 0 };
	Caisson__Handover__V1__Handover m;
	auto_close int file = -1;
	int r;

	ttrpc_server_hold(u->shim->server, true);
	r = save_all(u->shim, &a, &m, err);
	if (r == 0)
		r = file = write_file(&m, err);
	if (r >= 0)
		r = ask(u->program, file, err);
	if (r >= 0)
		r = become(u, &m, file, err);
	arena_fini(&a);
	return r;
}

/* --- when --- */

static int may_hand_over(const struct shim *shim, struct error *err)
{
	if (shim->leaving)
		return error_set(err, -EBUSY, "the shim is about to leave");
	if (ttrpc_server_busy(shim->server))
		return error_set(err, -EBUSY, "requests are under way");
	if (events_busy(shim->events))
		return error_set(err, -EBUSY, "an event is on its way");
	return sandbox_can_hand_over(shim->sandbox, err);
}

static void on_tick(void *arg)
{
	struct upgrade *u = arg;
	uint64_t now = uv_now(&u->shim->loop) - u->begun;
	struct error err = { 0 };

	u->timer = NULL;
	if (may_hand_over(u->shim, &err) < 0) {
		if (now > HOLD_MS)
			ttrpc_server_hold(u->shim->server, true);
		if (now < LIMIT_MS && !u->shim->leaving &&
		    loop_timer_start(&u->shim->loop, TICK_MS, on_tick, u, &u->timer) == 0)
			return;
		(void)error_prefix(&err, err.code, "the shim cannot be replaced now");
	} else {
		(void)hand_over(u, &err);
	}
	finish(u, &err);
}

static int begin(struct shim *shim, struct ttrpc_call *call, const char *program, struct error *err)
{
	struct upgrade *u;

	if (shim->upgrade)
		return error_set(err, -EBUSY, "an upgrade is under way");
	if (program[0] != '/')
		return error_set(err, -EINVAL, "the program must be an absolute path");
	if (access(program, X_OK) < 0)
		return error_errno(err, -errno, "the program '%s'", program);
	u = calloc(1, sizeof(*u));
	if (!u || !(u->program = strdup(program))) {
		free(u);
		return error_set(err, -ENOMEM, "out of memory");
	}
	u->shim = shim;
	u->call = call;
	uv_update_time(&shim->loop);
	u->begun = uv_now(&shim->loop);
	/* Not from within the request: what came with it is still to be looked at. */
	if (loop_timer_start(&shim->loop, 0, on_tick, u, &u->timer) < 0) {
		free(u->program);
		free(u);
		return error_set(err, -ENOMEM, "out of memory");
	}
	shim->upgrade = u;
	return 0;
}

static void upgrade(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	Caisson__Handover__V1__UpgradeResponse a = CAISSON__HANDOVER__V1__UPGRADE_RESPONSE__INIT;
	SHIM_UNPACK(q, Caisson__Handover__V1__UpgradeRequest,
		    caisson__handover__v1__upgrade_request__descriptor);
	struct error err = { 0 };

	/* This is the program that was asked for. */
	if (ttrpc_call_restored(call)) {
		a.version = (char *)CAISSON_VERSION;
		ttrpc_reply_msg(call, &a.base);
	} else if (begin(ctx, call, q->program, &err) < 0) {
		shim_call_fail(call, &err);
	}
	SHIM_FREE(q);
}

int upgrade_register(struct shim *shim)
{
	static const struct ttrpc_method methods[] = { { "Upgrade", upgrade, TTRPC_RESUMABLE } };

	return ttrpc_server_register(shim->server, "caisson.shim.v1.Control", methods,
				     ARRAY_LEN(methods), shim);
}

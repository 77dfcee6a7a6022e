/* SPDX-License-Identifier: Apache-2.0 */
/* The side that takes over: commands "-check-handover" and "resume". See upgrade.c for the other. */
#include "shim/handover.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"
#include "base/loop.h"

/* --- descriptors --- */

struct each {
	int (*fn)(void *arg, int fd);
	void *arg;
	int r;
};

static void one(struct each *e, int fd)
{
	if (e->r == 0 && fd >= 0)
		e->r = e->fn(e->arg, fd);
}

static void of_network(struct each *e, const Caisson__Handover__V1__Network *n)
{
	one(e, n->made_fd);
	one(e, n->forward_listener);
	one(e, n->forward_hold);
	for (size_t i = 0; i < n->n_relays; i++) {
		one(e, n->relays[i]->client_fd);
		one(e, n->relays[i]->guest_fd);
	}
}

static void of_process(struct each *e, const Caisson__Handover__V1__Process *p)
{
	for (size_t i = 0; i < p->n_streams; i++) {
		const Caisson__Handover__V1__Stream *st = p->streams[i];

		one(e, st->sock);
		one(e, st->fd);
		if (!st->sink)
			continue;
		one(e, st->sink->fd);
		one(e, st->sink->ready_fd);
		one(e, st->sink->log_fd);
	}
}

int handover_each_fd(const Caisson__Handover__V1__Handover *m, int (*fn)(void *arg, int fd),
		     void *arg)
{
	const Caisson__Handover__V1__Sandbox *s = m->sandbox;
	struct each e = { fn, arg, 0 };

	one(&e, m->shim->log_fd);
	one(&e, m->shim->listen_fd);
	for (size_t i = 0; i < m->n_connections; i++)
		one(&e, m->connections[i]->fd);
	one(&e, s->vmm_fd);
	one(&e, s->host_mounts_fd);
	if (s->agent)
		one(&e, s->agent->fd);
	if (s->network)
		of_network(&e, s->network);
	for (size_t i = 0; i < s->n_containers; i++)
		for (size_t k = 0; k < s->containers[i]->n_processes; k++)
			of_process(&e, s->containers[i]->processes[k]);
	return e.r;
}

/* --- reading --- */

static int is_possible(void *arg, int fd)
{
	(void)arg;
	return fd > STDERR_FILENO ? 0 : -EBADF;
}

int handover_check(const Caisson__Handover__V1__Handover *m, struct error *err)
{
	const Caisson__Handover__V1__Shim *sh = m->shim;

	if (m->version != HANDOVER_VERSION)
		return error_set(err, -EPROTONOSUPPORT,
				 "version %s hands over in form %u, this one (%s) understands %u",
				 m->program, m->version, CAISSON_VERSION, HANDOVER_VERSION);
	if (!sh || !m->sandbox || !str_valid_id(sh->id) || sh->dir[0] != '/' ||
	    sh->bundle[0] != '/' || !*sh->ns || !*sh->address || sh->n_annotations % 2 ||
	    handover_each_fd(m, is_possible, NULL) < 0)
		return error_set(err, -EBADMSG, "what was handed over is damaged");
	return 0;
}

int handover_read(int fd, Caisson__Handover__V1__Handover **ret, struct error *err)
{
	Caisson__Handover__V1__Handover *m;
	auto_free uint8_t *data = NULL;
	struct stat st;
	ssize_t n;
	int r;

	if (fstat(fd, &st) < 0)
		return error_errno(err, -errno, "read the state");
	if (st.st_size <= 0 || (size_t)st.st_size > HANDOVER_MAX)
		return error_set(err, -EBADMSG, "what was handed over is damaged");
	data = malloc((size_t)st.st_size);
	if (!data)
		return error_set(err, -ENOMEM, "out of memory");
	n = fd_read_full(fd, data, (size_t)st.st_size);
	m = n == st.st_size ?
		    caisson__handover__v1__handover__unpack(NULL, (size_t)n, data) : NULL;
	if (!m)
		return error_set(err, -EBADMSG, "what was handed over is damaged");
	r = handover_check(m, err);
	if (r < 0)
		caisson__handover__v1__handover__free_unpacked(m, NULL);
	else
		*ret = m;
	return r;
}

static const char *or_null(const char *text)
{
	return str_empty(text) ? NULL : text;
}

/* Settings are read anew, and changed by what the pod was allowed to change. */
static int load_config(struct config *cfg, const Caisson__Handover__V1__Shim *m, struct error *err)
{
	bool denied;
	int r = shim_load_config(cfg, or_null(m->config_path), or_null(m->config_body), err);

	if (r < 0)
		return r;
	for (size_t i = 0; i + 1 < m->n_annotations && r == 0; i += 2)
		r = shim_annotate_config(cfg, m->ns, m->annotations[i], m->annotations[i + 1],
					 &denied, err);
	if (r < 0)
		config_fini(cfg);
	return r;
}

int shim_check_handover(void)
{
	Caisson__Handover__V1__Handover *m;
	struct error err = { 0 };
	struct config cfg;
	int r = handover_read(STDIN_FILENO, &m, &err);

	if (r == 0) {
		r = load_config(&cfg, m->shim, &err);
		if (r == 0)
			config_fini(&cfg);
		caisson__handover__v1__handover__free_unpacked(m, NULL);
	}
	return fd_write_full(STDOUT_FILENO, r < 0 ? err.msg : HANDOVER_YES,
			     strlen(r < 0 ? err.msg : HANDOVER_YES)) < 0 || r < 0;
}

/* --- going on --- */

static int adopt_fd(void *arg, int fd)
{
	(void)arg;
	return fcntl(fd, F_GETFD) < 0 ? -errno : fd_set_cloexec(fd, true);
}

static int restore_shim(struct shim *shim, const Caisson__Handover__V1__Shim *m, struct error *err)
{
	int r = 0;

	shim->id = strdup(m->id);
	shim->ns = strdup(m->ns);
	shim->bundle = strdup(m->bundle);
	shim->dir = strdup(m->dir);
	shim->address = strdup(m->address);
	for (size_t i = 0; i < m->n_annotations && r == 0; i++)
		r = strv_append(&shim->annotations, m->annotations[i]);
	if (r == 0)
		r = shim_keep_options(shim, or_null(m->config_path), or_null(m->config_body));
	if (r < 0 || !shim->id || !shim->ns || !shim->bundle || !shim->dir || !shim->address)
		return error_set(err, -ENOMEM, "out of memory");
	shim->is_pod = m->is_pod;
	shim->own_mounts = m->own_mounts;
	shim->lasting = m->lasting;
	shim->scrapes = m->scrapes;
	return load_config(&shim->config, m, err);
}

static int restore_connection(struct shim *shim, const Caisson__Handover__V1__Connection *m)
{
	auto_free struct ttrpc_saved_call *calls = calloc(m->n_calls + 1, sizeof(*calls));
	const struct ttrpc_saved st = {
		.fd = m->fd,
		.next_id = m->next_id,
		.in = m->in.data,
		.in_len = m->in.len,
		.out = m->out.data,
		.out_len = m->out.len,
		.calls = calls,
		.n_calls = m->n_calls,
	};

	if (!calls)
		return -ENOMEM;
	for (size_t i = 0; i < m->n_calls; i++)
		calls[i] = (struct ttrpc_saved_call){ m->calls[i]->id, m->calls[i]->deadline,
						      m->calls[i]->request.data,
						      m->calls[i]->request.len };
	return ttrpc_server_restore(shim->server, &shim->loop, &st);
}

static int restore_all(struct shim *shim, const Caisson__Handover__V1__Handover *m,
		       struct error *err)
{
	const Caisson__Handover__V1__Shim *sh = m->shim;
	struct sandbox_options o;
	int r = handover_each_fd(m, adopt_fd, NULL);

	if (r < 0)
		return error_errno(err, r, "take the descriptors over");
	r = restore_shim(shim, sh, err);
	if (r == 0)
		r = shim_set_up(shim, sh->events_address, err);
	if (r < 0)
		return r;
	ttrpc_server_hold(shim->server, true);
	r = shim_sandbox_options(shim, &o, err);
	if (r == 0)
		r = sandbox_restore(&shim->loop, &o, m->sandbox, &shim->sandbox, err);
	shim_sandbox_options_fini(&o);
	for (size_t i = 0; i < m->n_events && r == 0; i++)
		r = events_restore(shim->events, m->events[i]);
	if (r == 0)
		r = ttrpc_server_listen(shim->server, &shim->loop, sh->listen_fd, &shim->listener);
	for (size_t i = 0; i < m->n_connections && r == 0; i++)
		r = restore_connection(shim, m->connections[i]);
	return r < 0 && !err->code ? error_errno(err, r, "take the connections over") : r;
}

int shim_resume(const struct shim_flags *f)
{
	int file = f->handover ? (int)strtol(f->handover, NULL, 10) : -1;
	struct shim shim = { .log_fd = -1, .host_mounts_fd = -1 };
	Caisson__Handover__V1__Handover *m;
	struct error err = { 0 };
	sigset_t set;
	int r;

	(void)umask(0077);
	(void)prctl(PR_SET_NAME, "caisson-shim");
	r = file > STDERR_FILENO ? handover_read(file, &m, &err) :
				   error_set(&err, -EINVAL, "-handover names no file");
	if (r < 0) {
		(void)fprintf(stderr, "%s\n", error_text(&err));
		return 1;
	}
	(void)close(file);
	shim.log_fd = m->shim->log_fd;
	log_init("shim", shim.log_fd, (enum log_level)MIN_OF(m->shim->log_level, (uint32_t)LOG_TRACE));
	log_set_field("sandbox", m->shim->id);
	r = uv_loop_init(&shim.loop);
	if (r < 0)
		(void)error_set(&err, r, "make an event loop: %s", uv_strerror(r));
	else
		r = restore_all(&shim, m, &err);
	if (r < 0) {
		/* Nobody is left to go back to: containerd sees a shim that died, and cleans up. */
		log_error("%s", error_text(&err));
		_exit(1);
	}
	log_write(LOG_INFO, "upgraded", "from", m->program, "to", CAISSON_VERSION, NULL);
	caisson__handover__v1__handover__free_unpacked(m, NULL);
	(void)sigemptyset(&set);
	(void)sigprocmask(SIG_SETMASK, &set, NULL);
	sandbox_resume(shim.sandbox);
	events_resume(shim.events);
	ttrpc_server_hold(shim.server, false);
	return shim_serve(&shim);
}

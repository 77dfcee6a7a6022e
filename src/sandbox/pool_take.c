/* SPDX-License-Identifier: Apache-2.0 */
/* Taking a machine of the pool for a sandbox, and asking for another in its place. */
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include "sandbox/internal.h"
#include "sandbox/pool_priv.h"
#include "sandbox/usernet.h"

#define ANSWER_MS 2000 /* a machine whose agent does not answer by then is ended */
#define SHIM      "containerd-shim-caisson-v2"

/* The agent's connection, which also shows that the guest is well. The machine's start waits for it. */
static int call_agent(const char *dir)
{
	const struct timeval wait = { .tv_sec = ANSWER_MS / 1000 };
	auto_close int fd = vmm_sock_connect(dir, "vsock.sock", NULL);
	auto_free char *line = str_printf("CONNECT %u\n", AGENT_PORT_TTRPC);
	char answer[32];
	size_t n = 0;
	int r;

	if (fd < 0 || !line)
		return fd < 0 ? fd : -ENOMEM;
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)) < 0)
		return -errno;
	r = fd_write_full(fd, line, strlen(line));
	if (r < 0)
		return r;
	/* Nothing beyond the line is for us to read. */
	do {
		ssize_t got = read(fd, answer + n, 1);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return got < 0 ? -errno : -ECONNRESET;
		n++;
	} while (answer[n - 1] != '\n' && n < sizeof(answer));
	if (n < 3 || memcmp(answer, "OK ", 3) != 0)
		return -EPROTO;
	r = fd_set_nonblock(fd, true);
	return r < 0 ? r : take_fd(&fd);
}

/* Of the cards only the streams can be given a wire later. */
static bool can_wait(const struct sandbox *s, const struct vmm_config *cfg)
{
	if (!template_name(s->template) || cfg->n_shares || cfg->cgroup_parent)
		return false;
	for (size_t i = 0; i < cfg->n_nics; i++)
		if (cfg->nics[i].kind != VMM_NIC_STREAM)
			return false;
	return true;
}

/* Takes any that is there. */
static int move_one(const struct pool_dir *d, const char *to)
{
	auto_closedir DIR *list = NULL;
	struct dirent *e;
	int r = fd_opendir(d->fd, ".", &list);

	if (r < 0)
		return r;
	while ((e = readdir(list))) {
		auto_free char *path = str_join_path(d->path, e->d_name);

		if (pool_is_id(e->d_name) && path && vmm_move(path, to) == 0)
			return 0;
	}
	return -ENOENT;
}

/* The machine of @vm_dir, which was of no use, makes room for another. */
static void drop(struct sandbox *s)
{
	struct error err = { 0 };

	if (s->vmm)
		vmm_close(take_ptr(&s->vmm), NULL, NULL);
	if (vmm_reclaim(s->vm_dir, &err) < 0)
		log_warn("%s", error_text(&err));
	(void)!fsutil_remove_tree(AT_FDCWD, s->vm_dir);
	if (mkdir(s->vm_dir, 0700) < 0)
		log_warn("make '%s': %s", s->vm_dir, strerror(errno));
}

bool pool_take(struct sandbox *s, const struct vmm_config *cfg)
{
	auto_free char *key = NULL;
	struct error err = { 0 };
	struct pool_dir d;
	size_t len = 0;
	int agent = -1, r;

	s->pooled = can_wait(s, cfg);
	if (!s->pooled || !template_loads(s->template) ||
	    pool_dir_open(template_name(s->template), false, &d) < 0)
		return false;
	r = fd_read_file(d.fd, "key", POOL_FILE_MAX, &key, &len);
	if (r == 0 && !template_has_key(s->template, key, len))
		r = -ENOENT;
	while (r == 0) {
		r = move_one(&d, s->vm_dir);
		if (r < 0)
			break;
		agent = call_agent(s->vm_dir);
		r = agent < 0 ? agent : vmm_attach(s->loop, s->vm_dir, &sandbox_vm_events, s, &s->vmm, &err);
		if (r == 0 && s->usernet)
			r = usernet_wire(s->usernet, s->vm_dir, &err);
		if (r == 0)
			r = guest_arrives(s, agent);
		if (r == 0)
			break;
		log_warn("a machine of the pool is of no use: %s", err.code ? err.msg : strerror(-r));
		cleanup_close_(&agent);
		drop(s);
		r = 0;
	}
	pool_dir_fini(&d);
	if (r < 0)
		return false;
	s->taken = true;
	log_info("took a machine of the pool");
	return true;
}

void pool_refill(struct sandbox *s)
{
	const char *kind = template_name(s->template);
	auto_free char *dir = NULL, *program = NULL;
	struct child_options o = {
		.argv = (const char *const[]){ SHIM, "-namespace", "pool", "-id", kind, "fill", NULL },
		.cwd_fd = -1,
		.setsid = true,
	};
	pid_t pid;
	int r;

	if (!s->pooled || !kind || pool_size(s->config) == 0)
		return;
	r = fsutil_own_dir(&dir);
	program = r < 0 ? NULL : str_join_path(dir, SHIM);
	o.program = program;
	r = program ? child_spawn(&o, &pid, NULL) : -ENOMEM;
	if (r < 0)
		log_warn("the pool is not filled: %s", strerror(-r));
	else
		sandbox_adopt(s->loop, pid);
}

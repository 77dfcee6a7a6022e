/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes machines that wait in the pool. One process fills a kind, with the lock on its directory. Who
 * finds it locked leaves the file `again`, and who has the lock looks for that after letting go of it, so
 * that no wish is lost. A machine is ready when its guest has called: the connection is closed, after
 * which the guest waits to be called.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "agentclient/agentclient.h"
#include "base/loop.h"
#include "sandbox/pool_priv.h"
#include "sandbox/sandbox.h"
#include "sandbox/template.h"

#define LOG_MODE (O_WRONLY | O_APPEND | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW)
#define BACKLOG  1

/* A machine in the making. */
struct filling {
	uv_loop_t loop;
	struct vmm *vmm;
	struct agent_vsock *hello;
	bool called, gone;
	struct error err;
};

static void on_exited(struct vmm *vmm, enum vmm_exit reason, const char *text, void *arg)
{
	struct filling *f = arg;

	if (!f->err.code)
		(void)error_set(&f->err, -ECONNRESET, "the machine ended (%s): %s", vmm_exit_name(reason),
				text);
	f->gone = true;
	f->vmm = NULL;
	vmm_close(vmm, NULL, NULL);
	uv_stop(&f->loop);
}

static void on_hello(void *arg, const struct error *err, int fd, uint32_t port)
{
	struct filling *f = arg;

	(void)port;
	f->hello = NULL;
	if (err)
		f->err = *err;
	else
		(void)close(fd);
	f->called = !err;
	uv_stop(&f->loop);
}

static const struct vmm_events events = { .exited = on_exited };

static int open_cards(const struct vmm_kind *what, const char *dir, int fds[static VMM_MAX_NICS],
		      struct vmm_nic nics[static VMM_MAX_NICS], struct error *err)
{
	for (size_t i = 0; i < what->n_nics; i++) {
		auto_free char *name = str_printf(VMM_SOCK_NIC "%zu", i);

		if (what->nics[i] != VMM_NIC_STREAM)
			return error_set(err, -EOPNOTSUPP, "machines with such cards cannot wait");
		fds[i] = name ? vmm_sock_listen(dir, name, BACKLOG, err) : -ENOMEM;
		if (fds[i] < 0)
			return fds[i];
		nics[i] = (struct vmm_nic){ .kind = VMM_NIC_STREAM, .fds = &fds[i], .n_fds = 1 };
	}
	return 0;
}

/* In the directory @dir, which is there. The machine goes on alone when this has succeeded. */
static int make(struct filling *f, const struct template *t, const uint8_t *kind, size_t len,
		const char *dir, const struct config *config, struct error *err)
{
	auto_free char *claims = str_printf("%s/uids", sandbox_run_root());
	auto_free char *vsock = str_join_path(dir, "vsock.sock"), *log = str_join_path(dir, "vmm.log");
	auto_free char *id = str_printf("caisson.pool-%s", strrchr(dir, '/') + 1);
	int fds[VMM_MAX_NICS] = { -1, -1, -1, -1, -1, -1, -1, -1 };
	struct vmm_nic nics[VMM_MAX_NICS];
	struct vmm_config cfg;
	struct vmm_kind what;
	int r = vsock && log && id && claims ? vmm_kind_describe(kind, len, &what, err) : -ENOMEM;

	vmm_config_init(&cfg);
	if (r == 0)
		r = open_cards(&what, dir, fds, nics, err);
	if (r == 0) {
		cfg.id = id;
		cfg.dir = dir;
		cfg.uids = (struct vmm_uids){ config->uid_first, config->n_uids, claims };
		cfg.nics = nics;
		cfg.n_nics = what.n_nics;
		/* Of the guest's console too, also when it has been taken. */
		cfg.log_fd = cfg.console_fd = open(log, LOG_MODE, 0600);
		template_use(t, &cfg);
		r = agent_vsock_accept(&f->loop, vsock, AGENT_PORT_HELLO, config->boot_timeout_ms, on_hello, f,
				       &f->hello, err);
	}
	if (r == 0)
		r = vmm_spawn_kind(&f->loop, kind, len, &cfg, &events, f, &f->vmm, err);
	for (size_t i = 0; i < VMM_MAX_NICS; i++)
		cleanup_close_(&fds[i]);
	cleanup_close_(&cfg.log_fd);
	if (r == 0)
		(void)uv_run(&f->loop, UV_RUN_DEFAULT);
	agent_vsock_cancel(take_ptr(&f->hello));
	if (r == 0 && !f->called) {
		r = f->err.code ? f->err.code : -EIO;
		*err = f->err;
	}
	return r;
}

static void close_handle(uv_handle_t *handle, void *arg)
{
	(void)arg;
	if (!uv_is_closing(handle))
		uv_close(handle, NULL);
}

static int add_machine(const struct pool_dir *d, const struct template *t, const uint8_t *kind,
		       size_t len, const struct config *config, struct error *err)
{
	struct filling f = { 0 };
	uint8_t raw[POOL_ID_LEN / 2];
	char id[POOL_ID_LEN + 1];
	auto_free char *fresh = NULL, *path = NULL;
	int r = getrandom(raw, sizeof(raw), 0) == (ssize_t)sizeof(raw) ? 0 : -EIO;

	str_hex(id, raw, sizeof(raw));
	fresh = str_printf(POOL_FRESH "%s", id);
	path = fresh ? str_join_path(d->path, fresh) : NULL;
	if (!path || r < 0 || uv_loop_init(&f.loop) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	if (mkdirat(d->fd, fresh, 0700) < 0)
		r = error_errno(err, -errno, "make '%s'", path);
	if (r == 0)
		r = make(&f, t, kind, len, path, config, err);
	/* From now on it lives by itself. */
	if (f.vmm)
		vmm_close(take_ptr(&f.vmm), NULL, NULL);
	uv_walk(&f.loop, close_handle, NULL);
	(void)uv_run(&f.loop, UV_RUN_DEFAULT);
	(void)uv_loop_close(&f.loop);
	if (r == 0 && renameat(d->fd, fresh, d->fd, id) < 0)
		r = error_errno(err, -errno, "make '%s' ready", path);
	if (r < 0)
		(void)!pool_discard(d, fresh);
	return r;
}

/* A machine may come to use all of its memory. */
static bool has_room(const uint8_t *kind, size_t len)
{
	auto_free char *text = NULL;
	unsigned long long kib = 0;
	struct vmm_kind what;
	const char *line;

	if (vmm_kind_describe(kind, len, &what, NULL) < 0 ||
	    fd_read_file(AT_FDCWD, "/proc/meminfo", 8192, &text, NULL) < 0 ||
	    !(line = strstr(text, "MemAvailable:")) || sscanf(line, "MemAvailable: %llu", &kib) != 1)
		return true;
	if (kib >> 10 >= what.memory_mib)
		return true;
	log_warn("no machine is added to the pool: %llu MiB of memory are free, one may need %u", kib >> 10,
		 what.memory_mib);
	return false;
}

/* Writes the two files of the kind, or finds that they are other ones: those machines are of no use. */
static int settle_kind(const struct pool_dir *d, const struct template *t, const uint8_t *kind,
		       size_t len)
{
	uint8_t *key = NULL;
	size_t key_len = 0;
	struct error err = { 0 };
	int r = vmm_kind_key(kind, len, &key, &key_len, &err);
	auto_free uint8_t *held = key;
	auto_free char *have = NULL;
	size_t have_len = 0;

	if (r == 0 && fd_read_file(d->fd, "key", key_len + 1, &have, &have_len) == 0 &&
	    template_has_key(t, have, have_len))
		return utimensat(d->fd, "key", NULL, 0) < 0 ? -errno : 0;
	if (r == 0) {
		(void)pool_tidy(d, 0);
		r = fsutil_write_volatile(d->fd, "kind", kind, len, 0600);
	}
	return r == 0 ? fsutil_write_volatile(d->fd, "key", held, key_len, 0600) : r;
}

/* One more, unless there are enough: 0. Under the lock. */
static int fill_one(const struct pool_dir *d, const char *name, const struct config *config,
		    struct error *err)
{
	unsigned size = pool_size(config);
	struct template *t = NULL;
	uint8_t *kind = NULL;
	size_t len = 0;
	/* Opened for each: QEMU reads the state from where its descriptor stands. */
	int r = template_open(name, &t, &kind, &len, err);
	auto_free uint8_t *held = kind;

	if (r < 0) {
		(void)pool_tidy(d, 0);
		return r;
	}
	r = settle_kind(d, t, held, len);
	(void)unlinkat(d->fd, POOL_AGAIN, 0);
	if (r < 0)
		(void)error_errno(err, r, "describe the machines of '%s'", d->path);
	else if (pool_tidy(d, size) < size && has_room(held, len))
		r = add_machine(d, t, held, len, config, err) < 0 ? err->code : 1;
	template_free(t);
	return r;
}

static void log_to(const struct pool_dir *d)
{
	int fd = openat(d->fd, POOL_LOG, LOG_MODE, 0600);

	if (fd >= 0)
		log_init("pool", fd, LOG_INFO);
}

int pool_fill(const char *kind, const struct config *config, struct error *err)
{
	char newest[TEMPLATE_NAME_MAX];
	struct template *t = NULL;
	uint8_t *saved = NULL;
	struct pool_dir d;
	bool again = true;
	size_t len = 0;
	unsigned n;
	int r;

	if (!kind) {
		template_newest(newest);
		kind = newest;
	}
	if (str_empty(kind))
		return error_set(err, -ENOENT, "there is no template yet: the first container leaves one");
	if (!pool_is_id(kind))
		return error_set(err, -EINVAL, "'%.40s' is no kind of machine", kind);
	if (pool_size(config) == 0)
		return 0;
	/* One that is of no use any more leaves no directory behind. */
	r = template_open(kind, &t, &saved, &len, err);
	template_free(t);
	free(saved);
	if (r < 0) {
		(void)!pool_clear(kind, &n, NULL);
		return r;
	}
	while (again && r == 0) {
		int file;

		r = pool_dir_open(kind, true, &d);
		if (r < 0)
			return error_errno(err, r, "make the pool's directory");
		file = openat(d.fd, POOL_AGAIN, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
		cleanup_close_(&file);
		r = pool_dir_lock(&d, false);
		if (r == 0) {
			log_to(&d);
			do
				r = fill_one(&d, kind, config, err);
			while (r > 0);
			if (r < 0)
				log_warn("%s", error_text(err));
			(void)flock(d.fd, LOCK_UN);
			again = faccessat(d.fd, POOL_AGAIN, F_OK, 0) == 0;
		} else {
			/* Who has it, or has just removed the directory, sees to it. */
			again = r == -ENOENT;
			r = 0;
		}
		pool_dir_fini(&d);
	}
	if (r == 0)
		pool_forget_old(kind);
	return r;
}

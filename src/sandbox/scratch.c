/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writable layers. mkfs.ext4 fills a sparse file while the VM boots; without a journal, since
 * nothing of it survives the sandbox.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sandbox/internal.h"

struct scratch {
	struct sandbox *s;
	char *path;
	pid_t pid; /* of mkfs.ext4; 0: it has ended */
	struct loop_pidfd *watch;
	struct error failure;
	sandbox_done_fn done;
	void *arg;
};

static int make_seed(const char *dir, char **ret_seed)
{
	auto_free char *seed = str_join_path(dir, "seed");
	auto_free char *upper = seed ? str_join_path(seed, "upper") : NULL;
	auto_free char *work = seed ? str_join_path(seed, "work") : NULL;
	int r;

	if (!upper || !work)
		return -ENOMEM;
	r = fsutil_mkdir_p(upper, 0755);
	/* The container's root directory takes its mode, which the umask must not narrow. */
	if (r == 0 && chmod(upper, 0755) < 0)
		r = -errno;
	if (r == 0)
		r = fsutil_mkdir_p(work, 0755);
	if (r == 0)
		*ret_seed = take_ptr(&seed);
	return r;
}

static void reap(struct scratch *sc)
{
	int status = 0, r;

	r = child_wait(sc->pid, &status);
	sc->pid = 0;
	if (r < 0)
		(void)error_errno(&sc->failure, r, "make a writable layer");
	else if (child_exit_code(status) != 0)
		(void)error_set(&sc->failure, -EIO,
				"mkfs.ext4 could not make the writable layer '%s' (exit status %d)",
				sc->path, child_exit_code(status));
}

static void on_mkfs_exit(void *arg)
{
	struct scratch *sc = arg;
	sandbox_done_fn done = sc->done;

	sc->watch = NULL;
	reap(sc);
	sc->done = NULL;
	if (done)
		done(sc->arg, sc->failure.code ? &sc->failure : NULL);
}

int scratch_new(struct sandbox *s, struct scratch **ret, struct error *err)
{
	struct scratch *sc = calloc(1, sizeof(*sc));
	auto_free char *seed = NULL;
	auto_close int fd = -1;
	int pidfd = -1, r;

	if (!sc)
		return error_set(err, -ENOMEM, "out of memory");
	sc->s = s;
	sc->path = str_printf("%s/%u.ext4", s->record.scratch, s->next_serial++);
	if (!sc->path) {
		r = error_set(err, -ENOMEM, "out of memory");
		goto fail;
	}
	r = fsutil_mkdir_p(s->record.scratch, 0700);
	if (r == 0)
		r = make_seed(s->record.scratch, &seed);
	if (r < 0) {
		(void)error_errno(err, r, "make '%s'", s->record.scratch);
		goto fail;
	}
	fd = open(sc->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)s->config->scratch_size) < 0) {
		r = error_errno(err, -errno, "make '%s'", sc->path);
		goto fail;
	}

	const char *const argv[] = {
		"mkfs.ext4", "-q", "-F", "-m", "0",
		"-O", "^has_journal,^resize_inode,sparse_super2",
		"-E", "lazy_itable_init=1,nodiscard,packed_meta_blocks=1,num_backup_sb=0",
		"-d", seed, sc->path, NULL,
	};
	const struct child_options o = { .argv = argv, .cwd_fd = -1, .pdeathsig = SIGKILL };

	r = child_spawn(&o, &sc->pid, &pidfd);
	if (r < 0) {
		sc->pid = 0;
		(void)error_errno(err, r, "start mkfs.ext4");
		goto fail;
	}
	r = loop_pidfd_watch(s->loop, pidfd, on_mkfs_exit, sc, &sc->watch);
	if (r < 0) {
		(void)close(pidfd);
		reap(sc);
	}
	*ret = sc;
	return 0;
fail:
	scratch_free(sc);
	return r;
}

void scratch_when_ready(struct scratch *sc, sandbox_done_fn done, void *arg)
{
	if (sc->pid) {
		sc->done = done;
		sc->arg = arg;
		return;
	}
	done(arg, sc->failure.code ? &sc->failure : NULL);
}

const char *scratch_path(const struct scratch *sc)
{
	return sc->path;
}

void scratch_free(struct scratch *sc)
{
	struct error err = { 0 };

	if (!sc)
		return;
	loop_pidfd_cancel(sc->watch);
	if (sc->pid) {
		(void)kill(sc->pid, SIGKILL);
		reap(sc);
	}
	if (sc->path)
		(void)unlink(sc->path);
	if (sc->done) {
		(void)error_set(&err, -ECANCELED, "the container has been given up");
		sc->done(sc->arg, &err);
	}
	free(sc->path);
	free(sc);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks for what containers write: mkfs.ext4 fills a sparse file while the VM boots, without a
 * journal, since nothing of it survives the sandbox; then it is put on the VM's shelf.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sandbox/gate.h"
#include "sandbox/handover.h"

struct scratch {
	struct sandbox *s;
	unsigned refs; /* the owner's, and that of an attach under way */
	char *path;
	pid_t pid;     /* of mkfs.ext4; 0: it has ended */
	struct loop_pidfd *watch;
	struct disk disk;
	bool dead;
	struct gate gate;
};

static void unref(struct scratch *sc)
{
	if (--sc->refs)
		return;
	free(sc->path);
	free(sc);
}

static void on_attached(void *arg, const struct error *err)
{
	struct scratch *sc = arg;

	if (!sc->dead)
		gate_settle(&sc->gate, err);
	unref(sc);
}

static void attach(struct scratch *sc, const struct error *failure)
{
	const struct vmm_disk what = { .path = sc->path, .ephemeral = true };
	struct error err = { 0 };

	sc->refs++;
	if (!failure && disk_attach(sc->s, &sc->disk, "scratch", &what, on_attached, sc, &err) == 0)
		return;
	gate_settle(&sc->gate, failure ? failure : &err);
	unref(sc);
}

static void reap(struct scratch *sc, struct error *err)
{
	int status = 0, r;

	r = child_wait(sc->pid, &status);
	sc->pid = 0;
	if (r < 0)
		(void)error_errno(err, r, "make a writable layer");
	else if (child_exit_code(status) != 0)
		(void)error_set(err, -EIO,
				"mkfs.ext4 could not make the writable layer '%s' (exit status %d)",
				sc->path, child_exit_code(status));
}

static void on_mkfs_exit(void *arg)
{
	struct scratch *sc = arg;
	struct error err = { 0 };

	sc->watch = NULL;
	reap(sc, &err);
	attach(sc, err.code ? &err : NULL);
}

static int make_file(struct scratch *sc, uint64_t size, struct error *err)
{
	auto_close int fd = -1;
	int r;

	sc->path = str_printf("%s/%u.ext4", sc->s->record.scratch, sc->s->next_serial++);
	if (!sc->path)
		return error_set(err, -ENOMEM, "out of memory");
	r = fsutil_mkdir_p(sc->s->record.scratch, 0700);
	if (r < 0)
		return error_errno(err, r, "make '%s'", sc->s->record.scratch);
	fd = open(sc->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
		return error_errno(err, -errno, "make '%s'", sc->path);
	return 0;
}

int scratch_new(struct sandbox *s, uint64_t size, struct scratch **ret, struct error *err)
{
	struct scratch *sc = calloc(1, sizeof(*sc));
	int pidfd = -1, r;

	if (!sc)
		return error_set(err, -ENOMEM, "out of memory");
	sc->refs = 1;
	sc->s = s;
	r = make_file(sc, size, err);
	if (r < 0)
		goto fail;

	const char *const argv[] = {
		"mkfs.ext4", "-q", "-F", "-m", "0",
		"-O", "^has_journal,^resize_inode,sparse_super2",
		"-E", "lazy_itable_init=1,nodiscard,packed_meta_blocks=1,num_backup_sb=0",
		sc->path, NULL,
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
		reap(sc, err);
		attach(sc, err->code ? err : NULL);
	}
	*ret = sc;
	return 0;
fail:
	scratch_free(sc);
	return r;
}

void scratch_when_ready(struct scratch *sc, sandbox_done_fn done, void *arg)
{
	gate_wait(&sc->gate, done, arg);
}

bool scratch_failed(const struct scratch *sc)
{
	return gate_failed(&sc->gate);
}

bool scratch_busy(const struct scratch *sc)
{
	return !sc->gate.open;
}

HandoverScratch *scratch_save(const struct scratch *sc, struct arena *a)
{
	HandoverScratch *m = HANDOVER_NEW(a, HandoverScratch, caisson__handover__v1__scratch__init);

	if (m) {
		m->path = handover_text(sc->path);
		m->disk = handover_disk(a, &sc->disk);
		m->failure = handover_failure(a, &sc->gate.failure);
	}
	return m;
}

int scratch_restore(struct sandbox *s, const HandoverScratch *m, struct scratch **ret)
{
	struct scratch *sc = calloc(1, sizeof(*sc));
	int r = sc ? handover_copy(&sc->path, m->path) : -ENOMEM;

	if (r == 0)
		r = handover_get_disk(m->disk, &sc->disk);
	if (r < 0) {
		if (sc)
			free(sc->path);
		free(sc);
		return r;
	}
	sc->refs = 1;
	sc->s = s;
	sc->gate.open = true;
	handover_get_failure(m->failure, &sc->gate.failure);
	*ret = sc;
	return 0;
}

const struct disk *scratch_disk(const struct scratch *sc)
{
	return &sc->disk;
}

void scratch_free(struct scratch *sc)
{
	struct error err = { 0 };

	if (!sc)
		return;
	sc->dead = true;
	loop_pidfd_cancel(sc->watch);
	if (sc->pid) {
		(void)kill(sc->pid, SIGKILL);
		reap(sc, &err);
	}
	disk_detach(sc->s, &sc->disk);
	if (sc->path)
		(void)unlink(sc->path);
	err = (struct error){ 0 };
	(void)error_set(&err, -ECANCELED, "the container has been given up");
	gate_settle(&sc->gate, &err);
	unref(sc);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks for what containers write: mkfs.ext4 fills a sparse file while the VM boots, without a
 * journal, since nothing of it survives a crash; then it is put on the VM's shelf. One that was kept
 * from an earlier sandbox is looked through by e2fsck instead, which is quick if it was unmounted.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/sparse.h"
#include "oci/oci.h"
#include "sandbox/gate.h"
#include "sandbox/handover.h"

#define FSCK_REPAIRED 2 /* and better: 1, 0 */

struct scratch {
	struct sandbox *s;
	unsigned refs; /* the owner's, and that of an attach under way */
	char *path;
	char *making;  /* the file's name until it is whole, or NULL */
	bool kept;
	pid_t pid;     /* of mkfs.ext4 or e2fsck; 0: it has ended */
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
	free(sc->making);
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
	int status = 0, r, code;

	r = child_wait(sc->pid, &status);
	sc->pid = 0;
	code = child_exit_code(status);
	if (r < 0)
		(void)error_errno(err, r, "make a writable layer");
	else if (sc->making && code != 0)
		(void)error_set(err, -EIO,
				"mkfs.ext4 could not make the writable layer '%s' (exit status %d)",
				sc->path, code);
	else if (sc->making && !str_eq(sc->making, sc->path) && rename(sc->making, sc->path) < 0)
		(void)error_errno(err, -errno, "rename '%s'", sc->making);
	else if (!sc->making && code > FSCK_REPAIRED)
		(void)error_set(err, -EIO,
				"e2fsck could not repair the writable layer '%s' (exit status %d)",
				sc->path, code);
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

	if (sc->kept) {
		sc->making = str_printf("%s.new", sc->path);
		(void)unlink(sc->making ? sc->making : "");
	} else {
		sc->path = str_printf("%s/%u.ext4", sc->s->record.scratch, sc->s->next_serial++);
		sc->making = sc->path ? strdup(sc->path) : NULL;
		r = fsutil_mkdir_p(sc->s->record.scratch, 0700);
		if (r < 0)
			return error_errno(err, r, "make '%s'", sc->s->record.scratch);
	}
	if (!sc->making)
		return error_set(err, -ENOMEM, "out of memory");
	fd = open(sc->making, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
		return error_errno(err, -errno, "make '%s'", sc->making);
	return 0;
}

/* Takes @kept, the path of a file that stays; NULL: one of the sandbox's own. */
static int scratch_make(struct sandbox *s, uint64_t size, char *kept, struct scratch **ret,
			struct error *err)
{
	struct scratch *sc = calloc(1, sizeof(*sc));
	int pidfd = -1, r = 0;

	if (!sc) {
		free(kept);
		return error_set(err, -ENOMEM, "out of memory");
	}
	sc->refs = 1;
	sc->s = s;
	sc->path = kept;
	sc->kept = kept;
	if (!kept || access(kept, F_OK) < 0)
		r = make_file(sc, size, err);
	if (r < 0)
		goto fail;

	const char *const make[] = {
		"mkfs.ext4", "-q", "-F", "-m", "0",
		"-O", "^has_journal,^resize_inode,sparse_super2",
		"-E", "lazy_itable_init=1,nodiscard,packed_meta_blocks=1,num_backup_sb=0",
		sc->making, NULL,
	};
	const char *const check[] = { "e2fsck", "-y", sc->path, NULL };
	const char *const *argv = sc->making ? make : check;
	const struct child_options o = { .argv = argv, .cwd_fd = -1, .pdeathsig = SIGKILL };

	r = child_spawn(&o, &sc->pid, &pidfd);
	if (r < 0) {
		sc->pid = 0;
		(void)error_errno(err, r, "start %s", argv[0]);
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

int scratch_new(struct sandbox *s, uint64_t size, struct scratch **ret, struct error *err)
{
	return scratch_make(s, size, NULL, ret, err);
}

int scratch_of_spec(struct sandbox *s, const Grpc__Spec *spec, struct scratch **ret,
		    struct error *err)
{
	const char *path = str_eq(s->ns, SANDBOX_OWN_NAMESPACE) ?
				   oci_annotation_get(spec, SANDBOX_SCRATCH) : NULL;
	char *kept;

	if (str_empty(path) || path[0] != '/')
		return scratch_make(s, s->config->scratch_size, NULL, ret, err);
	kept = strdup(path);
	if (!kept)
		return error_set(err, -ENOMEM, "out of memory");
	/* The guest unmounts it before the machine ends. */
	s->has_lasting_disk = true;
	return scratch_make(s, s->config->scratch_size, kept, ret, err);
}

bool scratch_is_kept(const struct scratch *sc)
{
	return sc->kept;
}

int scratch_copy(struct sandbox *s, int from, const char *serial, unsigned part,
		 sandbox_done_fn done, void *arg, struct scratch **ret, struct error *err)
{
	struct vmm_disk what = { .ephemeral = true, .part = part };
	struct scratch *sc = calloc(1, sizeof(*sc));
	auto_close int to = -1;
	int r;

	if (!sc)
		return error_set(err, -ENOMEM, "out of memory");
	sc->refs = 1;
	sc->s = s;
	r = make_file(sc, 0, err);
	if (r == 0) {
		to = open(sc->path, O_RDWR | O_CLOEXEC);
		r = to < 0 ? -errno : sparse_copy(from, to);
		if (r < 0)
			(void)error_errno(err, r, "copy what the container wrote to '%s'", sc->path);
	}
	if (r == 0) {
		what.path = sc->path;
		sc->refs++;
		r = disk_attach_again(s, &sc->disk, serial, &what, on_attached, sc, err);
		if (r < 0)
			sc->refs--;
		else
			gate_wait(&sc->gate, done, arg);
	}
	if (r < 0) {
		scratch_free(sc);
		return r;
	}
	*ret = sc;
	return 0;
}

const char *scratch_path(const struct scratch *sc)
{
	return sc->path;
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
	sc->kept = s->record.scratch && !str_has_prefix(sc->path, s->record.scratch);
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
	if (sc->path && !sc->kept)
		(void)unlink(sc->path);
	if (sc->making)
		(void)unlink(sc->making);
	err = (struct error){ 0 };
	(void)error_set(&err, -ECANCELED, "the container has been given up");
	gate_settle(&sc->gate, &err);
	unref(sc);
}

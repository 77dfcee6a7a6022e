/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frees a sandbox from its directory alone, whichever of its processes died when. The order is:
 * processes first (they could make new things), files next, the directory and its record last, so
 * that a reclaim that is itself killed can be repeated.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"
#include "sandbox/hooks.h"
#include "sandbox/record.h"
#include "sandbox/sandbox.h"
#include "vmm/vmm.h"

#define KILL_WAIT_MS   5000
#define LOGGER_WAIT_MS 1000

static int kill_and_wait(const struct child_id *id, const char *what, struct error *err)
{
	int r;

	if (id->pid <= 1 || id->pid == getpid())
		return 0;
	r = child_id_kill(id, SIGKILL, KILL_WAIT_MS);
	if (r < 0 && r != -ESRCH)
		return error_errno(err, r, "end %s (process %d)", what, (int)id->pid);
	return 0;
}

/* Keeps the first error; the rest is still tried. */
static void keep(int r, const struct error *e, int *first, struct error *err)
{
	if (r >= 0 || *first < 0)
		return;
	*first = r;
	if (err)
		*err = *e;
}

int sandbox_reclaim(const char *dir, struct error *err)
{
	auto_free char *vm_dir = str_join_path(dir, SANDBOX_VM_DIR);
	auto_close int lock = -1;
	struct error e = { 0 };
	struct sandbox_record rec = { 0 };
	int r, first = 0;

	if (!vm_dir)
		return error_set(err, -ENOMEM, "out of memory");
	lock = open(dir, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
	if (lock < 0)
		return errno == ENOENT ? 0 : error_errno(err, -errno, "open '%s'", dir);
	/* Two at once would trip over each other's removals. */
	while (flock(lock, LOCK_EX) < 0)
		if (errno != EINTR)
			return error_errno(err, -errno, "lock '%s'", dir);

	r = sandbox_record_read(dir, &rec, &e);
	if (r < 0 && r != -ENOENT)
		log_warn("%s", error_text(&e));

	keep(kill_and_wait(&rec.shim, "the shim", &e), &e, &first, err);
	if (access(vm_dir, F_OK) == 0)
		keep(vmm_reclaim(vm_dir, &e), &e, &first, err);
	/* Their pipes are closed by now: they end by themselves, unless they hang. */
	for (size_t i = 0; i < rec.n_children; i++)
		(void)!child_id_kill(&rec.children[i], SIGCONT, LOGGER_WAIT_MS);
	for (size_t i = 0; i < rec.n_children; i++)
		keep(kill_and_wait(&rec.children[i], "a helper process", &e), &e, &first, err);

	/* With the machine gone and its network still there, as after an end of the container's own. */
	hooks_run_late(dir);
	if (rec.net)
		keep(net_release(rec.net, &e), &e, &first, err);
	if (rec.socket && unlink(rec.socket) < 0 && errno != ENOENT && errno != ENOTDIR)
		keep(error_errno(&e, -errno, "remove '%s'", rec.socket), &e, &first, err);
	if (rec.scratch) {
		r = fsutil_remove_tree(AT_FDCWD, rec.scratch);
		if (r < 0)
			keep(error_errno(&e, r, "remove '%s'", rec.scratch), &e, &first, err);
	}
	if (first == 0) {
		/* Everything but the record, then the record with the directory. */
		if (access(vm_dir, F_OK) == 0)
			(void)!fsutil_remove_tree(AT_FDCWD, vm_dir);
		r = fsutil_remove_tree(AT_FDCWD, dir);
		if (r < 0)
			keep(error_errno(&e, r, "remove '%s'", dir), &e, &first, err);
	}
	sandbox_record_fini(&rec);
	return first;
}

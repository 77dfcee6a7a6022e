#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/fsutil.h"
#include "base/str.h"
#include "vmm/cgroup.h"
#include "vmm/record.h"
#include "vmm/spawn.h"
#include "vmm/uid.h"
#include "vmm/vmm.h"

#define KILL_WAIT_MS 10000

static int end_processes(const struct record *rec, struct error *err)
{
	struct record now;
	int r = record_init(&now, err);

	if (r < 0)
		return r;
	/* After a reboot the pid is somebody else's, whatever its start time. */
	if (rec->vmm.pid > 0 && str_eq(rec->boot_id, now.boot_id)) {
		/* The first process of its pid namespace: QEMU ends with it, before it. */
		r = child_id_kill(&rec->vmm, SIGKILL, KILL_WAIT_MS);
		if (r < 0 && r != -ESRCH)
			return error_errno(err, r, "end caisson-vmm (pid %d)", rec->vmm.pid);
		r = 0;
	}
	/* Cgroups of ours, whatever the file says. */
	if (strstr(rec->cgroup, "/caisson-"))
		r = cgroup_destroy(rec->cgroup, err);
	if (r == 0 && strstr(rec->later, "/caisson-"))
		r = cgroup_destroy(rec->later, err);
	if (r == 0 && strstr(rec->groups, "/caisson-"))
		r = cgroup_v1_destroy(rec->groups, err);
	return r;
}

static int remove_sockets(int dirfd, struct error *err)
{
	auto_closedir DIR *d = NULL;
	struct dirent *e;
	int r = fd_opendir(dirfd, ".", &d);

	if (r < 0)
		return error_errno(err, r, "read the VM's directory");
	while ((e = readdir(d)))
		if ((str_eq(e->d_name, SPAWN_SOCK_CONTROL) || str_eq(e->d_name, SPAWN_SOCK_FDS) ||
		     str_eq(e->d_name, SPAWN_SOCK_VSOCK) ||
		     str_has_prefix(e->d_name, SPAWN_SOCK_VSOCK "_") ||
		     str_has_prefix(e->d_name, VMM_SOCK_NIC) ||
		     str_has_prefix(e->d_name, ".tmp-")) &&
		    unlinkat(dirfd, e->d_name, 0) < 0 && errno != ENOENT)
			return error_errno(err, -errno, "remove '%s'", e->d_name);
	return 0;
}

pid_t vmm_running(const char *dir)
{
	auto_close int dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct record rec, now;

	if (dirfd < 0 || record_read(dirfd, &rec, NULL) < 0 || record_init(&now, NULL) < 0 ||
	    !str_eq(rec.boot_id, now.boot_id) || !child_id_alive(&rec.vmm))
		return 0;
	return rec.vmm.pid;
}

int vmm_reclaim(const char *dir, struct error *err)
{
	auto_close int dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct record rec = { 0 };
	int r;

	if (dirfd < 0)
		return errno == ENOENT ? 0 : error_errno(err, -errno, "open '%s'", dir);
	r = record_read(dirfd, &rec, err);
	if (r < 0 && r != -ENOENT && r != -EBADMSG)
		return r;
	if (r == 0) {
		r = end_processes(&rec, err);
		if (r < 0)
			return r;
	}
	if (r == 0) {
		r = uid_release(dirfd, &rec, err);
		if (r < 0)
			return r;
	}
	error_clear(err);
	if (unlinkat(dirfd, "jail", AT_REMOVEDIR) < 0 && errno != ENOENT)
		return error_errno(err, -errno, "remove the mount point '%s/jail'", dir);
	r = remove_sockets(dirfd, err);
	if (r < 0)
		return r;
	/* Last: as long as it is there, this can be repeated. */
	if (unlinkat(dirfd, RECORD_NAME, 0) < 0 && errno != ENOENT)
		return error_errno(err, -errno, "remove '%s'", RECORD_NAME);
	return 0;
}

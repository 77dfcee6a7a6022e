#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"
#include "vmm/cgroup.h"
#include "vmm/client_priv.h"
#include "vmm/record.h"
#include "vmm/sock.h"
#include "vmm/spawn.h"

/* caisson-vmm has told of the end and must follow it soon. */
#define LEAVE_MS 2000u
/* Its process has ended: time to read what it told before, if it did. */
#define LAST_WORDS_MS 20u

void vmm_client_free(struct vmm *v)
{
	if (!v)
		return;
	loop_timer_cancel(take_ptr(&v->leave));
	loop_pidfd_cancel(take_ptr(&v->watch));
	ttrpc_client_close(take_ptr(&v->client));
	cleanup_close_(&v->pidfd);
	cleanup_close_(&v->dirfd);
	free(v->dir);
	free(v->text);
	free(v);
}

struct vmm *vmm_client_new(uv_loop_t *loop, const char *dir, const struct vmm_events *events,
			   void *ctx, struct error *err)
{
	struct vmm *v = calloc(1, sizeof(*v));

	if (v) {
		v->loop = loop;
		v->events = *events;
		v->ctx = ctx;
		v->pidfd = -1;
		v->dir = strdup(dir);
		v->dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	}
	if (!v || !v->dir || v->dirfd < 0) {
		if (v && v->dir)
			(void)error_errno(err, -errno, "open '%s'", dir);
		else
			(void)error_set(err, -ENOMEM, "no memory for a VM");
		vmm_client_free(v);
		return NULL;
	}
	return v;
}

/* --- the end --- */

static char *how_it_died(const struct vmm *v, int status)
{
	if (!v->is_child)
		return strdup("caisson-vmm has gone");
	if (WIFSIGNALED(status))
		return str_printf("caisson-vmm was killed by signal %d", WTERMSIG(status));
	return str_printf("caisson-vmm ended with code %d", WEXITSTATUS(status));
}

static bool killed_for_memory(const struct vmm *v)
{
	struct record rec;

	return record_read(v->dirfd, &rec, NULL) == 0 && cgroup_oom_killed(rec.cgroup, rec.groups);
}

static void finish(void *arg)
{
	struct vmm *v = arg;
	struct error err = { 0 };
	auto_free char *text = NULL;
	enum vmm_exit reason = v->reason;

	v->leave = NULL;
	ttrpc_client_close(take_ptr(&v->client));
	if (v->told) {
		text = take_ptr(&v->text);
	} else {
		reason = v->killed ? VMM_EXIT_STOPPED : VMM_EXIT_LOST;
		text = v->killed ? strdup("killed") : how_it_died(v, v->status);
	}
	if (reason >= VMM_EXIT_START && killed_for_memory(v))
		reason = VMM_EXIT_OOM;
	if (vmm_reclaim(v->dir, &err) < 0)
		log_warn("%s", error_text(&err));
	if (v->events.exited)
		v->events.exited(v, reason, text ? text : "out of memory", v->ctx);
}

static void process_ended(void *arg)
{
	struct vmm *v = arg;

	v->watch = NULL;
	v->gone = true;
	if (v->is_child)
		(void)!child_wait(v->id.pid, &v->status);
	loop_timer_cancel(take_ptr(&v->leave));
	/* Its answer may be unread yet: what it told counts more than how it ended. */
	if (v->told || v->killed || !v->client ||
	    loop_timer_start(v->loop, LAST_WORDS_MS, finish, v, &v->leave) < 0)
		finish(v);
}

static void leave_overdue(void *arg)
{
	struct vmm *v = arg;

	v->leave = NULL;
	(void)child_pidfd_signal(v->pidfd, SIGKILL);
}

static void wait_exit_done(void *arg, const struct ttrpc_result *res)
{
	struct vmm *v = arg;
	Caisson__Vmm__V1__WaitResponse *end = NULL;
	struct error err = { 0 };

	if (ttrpc_result_unpack(res, &caisson__vmm__v1__wait_response__descriptor, &end, &err) < 0) {
		/* The connection broke: the process's end will tell. */
		if (v->client && !v->gone && !v->leave)
			(void)!loop_timer_start(v->loop, LEAVE_MS, leave_overdue, v, &v->leave);
		return;
	}
	v->told = true;
	v->reason = end->reason <= VMM_EXIT_LOST ? (enum vmm_exit)end->reason : VMM_EXIT_CRASH;
	v->text = strdup(end->text);
	protobuf_c_message_free_unpacked(&end->base, NULL);
	if (!v->gone)
		(void)!loop_timer_start(v->loop, LEAVE_MS, leave_overdue, v, &v->leave);
	/* caisson-vmm leaves when its callers have hung up. */
	ttrpc_client_close(take_ptr(&v->client));
}

/* QEMU is the one child of caisson-vmm. */
static pid_t child_of(pid_t pid)
{
	auto_free char *text = NULL;
	char path[64];

	(void)snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, pid);
	return fd_read_file(AT_FDCWD, path, 4096, &text, NULL) == 0 ? (pid_t)atoi(text) : 0;
}

void vmm_client_limit_cpu(struct vmm *v, uint32_t vcpus)
{
	struct record rec;
	struct error err = { 0 };

	if (record_read(v->dirfd, &rec, &err) < 0 || !*rec.cgroup)
		return;
	if (cgroup_limit_cpu(rec.cgroup, vcpus, &err) < 0)
		log_debug("%s", error_text(&err));
}

void vmm_booted(struct vmm *v)
{
	struct record rec;
	struct error err = { 0 };

	if (record_read(v->dirfd, &rec, &err) < 0)
		return;
	if (*rec.groups)
		cgroup_v1_enter_cpu(rec.groups);
	if (!*rec.later)
		return;
	if (cgroup_move(rec.cgroup, rec.later, &err) < 0) {
		log_warn("%s", error_text(&err));
		return;
	}
	memcpy(rec.cgroup, rec.later, sizeof(rec.cgroup));
	rec.later[0] = '\0';
	if (record_write(v->dirfd, &rec, &err) < 0)
		log_warn("%s", error_text(&err));
}

static void wait_started_done(void *arg, const struct ttrpc_result *res)
{
	struct vmm *v = arg;
	Caisson__Vmm__V1__InfoResponse *msg = NULL;
	struct vmm_info info;

	if (ttrpc_result_unpack(res, &caisson__vmm__v1__info_response__descriptor, &msg, NULL) < 0)
		return; /* it will not start: WaitExit brings the reason */
	info = (struct vmm_info){
		.machine = (enum vmm_machine)msg->machine,
		.accel = (enum vmm_accel)msg->accel,
		.vmm_pid = v->id.pid,
		.qemu_pid = child_of(v->id.pid),
	};
	info.memory_mib = msg->memory_mib;
	info.vcpus = msg->vcpus;
	info.vcpus_max = msg->vcpus_max;
	for (; info.n_spare < msg->n_spare && info.n_spare < VMM_MAX_SPARE; info.n_spare++)
		info.spare[info.n_spare] = (struct vmm_range){ msg->spare[info.n_spare]->start,
							       msg->spare[info.n_spare]->size };
	protobuf_c_message_free_unpacked(&msg->base, NULL);
	/* The boot itself was not limited. One that was attached to may have been resized since. */
	if (v->is_child && info.vcpus_max > info.vcpus)
		vmm_client_limit_cpu(v, info.vcpus);
	if (v->events.started)
		v->events.started(v, &info, v->ctx);
}

int vmm_client_join(struct vmm *v, struct error *err)
{
	Caisson__Vmm__V1__Empty empty = CAISSON__VMM__V1__EMPTY__INIT;
	int fd = sock_connect_at(v->dirfd, SPAWN_SOCK_CONTROL, SOCK_STREAM, err);
	int r;

	if (fd < 0)
		return fd;
	r = ttrpc_client_new(v->loop, fd, &v->client);
	if (r < 0) {
		(void)close(fd);
		return error_errno(err, r, "talk to caisson-vmm");
	}
	r = ttrpc_client_call_msg(v->client, SPAWN_SERVICE, "WaitStarted", &empty.base, 0, NULL,
				  wait_started_done, v, NULL);
	if (r == 0)
		r = ttrpc_client_call_msg(v->client, SPAWN_SERVICE, "WaitExit", &empty.base, 0,
					  NULL, wait_exit_done, v, NULL);
	return r < 0 ? error_errno(err, r, "talk to caisson-vmm") : 0;
}

int vmm_client_watch(struct vmm *v, int pidfd, struct error *err)
{
	int r;

	v->pidfd = fcntl(pidfd, F_DUPFD_CLOEXEC, 3);
	r = v->pidfd < 0 ? -errno : loop_pidfd_watch(v->loop, pidfd, process_ended, v, &v->watch);
	if (r < 0) {
		(void)close(pidfd);
		return error_errno(err, r, "watch caisson-vmm");
	}
	return 0;
}

/* Started by this process before it became another program. */
static bool is_child(pid_t pid)
{
	siginfo_t info;

	return pid > 0 && waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0;
}

int vmm_attach(uv_loop_t *loop, const char *dir, const struct vmm_events *events, void *ctx,
	       struct vmm **ret_vmm, struct error *err)
{
	struct vmm *v = vmm_client_new(loop, dir, events, ctx, err);
	struct record rec, now;
	int pidfd, r;

	if (!v)
		return err && err->code ? err->code : -ENOMEM;
	r = record_read(v->dirfd, &rec, err);
	if (r == 0)
		r = record_init(&now, err);
	if (r == 0) {
		pidfd = str_eq(rec.boot_id, now.boot_id) ? child_id_open(&rec.vmm) : -ESRCH;
		v->id = rec.vmm;
		v->is_child = is_child(rec.vmm.pid);
		if (pidfd < 0 || !child_id_alive(&rec.vmm)) {
			cleanup_close_(&pidfd);
			r = error_set(err, -ESRCH, "no VM runs in '%s'", dir);
		} else {
			r = vmm_client_watch(v, pidfd, err);
		}
	} else if (r == -ENOENT) {
		r = error_set(err, -ESRCH, "no VM runs in '%s'", dir);
	}
	if (r == 0)
		r = vmm_client_join(v, err);
	if (r < 0) {
		vmm_client_free(v);
		return r;
	}
	*ret_vmm = v;
	return 0;
}

struct closing {
	uv_idle_t idle;
	void (*cb)(void *ctx);
	void *ctx;
};

static void closing_done(uv_handle_t *handle)
{
	struct closing *c = handle->data;

	c->cb(c->ctx);
	free(c);
}

void vmm_close(struct vmm *v, void (*cb)(void *ctx), void *ctx)
{
	struct closing *c;

	if (!v) {
		if (cb)
			cb(ctx);
		return;
	}
	/* A handle of ours that is closed after the others tells that the loop is done with them.
	 */
	c = cb ? malloc(sizeof(*c)) : NULL;
	if (c) {
		*c = (struct closing){ .cb = cb, .ctx = ctx };
		(void)uv_idle_init(v->loop, &c->idle);
		c->idle.data = c;
	}
	vmm_client_free(v);
	if (c)
		uv_close((uv_handle_t *)&c->idle, closing_done);
	else if (cb)
		cb(ctx);
}

bool vmm_busy(const struct vmm *v)
{
	/* The wait for its end is always there. */
	return !v->client || v->told || v->gone || ttrpc_client_in_flight(v->client) > 1;
}

int vmm_connection(struct vmm *v)
{
	struct ttrpc_saved st;

	return v->client && ttrpc_client_save(v->client, &st) == 0 ? st.fd : -1;
}

pid_t vmm_pid(const struct vmm *v)
{
	return v->id.pid;
}

void vmm_kill(struct vmm *v)
{
	v->killed = true;
	(void)child_pidfd_signal(v->pidfd, SIGKILL);
}

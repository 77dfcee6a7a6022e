#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/child.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/fsutil.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/str.h"
#include "ttrpc/ttrpc_uv.h"
#include "vmm/cgroup.h"
#include "vmm/config.h"
#include "vmm/record.h"
#include "vmm/sock.h"
#include "vmm/spawn.h"
#include "vmm/vmm.h"

#define CALL_NS  (UINT64_C(30) * 1000 * 1000 * 1000)
/* caisson-vmm has told of the end and must follow it soon. */
#define LEAVE_MS 2000u
/* Its process has ended: time to read what it told before, if it did. */
#define LAST_WORDS_MS 20u

struct vmm {
	uv_loop_t *loop;
	struct vmm_events events;
	void *ctx;
	char *dir;
	int dirfd;
	struct child_id id;
	bool is_child;
	int pidfd;
	struct loop_pidfd *watch;
	struct loop_timer *leave;
	struct ttrpc_client *client;
	bool killed;
	bool gone;              /* the process has ended, with status */
	int status;
	bool told;              /* reason and text are known */
	enum vmm_exit reason;
	char *text;
};

/* A request on its way. */
struct op {
	struct vmm *vmm;
	vmm_done_fn done;
	vmm_text_fn text;
	vmm_disk_fn disk;
	void *ctx;
};

static void vmm_destroy(struct vmm *v)
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

static struct vmm *vmm_new(uv_loop_t *loop, const char *dir, const struct vmm_events *events,
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
		vmm_destroy(v);
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

	if (ttrpc_result_unpack(res, &caisson__vmm__v1__wait_response__descriptor, &end, &err) < 0)
		return; /* the connection broke: the process's end will tell */
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

/* More time than so many processors have: the devices' threads need some, too. */
static void limit_cpu(struct vmm *v, uint32_t vcpus)
{
	struct record rec;
	struct error err = { 0 };

	if (record_read(v->dirfd, &rec, &err) < 0 || !*rec.cgroup)
		return;
	if (cgroup_limit_cpu(rec.cgroup, vcpus, &err) < 0)
		log_debug("%s", error_text(&err));
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
		info.spare[info.n_spare] = (struct vmm_range){
			msg->spare[info.n_spare]->start, msg->spare[info.n_spare]->size
		};
	protobuf_c_message_free_unpacked(&msg->base, NULL);
	/* The boot itself was not limited. One that was attached to may have been resized since. */
	if (v->is_child && info.vcpus_max > info.vcpus)
		limit_cpu(v, info.vcpus);
	if (v->events.started)
		v->events.started(v, &info, v->ctx);
}

/* Connects, and asks for the two events. */
static int join(struct vmm *v, struct error *err)
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

/* Takes @pidfd, also on failure. */
static int watch(struct vmm *v, int pidfd, struct error *err)
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

/* --- start --- */

static int program_path(const struct vmm_config *cfg, char **ret_path, struct error *err)
{
	auto_free char *dir = NULL;
	int r;

	if (cfg->program) {
		*ret_path = strdup(cfg->program);
	} else {
		r = fsutil_own_dir(&dir);
		if (r < 0)
			return error_errno(err, r, "find the folder of this program");
		*ret_path = str_join_path(dir, SPAWN_PROGRAM);
	}
	if (!*ret_path)
		return error_set(err, -ENOMEM, "no memory for a path");
	if (access(*ret_path, X_OK) < 0)
		return error_errno(err, -errno, "the program '%s'", *ret_path);
	return 0;
}

static int send_config(int fd, const uint8_t *data, size_t len, struct error *err)
{
	auto_free uint8_t *frame = malloc(len + 4);
	int r;

	if (!frame)
		return error_set(err, -ENOMEM, "no memory for the VM's configuration");
	store_le32(frame, (uint32_t)len);
	memcpy(frame + 4, data, len);
	/* Smaller than a pipe holds: does not block. */
	r = fd_write_full(fd, frame, len + 4);
	return r < 0 ? error_errno(err, r, "hand caisson-vmm its configuration") : 0;
}

/* Sockets first: whoever sees the process may connect. */
struct start_fds {
	int config_read, config_write;
	int control, descriptors, vsock;
	int cgroup;
	int vhost[VMM_MAX_NICS * VMM_MAX_QUEUES];
	size_t n_vhost;
};

static void start_fds_fini(struct start_fds *f)
{
	cleanup_close_(&f->config_read);
	cleanup_close_(&f->config_write);
	cleanup_close_(&f->control);
	cleanup_close_(&f->descriptors);
	cleanup_close_(&f->vsock);
	cleanup_close_(&f->cgroup);
	for (size_t i = 0; i < f->n_vhost; i++)
		cleanup_close_(&f->vhost[i]);
}

static int open_vhost(const struct vmm_config *cfg, struct start_fds *f, struct error *err)
{
	for (size_t i = 0; i < cfg->n_nics; i++)
		for (size_t k = 0; k < cfg->nics[i].n_fds && cfg->nics[i].kind == VMM_NIC_TAP; k++) {
			int fd = open(CONFIG_VHOST_NET, O_RDWR | O_CLOEXEC);

			if (fd < 0)
				return error_errno(err, -errno, "open " CONFIG_VHOST_NET);
			f->vhost[f->n_vhost++] = fd;
		}
	return 0;
}

static int make_fds(struct vmm *v, const struct record *rec, struct start_fds *f,
		    struct error *err)
{
	int pipefd[2];

	if (pipe2(pipefd, O_CLOEXEC) < 0)
		return error_errno(err, -errno, "make a pipe");
	f->config_read = pipefd[0];
	f->config_write = pipefd[1];
	f->control = sock_listen_at(v->dirfd, SPAWN_SOCK_CONTROL, SOCK_STREAM, 16, err);
	if (f->control < 0)
		return f->control;
	f->descriptors = sock_listen_at(v->dirfd, SPAWN_SOCK_FDS, SOCK_DGRAM, 0, err);
	if (f->descriptors < 0)
		return f->descriptors;
	f->vsock = sock_listen_at(v->dirfd, SPAWN_SOCK_VSOCK, SOCK_STREAM, 128, err);
	if (f->vsock < 0)
		return f->vsock;
	/* A host may forbid it; the pid namespace holds the processes together all the same. */
	if (*rec->cgroup) {
		struct error why = { 0 };

		f->cgroup = cgroup_make(rec->cgroup, &why);
		if (f->cgroup < 0)
			log_debug("no cgroup for the VM: %s", error_text(&why));
	}
	return 0;
}

static int start_process(struct vmm *v, const struct vmm_config *cfg, const struct start_fds *f,
			 const char *program, int *ret_pidfd, struct error *err)
{
	char given[4] = "-";
	struct child_fd fds[10 + SPAWN_MAX_NIC_FDS];
	const char *const argv[] = { program, given, NULL };
	struct child_options o = {
		.argv = argv,
		.fds = fds,
		.cwd_fd = -1,
		.setsid = true,
		.keep_stderr = cfg->log_fd < 0,
		.clone_flags = CLONE_NEWPID,
		.cgroup_fd = f->cgroup,
	};
	char *p = given;
	int nic_fd = SPAWN_FD_NICS, r;

	fds[o.n_fds++] = (struct child_fd){ f->config_read, SPAWN_FD_CONFIG };
	fds[o.n_fds++] = (struct child_fd){ f->control, SPAWN_FD_CONTROL };
	fds[o.n_fds++] = (struct child_fd){ f->descriptors, SPAWN_FD_DESCRIPTORS };
	fds[o.n_fds++] = (struct child_fd){ f->vsock, SPAWN_FD_VSOCK };
	if (cfg->log_fd >= 0)
		fds[o.n_fds++] = (struct child_fd){ cfg->log_fd, STDERR_FILENO };
	if (cfg->console_fd >= 0) {
		fds[o.n_fds++] = (struct child_fd){ cfg->console_fd, SPAWN_FD_CONSOLE };
		*p++ = 'c';
	}
	if (cfg->netns_fd >= 0) {
		fds[o.n_fds++] = (struct child_fd){ cfg->netns_fd, SPAWN_FD_NETNS };
		*p++ = 'n';
	}
	for (size_t i = 0; i < cfg->n_nics; i++)
		for (size_t k = 0; k < cfg->nics[i].n_fds; k++)
			fds[o.n_fds++] = (struct child_fd){ cfg->nics[i].fds[k], nic_fd++ };
	for (size_t i = 0; i < f->n_vhost; i++)
		fds[o.n_fds++] = (struct child_fd){ f->vhost[i], nic_fd++ };
	if (cfg->template_ram_fd >= 0) {
		fds[o.n_fds++] = (struct child_fd){ cfg->template_ram_fd, SPAWN_FD_RAM };
		fds[o.n_fds++] = (struct child_fd){ cfg->template_state_fd, SPAWN_FD_STATE };
		*p++ = 't';
	}
	r = child_spawn(&o, &v->id.pid, ret_pidfd);
	if (r < 0)
		return error_errno(err, r, "start '%s'", program);
	v->is_child = true;
	return 0;
}

/*
 * An id is unique among those of one run directory, and reclaiming kills what is in the cgroup: the
 * VM's directory makes its cgroup's name unique on the host.
 */
static int own_name(const struct vmm *v, const struct vmm_config *cfg, char **ret_name,
		    struct error *err)
{
	struct stat st;

	if (fstat(v->dirfd, &st) < 0)
		return error_errno(err, -errno, "'%s'", cfg->dir);
	*ret_name = str_printf("%s-%llx.%llx", cfg->id, (unsigned long long)st.st_dev,
			       (unsigned long long)st.st_ino);
	return *ret_name ? 0 : error_set(err, -ENOMEM, "no memory for the name of a VM");
}

/* Everything up to a recorded process that waits for its configuration. */
static int start(struct vmm *v, const struct vmm_config *cfg, struct start_fds *f, int *ret_pidfd,
		 struct error *err)
{
	auto_free char *program = NULL, *name = NULL;
	struct record rec;
	int r = program_path(cfg, &program, err);

	if (r == 0)
		r = record_init(&rec, err);
	if (r == 0)
		r = own_name(v, cfg, &name, err);
	if (r < 0)
		return r;
	r = -ENOENT;
	if (!str_empty(cfg->cgroup_parent))
		r = cgroup_path_below(cfg->cgroup_parent, name, rec.cgroup, sizeof(rec.cgroup));
	if (r < 0)
		r = cgroup_path(name, rec.cgroup, sizeof(rec.cgroup));
	if (r < 0)
		return error_errno(err, r, "name the VM's cgroup");
	r = record_write(v->dirfd, &rec, err);
	if (r == 0)
		r = make_fds(v, &rec, f, err);
	if (r == 0)
		r = start_process(v, cfg, f, program, ret_pidfd, err);
	if (r < 0)
		return r;
	r = child_identify(v->id.pid, &v->id);
	if (r < 0)
		return error_errno(err, r, "identify caisson-vmm");
	rec.vmm = v->id;
	return record_write(v->dirfd, &rec, err);
}

/* Ends what start() began. */
static void undo_start(struct vmm *v)
{
	struct error ignored = { 0 };
	int status;

	if (v->is_child) {
		(void)kill(v->id.pid, SIGKILL);
		(void)!child_wait(v->id.pid, &status);
	}
	if (vmm_reclaim(v->dir, &ignored) < 0)
		log_warn("%s", error_text(&ignored));
}

int vmm_spawn(uv_loop_t *loop, const struct vmm_config *cfg, const struct vmm_events *events,
	      void *ctx, struct vmm **ret_vmm, struct error *err)
{
	__attribute__((cleanup(start_fds_fini)))
	struct start_fds f = { -1, -1, -1, -1, -1, -1, { 0 }, 0 };
	auto_free uint8_t *config = NULL;
	size_t len = 0;
	struct vmm *v;
	int pidfd = -1;
	bool vhost = false;
	int r = config_pack(cfg, &config, &len, &vhost, err);

	if (r == 0 && vhost)
		r = open_vhost(cfg, &f, err);
	if (r < 0)
		return r;
	v = vmm_new(loop, cfg->dir, events, ctx, err);
	if (!v)
		return -ENOMEM;
	r = start(v, cfg, &f, &pidfd, err);
	if (r == 0)
		r = watch(v, take_fd(&pidfd), err);
	if (r == 0)
		r = join(v, err);
	if (r == 0)
		r = send_config(f.config_write, config, len, err);
	if (r < 0) {
		cleanup_close_(&pidfd);
		undo_start(v);
		vmm_destroy(v);
		return r;
	}
	*ret_vmm = v;
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
	struct vmm *v = vmm_new(loop, dir, events, ctx, err);
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
			r = watch(v, pidfd, err);
		}
	} else if (r == -ENOENT) {
		r = error_set(err, -ESRCH, "no VM runs in '%s'", dir);
	}
	if (r == 0)
		r = join(v, err);
	if (r < 0) {
		vmm_destroy(v);
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
	/* A handle of ours that is closed after the others tells that the loop is done with them. */
	c = cb ? malloc(sizeof(*c)) : NULL;
	if (c) {
		*c = (struct closing){ .cb = cb, .ctx = ctx };
		(void)uv_idle_init(v->loop, &c->idle);
		c->idle.data = c;
	}
	vmm_destroy(v);
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

/* --- requests --- */

static void op_done(void *arg, const struct ttrpc_result *res)
{
	struct op *op = arg;
	struct error err = { 0 };
	int r = ttrpc_result_error(res, &err);

	if (r < 0 && res->code == TTRPC_UNAVAILABLE)
		(void)error_set(&err, -ECONNRESET, "the VM has ended");
	if (op->text) {
		Caisson__Vmm__V1__ConsoleResponse *msg = NULL;

		if (r == 0)
			r = ttrpc_result_unpack(res, &caisson__vmm__v1__console_response__descriptor,
						&msg, &err);
		op->text(op->vmm, r < 0 ? &err : NULL, msg ? (const char *)msg->data.data : "",
			 msg ? msg->data.len : 0, op->ctx);
		if (msg)
			protobuf_c_message_free_unpacked(&msg->base, NULL);
	} else if (op->disk) {
		Caisson__Vmm__V1__DiskAttachResponse *msg = NULL;
		struct vmm_place place = { 0 };

		if (r == 0)
			r = ttrpc_result_unpack(res,
						&caisson__vmm__v1__disk_attach_response__descriptor,
						&msg, &err);
		if (msg) {
			place = (struct vmm_place){ msg->part, msg->start, msg->size };
			protobuf_c_message_free_unpacked(&msg->base, NULL);
		}
		op->disk(op->vmm, r < 0 ? &err : NULL, r < 0 ? NULL : &place, op->ctx);
	} else if (op->done) {
		op->done(op->vmm, r < 0 ? &err : NULL, op->ctx);
	}
	free(op);
}

/* Of @what, only callbacks and context count. */
static int request(struct vmm *v, const char *method, const ProtobufCMessage *msg,
		   const struct op *what)
{
	struct op *op;
	int r;

	if (!v->client)
		return -ECONNRESET;
	op = malloc(sizeof(*op));
	if (!op)
		return -ENOMEM;
	*op = *what;
	op->vmm = v;
	r = ttrpc_client_call_msg(v->client, SPAWN_SERVICE, method, msg, CALL_NS, NULL, op_done, op,
				  NULL);
	if (r < 0)
		free(op);
	return r;
}

static int simple(struct vmm *v, const char *method, vmm_done_fn cb, void *ctx)
{
	const Caisson__Vmm__V1__Empty empty = CAISSON__VMM__V1__EMPTY__INIT;

	return request(v, method, &empty.base, &(struct op){ .done = cb, .ctx = ctx });
}

int vmm_pause(struct vmm *v, vmm_done_fn cb, void *ctx)
{
	return simple(v, "Pause", cb, ctx);
}

int vmm_resume(struct vmm *v, vmm_done_fn cb, void *ctx)
{
	return simple(v, "Resume", cb, ctx);
}

int vmm_shutdown(struct vmm *v, vmm_done_fn cb, void *ctx)
{
	return simple(v, "Shutdown", cb, ctx);
}

int vmm_console(struct vmm *v, vmm_text_fn cb, void *ctx)
{
	const Caisson__Vmm__V1__Empty empty = CAISSON__VMM__V1__EMPTY__INIT;

	return request(v, "Console", &empty.base, &(struct op){ .text = cb, .ctx = ctx });
}

void vmm_kill(struct vmm *v)
{
	v->killed = true;
	(void)child_pidfd_signal(v->pidfd, SIGKILL);
}

static int send_fd(int sock, uint64_t token, int fd)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	uint8_t data[8];
	struct iovec iov = { .iov_base = data, .iov_len = sizeof(data) };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	store_le64(data, token);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	return sendmsg(sock, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* Sends a descriptor ahead of the call that names @ret_token. */
static int send_ahead(int sock, int fd, uint64_t *ret_token)
{
	/* Only pairs descriptor and call; who can reach the socket may do all this anyway. */
	if (getrandom(ret_token, sizeof(*ret_token), 0) != (ssize_t)sizeof(*ret_token))
		return -EIO;
	return send_fd(sock, *ret_token, fd);
}

static int send_file(int sock, const char *path, int flags, uint64_t *ret_token)
{
	auto_close int fd = open(path, flags | O_CLOEXEC);

	return fd < 0 ? -errno : send_ahead(sock, fd, ret_token);
}

static int save(struct vmm *v, int ram_fd, int state_fd, bool stay, vmm_done_fn cb, void *ctx)
{
	Caisson__Vmm__V1__SaveTemplateRequest req = CAISSON__VMM__V1__SAVE_TEMPLATE_REQUEST__INIT;
	auto_close int sock = -1;
	int r;

	if (!v->client)
		return -ECONNRESET;
	sock = sock_connect_at(v->dirfd, SPAWN_SOCK_FDS, SOCK_DGRAM, NULL);
	if (sock < 0)
		return sock;
	r = send_ahead(sock, ram_fd, &req.ram_token);
	if (r == 0)
		r = send_ahead(sock, state_fd, &req.state_token);
	req.stay_paused = stay;
	return r < 0 ? r : request(v, "SaveTemplate", &req.base,
				   &(struct op){ .done = cb, .ctx = ctx });
}

int vmm_template_save(struct vmm *v, int ram_fd, int state_fd, vmm_done_fn cb, void *ctx)
{
	return save(v, ram_fd, state_fd, false, cb, ctx);
}

int vmm_snapshot(struct vmm *v, int ram_fd, int state_fd, vmm_done_fn cb, void *ctx)
{
	return save(v, ram_fd, state_fd, true, cb, ctx);
}

int vmm_disk_attach(struct vmm *v, const struct vmm_disk *disk, vmm_disk_fn cb, void *ctx)
{
	Caisson__Vmm__V1__DiskAttachRequest req = CAISSON__VMM__V1__DISK_ATTACH_REQUEST__INIT;
	int flags = disk->read_only ? O_RDONLY : O_RDWR, r;
	auto_close int sock = -1;

	if (!v->client)
		return -ECONNRESET;
	sock = sock_connect_at(v->dirfd, SPAWN_SOCK_FDS, SOCK_DGRAM, NULL);
	if (sock < 0)
		return sock;
	r = send_file(sock, disk->path, flags, &req.token);
	if (r < 0)
		return r;
	if (disk->direct) {
		r = send_file(sock, disk->path, flags | O_DIRECT, &req.direct_token);
		/* A file system that has no O_DIRECT. */
		if (r == -EINVAL)
			req.direct_token = 0;
		else if (r < 0)
			return r;
	}
	req.serial = (char *)disk->serial;
	req.read_only = disk->read_only;
	req.ephemeral = disk->ephemeral;
	req.bytes_per_s = disk->bytes_per_s;
	req.ops_per_s = disk->ops_per_s;
	req.part = disk->part;
	return request(v, "DiskAttach", &req.base, &(struct op){ .disk = cb, .ctx = ctx });
}

int vmm_disk_measure(struct vmm *v, const char *serial, vmm_disk_fn cb, void *ctx)
{
	Caisson__Vmm__V1__DiskMeasureRequest req = CAISSON__VMM__V1__DISK_MEASURE_REQUEST__INIT;

	req.serial = (char *)serial;
	return request(v, "DiskMeasure", &req.base, &(struct op){ .disk = cb, .ctx = ctx });
}

int vmm_disk_detach(struct vmm *v, const char *serial, vmm_done_fn cb, void *ctx)
{
	Caisson__Vmm__V1__DiskDetachRequest req = CAISSON__VMM__V1__DISK_DETACH_REQUEST__INIT;

	req.serial = (char *)serial;
	return request(v, "DiskDetach", &req.base, &(struct op){ .done = cb, .ctx = ctx });
}

int vmm_resize(struct vmm *v, const struct vmm_size *size, vmm_done_fn cb, void *ctx)
{
	Caisson__Vmm__V1__ResizeRequest req = CAISSON__VMM__V1__RESIZE_REQUEST__INIT;
	auto_free Caisson__Vmm__V1__Range *ranges = calloc(size->n_unused + 1, sizeof(*ranges));
	auto_free Caisson__Vmm__V1__Range **unused = calloc(size->n_unused + 1, sizeof(*unused));

	if (!ranges || !unused)
		return -ENOMEM;
	for (size_t i = 0; i < size->n_unused; i++) {
		caisson__vmm__v1__range__init(&ranges[i]);
		ranges[i].start = size->unused[i].start;
		ranges[i].size = size->unused[i].size;
		unused[i] = &ranges[i];
	}
	req.vcpus = size->vcpus;
	req.memory_mib = size->memory_mib;
	req.unused = unused;
	req.n_unused = size->n_unused;
	limit_cpu(v, size->vcpus);
	return request(v, "Resize", &req.base, &(struct op){ .done = cb, .ctx = ctx });
}

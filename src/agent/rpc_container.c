#include "agent/rpc.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "agent/blockdev.h"
#include "agent/netdev.h"
#include "agent/waiter.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/str.h"

/* A CreateContainer call whose storages are being mounted. */
struct create_job {
	struct ttrpc_call *call;
	Grpc__CreateContainerRequest *rq;
	struct storage_job storage;
	struct guest_container *gc;
};

static void container_free(struct guest_container *gc)
{
	ev_del(&gc->oom);
	list_remove(&gc->node);
	storage_release(take_ptr(&gc->mounts));
	for (char **d = gc->devices; d && *d; d++)
		blockdev_release(*d);
	strv_free(gc->devices);
	free(gc->id);
	free(gc);
}

static void job_free(struct create_job *job)
{
	protobuf_c_message_free_unpacked(&job->rq->base, NULL);
	free(job);
}

static int set_string(char **field, const char *value)
{
	char *copy = strdup(value);

	if (!copy)
		return -ENOMEM;
	if (*field != protobuf_c_empty_string)
		free(*field);
	*field = copy;
	return 0;
}

int rpc_set_user(Grpc__Process *process, const Grpc__StringUser *user, struct error *err)
{
	auto_free char *name = NULL;
	auto_free uint32_t *gids = NULL;

	if (!user || (str_empty(user->uid) && str_empty(user->gid) && !user->n_additionalgids))
		return 0;
	if (!process->user) {
		process->user = malloc(sizeof(*process->user));
		if (!process->user)
			return error_errno(err, -ENOMEM, "set the user");
		grpc__user__init(process->user);
	}
	name = str_printf("%s%s%s", str_empty(user->uid) ? "0" : user->uid,
			  str_empty(user->gid) ? "" : ":", user->gid ? user->gid : "");
	gids = calloc(user->n_additionalgids + 1, sizeof(*gids));
	if (!name || !gids || set_string(&process->user->username, name) < 0)
		return error_errno(err, -ENOMEM, "set the user");
	for (size_t i = 0; i < user->n_additionalgids; i++)
		if (str_parse_u32(user->additionalgids[i], &gids[i]) < 0)
			return error_set(err, -EINVAL, "string_user: '%s' is not a group id",
					 user->additionalgids[i]);
	if (user->n_additionalgids) {
		free(process->user->additionalgids);
		process->user->additionalgids = take_ptr(&gids);
		process->user->n_additionalgids = user->n_additionalgids;
	}
	return 0;
}

/*
 * The pod's ipc and uts namespaces are the agent's own: it has no use for them itself, and there
 * is one pod in a guest. Making others would cost every start a process.
 */
int rpc_share_namespaces(const char *hostname, struct error *err)
{
	struct container_sandbox *sb = &agent.sandbox;
	int r;

	if (!agent.sandbox_ready) {
		r = container_sandbox_init(sb, agent.opt.cgroup_root, err);
		if (r < 0)
			return r;
		agent.sandbox_ready = true;
	}
	if (sb->ipcns < 0)
		sb->ipcns = open("/proc/self/ns/ipc", O_RDONLY | O_CLOEXEC);
	if (sb->utsns < 0)
		sb->utsns = open("/proc/self/ns/uts", O_RDONLY | O_CLOEXEC);
	if (sb->ipcns < 0 || sb->utsns < 0)
		return error_errno(err, -errno, "open the pod's namespaces");
	if (!str_empty(hostname) && sethostname(hostname, strlen(hostname)) < 0)
		return error_errno(err, -errno, "set the host name '%s'", hostname);
	return 0;
}

/*
 * Paths of namespaces are the host's and mean nothing here. Containers of a VM share its network;
 * they share ipc and uts with their pod, and the pid namespace if the pod says so.
 */
static int map_namespaces(Grpc__Spec *spec, bool share_pid, unsigned *ret_share,
			  struct error *err)
{
	Grpc__LinuxNamespace *ns, **more;
	unsigned share = CONTAINER_SHARE_NET;
	bool has_pid = false;

	for (size_t i = 0; i < spec->linux->n_namespaces; i++) {
		ns = spec->linux->namespaces[i];
		if (str_eq(ns->type, "ipc"))
			share |= CONTAINER_SHARE_IPC;
		else if (str_eq(ns->type, "uts"))
			share |= CONTAINER_SHARE_UTS;
		else if (str_eq(ns->type, "pid"))
			has_pid = true;
		else if (!str_eq(ns->type, "network"))
			continue;
		if (set_string(&ns->path, "") < 0)
			return error_errno(err, -ENOMEM, "namespaces");
	}
	if (share_pid)
		share |= CONTAINER_SHARE_PID;
	*ret_share = share;
	if (has_pid)
		return 0;
	ns = malloc(sizeof(*ns));
	more = realloc(spec->linux->namespaces,
		       (spec->linux->n_namespaces + 1) * sizeof(*more));
	if (more)
		spec->linux->namespaces = more;
	if (!ns || !more) {
		free(ns);
		return error_errno(err, -ENOMEM, "namespaces");
	}
	grpc__linux_namespace__init(ns);
	more[spec->linux->n_namespaces++] = ns;
	return set_string(&ns->type, "pid") < 0 ? error_errno(err, -ENOMEM, "namespaces") : 0;
}

/* Ours: a device that the container does without where the guest has none. */
static bool is_optional(const Grpc__Device *d)
{
	for (size_t i = 0; i < d->n_options; i++)
		if (str_eq(d->options[i], "optional"))
			return true;
	return false;
}

static void drop_device(Grpc__Spec *spec, const char *path)
{
	Grpc__Linux *l = spec->linux;

	for (size_t i = 0; i < l->n_devices; i++) {
		if (!str_eq(l->devices[i]->path, path))
			continue;
		protobuf_c_message_free_unpacked(&l->devices[i]->base, NULL);
		memmove(&l->devices[i], &l->devices[i + 1],
			(l->n_devices - i - 1) * sizeof(l->devices[0]));
		l->n_devices--;
		return;
	}
}

/* The numbers that a device has in the guest replace those it has on the host. */
static int map_device(struct guest_container *gc, Grpc__Spec *spec, const Grpc__Device *d,
		      struct error *err)
{
	Grpc__LinuxResources *res = spec->linux->resources;
	char node[BLOCKDEV_PATH_MAX];
	const char *path = d->vm_path;
	struct stat st;
	int r;

	if (str_has_prefix(path, "shelf:")) {
		r = blockdev_find(path, node);
		if (r != 1)
			return error_errno(err, r < 0 ? r : -ENODEV, "device '%s'", d->container_path);
		if (strv_append(&gc->devices, path) < 0) {
			blockdev_release(path);
			return error_errno(err, -ENOMEM, "device '%s'", d->container_path);
		}
		path = node;
	}
	if (stat(path, &st) < 0 || (!S_ISCHR(st.st_mode) && !S_ISBLK(st.st_mode))) {
		if (is_optional(d)) {
			drop_device(spec, d->container_path);
			return 0;
		}
		return error_set(err, -ENODEV, "device '%s': there is no '%s' in the guest",
				 d->container_path, d->vm_path);
	}
	for (size_t i = 0; i < spec->linux->n_devices; i++) {
		Grpc__LinuxDevice *ld = spec->linux->devices[i];
		int64_t major = ld->major, minor = ld->minor;

		if (!str_eq(ld->path, d->container_path))
			continue;
		ld->major = major(st.st_rdev);
		ld->minor = minor(st.st_rdev);
		for (size_t k = 0; res && k < res->n_devices; k++) {
			if (res->devices[k]->major == major && res->devices[k]->minor == minor) {
				res->devices[k]->major = ld->major;
				res->devices[k]->minor = ld->minor;
			}
		}
		return 0;
	}
	return error_set(err, -EINVAL, "device '%s' is not in the container's spec",
			 d->container_path);
}

static void oom_notify(const char *id)
{
	Grpc__OOMEvent ev = GRPC__OOMEVENT__INIT;

	if (list_empty(&agent.oom_waiters)) {
		if (strv_append(&agent.oom_queue, id) < 0)
			log_warn("container %s: out of memory", id);
		return;
	}
	ev.container_id = (char *)id;
	ttrpc_reply_msg(waiter_take(list_entry(agent.oom_waiters.next, struct waiter, node)),
			&ev.base);
}

static void check_oom(struct guest_container *gc)
{
	if (gc->c && container_oom_take(gc->c) > 0)
		oom_notify(gc->id);
}

static void on_oom(struct ev_watch *w, uint32_t events)
{
	(void)events;
	check_oom(w->data);
}

static int make_container(struct create_job *job, struct error *err)
{
	Grpc__CreateContainerRequest *rq = job->rq;
	struct guest_container *gc = job->gc;
	struct process_ports ports = { rq->stdin_port, rq->stdout_port, rq->stderr_port };
	struct process_stdio sio;
	struct container *c;
	struct process *p;
	unsigned share;
	int r = 0, fd;

	for (size_t i = 0; i < rq->n_devices && r == 0; i++)
		r = map_device(gc, rq->oci, rq->devices[i], err);
	if (r == 0)
		r = rpc_set_user(rq->oci->process, rq->string_user, err);
	if (r == 0)
		r = map_namespaces(rq->oci, rq->sandbox_pidns || agent.sandbox_pidns, &share, err);
	if (r == 0)
		r = rpc_share_namespaces(NULL, err);
	if (r == 0)
		r = process_new(gc->id, "", rq->oci->process->terminal, &ports, &sio, &p, err);
	if (r < 0)
		return r;
	r = container_create(&agent.sandbox, gc->id, rq->oci, share, &sio.io, p, &c, err);
	if (r < 0) {
		process_abandon(p, &sio);
		return r;
	}
	r = process_started(p, c, &sio, err);
	if (r < 0) {
		(void)!container_delete(c, true, NULL);
		process_drop_container(gc->id);
		return r;
	}
	gc->c = c;
	fd = container_oom_fd(c);
	if (fd >= 0 && ev_add(&gc->oom, fd, EPOLLIN | EPOLLPRI, on_oom, gc) < 0)
		log_warn("container %s: no out-of-memory events", gc->id);
	return 0;
}

static void on_mounted(struct storage_job *sj, const struct error *failed)
{
	struct create_job *job = sj->data;
	struct guest_container *gc = job->gc;
	struct error err = { 0 };
	int r;

	gc->job = NULL;
	if (failed) {
		err = *failed;
		r = failed->code;
	} else {
		gc->mounts = take_ptr(&sj->mounted);
		r = make_container(job, &err);
	}
	if (r < 0)
		container_free(gc);
	rpc_end(job->call, r, &err);
	job_free(job);
}

static int check_create(const Grpc__CreateContainerRequest *rq, struct error *err)
{
	const struct guest_container *gc;

	if (!str_valid_id(rq->container_id))
		return error_set(err, -EINVAL, "'%s' is not a container id", rq->container_id);
	if (!rq->oci || !rq->oci->process || !rq->oci->linux || !rq->oci->root)
		return error_set(err, -EINVAL, "OCI: process, root and linux must be given");
	if (rq->n_shared_mounts)
		return error_set(err, -EOPNOTSUPP, "shared_mounts are not supported");
	list_for_each(gc, &agent.containers, node)
		if (str_eq(gc->id, rq->container_id))
			return error_set(err, -EEXIST, "container '%s' exists already", gc->id);
	return 0;
}

void rpc_create_container(struct ttrpc_call *call, void *request)
{
	Grpc__CreateContainerRequest *rq = request;
	struct guest_container *gc = NULL;
	struct create_job *job = NULL;
	struct error err = { 0 };
	int r = check_create(rq, &err);

	if (r == 0) {
		gc = calloc(1, sizeof(*gc));
		job = calloc(1, sizeof(*job));
		if (gc)
			gc->id = strdup(rq->container_id);
		if (!gc || !job || !gc->id)
			r = error_errno(&err, -ENOMEM, "create a container");
	}
	if (r < 0) {
		if (gc)
			free(gc->id);
		free(gc);
		free(job);
		rpc_end(call, r, &err);
		return;
	}
	list_push_back(&agent.containers, &gc->node);
	gc->job = job;
	job->call = call;
	job->rq = rq;
	job->gc = gc;
	rpc_take_request();
	storage_mount_all(&job->storage, rq->storages, rq->n_storages,
			  agent.opt.hotplug_timeout_ms, on_mounted, job);
}

void rpc_start_container(struct ttrpc_call *call, void *request)
{
	const Grpc__StartContainerRequest *rq = request;
	struct guest_container *gc = rpc_container(call, rq->container_id);
	struct error err = { 0 };

	if (gc)
		rpc_end(call, container_start(gc->c, &err), &err);
}

static int remove_container(struct guest_container *gc, struct error *err)
{
	struct container *c = take_ptr(&gc->c);
	struct process *p;
	int r = 0;

	ev_del(&gc->oom);
	if (c)
		r = container_delete(c, true, err);
	/* Whoever waits gets an exit status, even if it ended only now. */
	while ((p = process_find_running(gc->id)))
		process_exited(p, 128 + SIGKILL);
	process_drop_container(gc->id);
	container_free(gc);
	return r;
}

void rpc_remove_container(struct ttrpc_call *call, void *request)
{
	const Grpc__RemoveContainerRequest *rq = request;
	struct guest_container *gc = rpc_container(call, rq->container_id);
	struct error err = { 0 };

	if (gc)
		rpc_end(call, remove_container(gc, &err), &err);
}

void rpc_remove_all(void)
{
	struct error err = { 0 };

	while (!list_empty(&agent.containers)) {
		struct guest_container *gc =
			list_entry(agent.containers.prev, struct guest_container, node);
		struct create_job *job = take_ptr(&gc->job);

		if (job) {
			storage_job_cancel(&job->storage);
			ttrpc_call_fail(job->call, TTRPC_CANCELLED, "the sandbox was destroyed");
			job_free(job);
		}
		if (remove_container(gc, &err) < 0)
			log_warn("remove a container: %s", error_text(&err));
	}
	storage_release_all();
}

void rpc_child_ended(pid_t pid, int status)
{
	struct container_exit ex;
	struct guest_container *gc;

	if (!agent.sandbox_ready || container_reap(&agent.sandbox, pid, status, &ex) < 0)
		return;
	/* A kill for want of memory is told before the exit it caused. */
	list_for_each(gc, &agent.containers, node)
		if (gc->c == ex.container)
			check_oom(gc);
	if (ex.userdata)
		process_exited(ex.userdata, ex.exit_code);
	if (!ex.init)
		container_forget_exec(ex.container, ex.exec_id);
}

void rpc_update_container(struct ttrpc_call *call, void *request)
{
	const Grpc__UpdateContainerRequest *rq = request;
	struct guest_container *gc = rpc_container(call, rq->container_id);
	struct error err = { 0 };

	if (!gc)
		return;
	if (!rq->resources) {
		ttrpc_call_fail(call, TTRPC_INVALID_ARGUMENT, "resources must be given");
		return;
	}
	rpc_end(call, container_update(gc->c, rq->resources, &err), &err);
}

void rpc_pause_container(struct ttrpc_call *call, void *request)
{
	const Grpc__PauseContainerRequest *rq = request;
	struct guest_container *gc = rpc_container(call, rq->container_id);
	struct error err = { 0 };

	if (gc)
		rpc_end(call, container_pause(gc->c, &err), &err);
}

void rpc_resume_container(struct ttrpc_call *call, void *request)
{
	const Grpc__ResumeContainerRequest *rq = request;
	struct guest_container *gc = rpc_container(call, rq->container_id);
	struct error err = { 0 };

	if (gc)
		rpc_end(call, container_resume(gc->c, &err), &err);
}

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/fsutil.h"
#include "base/log.h"
#include "base/str.h"
#include "vmm/cgroup.h"
#include "vmm/client_priv.h"
#include "vmm/config.h"
#include "vmm/record.h"
#include "vmm/sock.h"
#include "vmm/spawn.h"
#include "vmm/uid.h"

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
		for (size_t k = 0; k < cfg->nics[i].n_fds && cfg->nics[i].kind == VMM_NIC_TAP;
		     k++) {
			int fd = open(CONFIG_VHOST_NET, O_RDWR | O_CLOEXEC);

			if (fd < 0)
				return error_errno(err, -errno, "open " CONFIG_VHOST_NET);
			f->vhost[f->n_vhost++] = fd;
		}
	return 0;
}

static int make_fds(struct vmm *v, const struct record *rec, struct start_fds *f, struct error *err)
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
			 const char *program, uint32_t uid, int *ret_pidfd,
			 struct error *err)
{
	char given[8] = "-", uid_text[12];
	struct child_fd fds[10 + SPAWN_MAX_NIC_FDS + 2 * VMM_MAX_LAYERS + 1];
	const char *const argv[] = { program, given, uid_text, NULL };
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

	(void)snprintf(uid_text, sizeof(uid_text), "%u", uid);
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
	if (cfg->working_set_fd >= 0) {
		fds[o.n_fds++] = (struct child_fd){ cfg->working_set_fd, SPAWN_FD_WORKING_SET };
		*p++ = 'w';
	}
	for (size_t i = 0; i < cfg->n_layers; i++) {
		int to = SPAWN_FD_LAYERS + 2 * (int)i;

		fds[o.n_fds++] = (struct child_fd){ cfg->layers[i].ram_fd, to };
		fds[o.n_fds++] = (struct child_fd){ cfg->layers[i].pages_fd, to + 1 };
	}
	if (cfg->n_layers) {
		*p++ = 'l';
		*p++ = (char)('0' + cfg->n_layers);
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

/*
 * Below its pod's, so that the pod's limits are the VM's. A boot needs more time of a processor than some
 * pods may have: such a VM boots outside, and moves then. Under version 2 what memory it has by
 * then stays outside.
 */
static int name_cgroups(const char *parent, const char *name, struct record *rec)
{
	int r = -ENOENT;

	if (!str_empty(parent)) {
		r = cgroup_v1_path(parent, name, rec->groups, sizeof(rec->groups));
		if (r == 0)
			r = cgroup_path_below(parent, name, rec->cgroup, sizeof(rec->cgroup));
		if (r == 0 && cgroup_throttles(rec->cgroup)) {
			memcpy(rec->later, rec->cgroup, sizeof(rec->later));
			r = -ENOENT;
		}
	}
	return r < 0 ? cgroup_path(name, rec->cgroup, sizeof(rec->cgroup)) : 0;
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
	r = name_cgroups(cfg->cgroup_parent, name, &rec);
	if (r < 0)
		return error_errno(err, r, "name the VM's cgroup");
	r = record_write(v->dirfd, &rec, err);
	if (r == 0)
		r = uid_claim(&cfg->uids, v->dirfd, &rec, err);
	if (r == 0)
		r = make_fds(v, &rec, f, err);
	if (r == 0)
		r = start_process(v, cfg, f, program, rec.uid, ret_pidfd, err);
	if (r < 0)
		return r;
	r = child_identify(v->id.pid, &v->id);
	if (r < 0)
		return error_errno(err, r, "identify caisson-vmm");
	if (*rec.groups)
		cgroup_v1_enter(rec.groups, v->id.pid);
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

/* Takes @f. */
static int spawn(uv_loop_t *loop, const struct vmm_config *cfg, const uint8_t *config, size_t len,
		 struct start_fds *f, const struct vmm_events *events, void *ctx,
		 struct vmm **ret_vmm, struct error *err)
{
	struct vmm *v = vmm_client_new(loop, cfg->dir, events, ctx, err);
	int pidfd = -1, r;

	if (!v)
		return -ENOMEM;
	r = start(v, cfg, f, &pidfd, err);
	if (r == 0)
		r = vmm_client_watch(v, take_fd(&pidfd), err);
	if (r == 0)
		r = vmm_client_join(v, err);
	if (r == 0)
		r = send_config(f->config_write, config, len, err);
	if (r < 0) {
		cleanup_close_(&pidfd);
		undo_start(v);
		vmm_client_free(v);
		return r;
	}
	*ret_vmm = v;
	return 0;
}

#define START_FDS_NONE { -1, -1, -1, -1, -1, -1, { 0 }, 0 }

int vmm_spawn(uv_loop_t *loop, const struct vmm_config *cfg, const struct vmm_events *events,
	      void *ctx, struct vmm **ret_vmm, struct error *err)
{
	__attribute__((cleanup(start_fds_fini))) struct start_fds f = START_FDS_NONE;
	auto_free uint8_t *config = NULL;
	size_t len = 0;
	bool vhost = false;
	int r = config_pack(cfg, &config, &len, &vhost, err);

	if (r == 0 && vhost)
		r = open_vhost(cfg, &f, err);
	return r < 0 ? r : spawn(loop, cfg, config, len, &f, events, ctx, ret_vmm, err);
}

int vmm_spawn_kind(uv_loop_t *loop, const uint8_t *kind, size_t len, const struct vmm_config *cfg,
		   const struct vmm_events *events, void *ctx, struct vmm **ret_vmm,
		   struct error *err)
{
	__attribute__((cleanup(start_fds_fini))) struct start_fds f = START_FDS_NONE;
	Caisson__Vmm__V1__VmConfig *saved = caisson__vmm__v1__vm_config__unpack(NULL, len, kind);
	Caisson__Vmm__V1__VmConfig msg;
	auto_free uint8_t *config = NULL;

	if (!saved)
		return error_set(err, -EBADMSG, "the machine's configuration is malformed");
	/* What the copy is given is not the original's to free. */
	msg = *saved;
	msg.id = (char *)cfg->id;
	msg.dir = (char *)cfg->dir;
	msg.template_ = CAISSON__VMM__V1__TEMPLATE__TEMPLATE_LOAD;
	len = msg.n_nics == cfg->n_nics ? caisson__vmm__v1__vm_config__get_packed_size(&msg) : 0;
	config = len && len <= SPAWN_CONFIG_MAX ? malloc(len) : NULL;
	if (config)
		(void)caisson__vmm__v1__vm_config__pack(&msg, config);
	caisson__vmm__v1__vm_config__free_unpacked(saved, NULL);
	if (!config)
		return error_set(err, -EINVAL, "the machine's configuration cannot be used");
	return spawn(loop, cfg, config, len, &f, events, ctx, ret_vmm, err);
}

int vmm_move(const char *from, const char *to)
{
	return rename(from, to) < 0 ? -errno : 0;
}

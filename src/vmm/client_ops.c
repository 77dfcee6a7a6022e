#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "vmm/client_priv.h"
#include "vmm/sock.h"
#include "vmm/spawn.h"

#define CALL_NS  (UINT64_C(30) * 1000 * 1000 * 1000)

/* A request on its way. */
struct op {
	struct vmm *vmm;
	vmm_done_fn done;
	vmm_text_fn text;
	vmm_disk_fn disk;
	void *ctx;
};

static void op_done(void *arg, const struct ttrpc_result *res)
{
	struct op *op = arg;
	struct error err = { 0 };
	int r = ttrpc_result_error(res, &err);

	if (r < 0 && res->code == TTRPC_UNAVAILABLE)
		(void)error_set(&err, -ESHUTDOWN, "the VM has ended");
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

/* @pages_fd -1: all of the memory. */
static int save(struct vmm *v, int ram_fd, int state_fd, int pages_fd, bool stay, vmm_done_fn cb,
		void *ctx)
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
	if (r == 0 && pages_fd >= 0)
		r = send_ahead(sock, pages_fd, &req.pages_token);
	req.stay_paused = stay;
	return r < 0 ? r : request(v, "SaveTemplate", &req.base,
				   &(struct op){ .done = cb, .ctx = ctx });
}

int vmm_template_save(struct vmm *v, int ram_fd, int state_fd, vmm_done_fn cb, void *ctx)
{
	return save(v, ram_fd, state_fd, -1, false, cb, ctx);
}

int vmm_snapshot(struct vmm *v, int ram_fd, int state_fd, vmm_done_fn cb, void *ctx)
{
	return save(v, ram_fd, state_fd, -1, true, cb, ctx);
}

int vmm_snapshot_layer(struct vmm *v, const struct vmm_layer *to, int state_fd, vmm_done_fn cb,
		       void *ctx)
{
	return save(v, to->ram_fd, state_fd, to->pages_fd, true, cb, ctx);
}

int vmm_working_set(struct vmm *v, int fd, vmm_done_fn cb, void *ctx)
{
	Caisson__Vmm__V1__SaveWorkingSetRequest req = CAISSON__VMM__V1__SAVE_WORKING_SET_REQUEST__INIT;
	auto_close int sock = -1;
	int r;

	if (!v->client)
		return -ECONNRESET;
	sock = sock_connect_at(v->dirfd, SPAWN_SOCK_FDS, SOCK_DGRAM, NULL);
	if (sock < 0)
		return sock;
	r = send_ahead(sock, fd, &req.token);
	return r < 0 ? r : request(v, "SaveWorkingSet", &req.base, &(struct op){ .done = cb, .ctx = ctx });
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
	vmm_client_limit_cpu(v, size->vcpus);
	return request(v, "Resize", &req.base, &(struct op){ .done = cb, .ctx = ctx });
}

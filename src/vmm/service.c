#include "vmm/service.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/loop.h"
#include "ttrpc/ttrpc_uv.h"
#include "vmm/spawn.h"

#define MAX_WAITERS    16u
#define MAX_PARKED     8u
/* How long the end is kept for somebody to ask, and for those who asked to hang up. */
#define END_ASK_MS     3000u
#define END_HANG_UP_MS 5000u

struct waiters {
	struct ttrpc_call *calls[MAX_WAITERS];
	size_t n;
};

struct parked_fd {
	uint64_t token;
	int fd;
};

struct service {
	uv_loop_t loop;
	uv_timer_t linger;
	uv_prepare_t watch_end;
	struct ttrpc_server *server;
	struct ttrpc_listener *listener;
	struct machine *machine;
	const Caisson__Vmm__V1__VmConfig *config;
	int descriptors;
	struct parked_fd parked[MAX_PARKED];
	size_t n_parked;
	struct waiters started, ended;
	bool running;
	bool over;
	bool asked;             /* somebody was told of the end */
	enum vmm_exit reason;
	char *text;
};

static bool wait_on(struct waiters *w, struct ttrpc_call *call)
{
	if (w->n == MAX_WAITERS) {
		ttrpc_call_fail(call, TTRPC_RESOURCE_EXHAUSTED, "too many callers wait");
		return false;
	}
	w->calls[w->n++] = call;
	return true;
}

static void waiter_gone(void *arg, struct ttrpc_call *call)
{
	struct waiters *w = arg;

	for (size_t i = 0; i < w->n; i++) {
		if (w->calls[i] != call)
			continue;
		w->calls[i] = w->calls[--w->n];
		ttrpc_call_fail(call, TTRPC_CANCELLED, "the caller has gone");
		return;
	}
}

static void tell_info(struct service *s, struct ttrpc_call *call)
{
	Caisson__Vmm__V1__InfoResponse res = CAISSON__VMM__V1__INFO_RESPONSE__INIT;
	Caisson__Vmm__V1__Range ranges[VMM_MAX_SPARE], *spare[VMM_MAX_SPARE];
	const struct memmap *map;

	if (s->over) {
		ttrpc_call_fail(call, TTRPC_FAILED_PRECONDITION, "%s", s->text);
		return;
	}
	res.machine = s->config->machine;
	res.accel = s->config->accel;
	res.qemu_pid = machine_qemu_pid(s->machine);
	res.running = s->running;
	res.memory_mib = s->config->memory_mib;
	res.vcpus = s->config->vcpus;
	res.vcpus_max = s->config->vcpus_max;
	map = machine_memory(s->machine);
	for (size_t i = 0; i < map->n_spare; i++) {
		caisson__vmm__v1__range__init(&ranges[i]);
		ranges[i].start = map->spare[i].start;
		ranges[i].size = map->spare[i].size;
		spare[i] = &ranges[i];
	}
	res.spare = spare;
	res.n_spare = map->n_spare;
	ttrpc_reply_msg(call, &res.base);
}

static void tell_end(struct service *s, struct ttrpc_call *call)
{
	Caisson__Vmm__V1__WaitResponse res = CAISSON__VMM__V1__WAIT_RESPONSE__INIT;

	res.reason = (uint32_t)s->reason;
	res.text = s->text;
	s->asked = true;
	ttrpc_reply_msg(call, &res.base);
}

static void on_wait_started(void *ctx, struct ttrpc_call *call, const uint8_t *data, size_t len)
{
	struct service *s = ctx;

	(void)data;
	(void)len;
	if (s->running || s->over)
		tell_info(s, call);
	else if (wait_on(&s->started, call))
		ttrpc_call_on_cancel(call, waiter_gone, &s->started);
}

static void on_wait_exit(void *ctx, struct ttrpc_call *call, const uint8_t *data, size_t len)
{
	struct service *s = ctx;

	(void)data;
	(void)len;
	if (s->over)
		tell_end(s, call);
	else if (wait_on(&s->ended, call))
		ttrpc_call_on_cancel(call, waiter_gone, &s->ended);
}

static bool usable(struct service *s, struct ttrpc_call *call)
{
	if (!s->over && s->machine)
		return true;
	ttrpc_call_fail(call, TTRPC_FAILED_PRECONDITION, "the machine has ended");
	return false;
}

static void command_done(void *ctx, const struct error *err)
{
	struct ttrpc_call *call = ctx;

	if (err)
		ttrpc_call_fail_error(call, err);
	else
		ttrpc_reply_empty(call);
}

static void on_pause(void *ctx, struct ttrpc_call *call, const uint8_t *data, size_t len)
{
	struct service *s = ctx;
	int r;

	(void)data;
	(void)len;
	if (!usable(s, call))
		return;
	r = machine_pause(s->machine, command_done, call);
	if (r < 0)
		ttrpc_call_fail(call, ttrpc_code_from_errno(r), "QEMU does not listen");
}

static void on_resume(void *ctx, struct ttrpc_call *call, const uint8_t *data, size_t len)
{
	struct service *s = ctx;
	int r;

	(void)data;
	(void)len;
	if (!usable(s, call))
		return;
	r = machine_resume(s->machine, command_done, call);
	if (r < 0)
		ttrpc_call_fail(call, ttrpc_code_from_errno(r), "QEMU does not listen");
}

static void on_shutdown(void *ctx, struct ttrpc_call *call, const uint8_t *data, size_t len)
{
	struct service *s = ctx;

	(void)data;
	(void)len;
	if (!s->over && s->machine)
		machine_stop(s->machine);
	ttrpc_reply_empty(call);
}

/* Descriptors come by their own socket, before the call that names them. */
static void receive_fds(struct service *s)
{
	for (;;) {
		union {
			struct cmsghdr head;
			char room[CMSG_SPACE(sizeof(int))];
		} control;
		uint8_t token[8];
		struct iovec iov = { .iov_base = token, .iov_len = sizeof(token) };
		struct msghdr msg = {
			.msg_iov = &iov,
			.msg_iovlen = 1,
			.msg_control = &control,
			.msg_controllen = sizeof(control),
		};
		struct cmsghdr *c;
		ssize_t n = recvmsg(s->descriptors, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		int fd = -1;

		if (n < 0)
			return;
		c = CMSG_FIRSTHDR(&msg);
		if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
		    c->cmsg_len == CMSG_LEN(sizeof(int)))
			memcpy(&fd, CMSG_DATA(c), sizeof(fd));
		if (fd < 0)
			continue;
		if (n != (ssize_t)sizeof(token) || s->n_parked == MAX_PARKED) {
			(void)close(fd);
			continue;
		}
		s->parked[s->n_parked++] =
			(struct parked_fd){ .token = load_le64(token), .fd = fd };
	}
}

static int claim_fd(struct service *s, uint64_t token)
{
	receive_fds(s);
	for (size_t i = 0; i < s->n_parked; i++) {
		int fd = s->parked[i].fd;

		if (s->parked[i].token != token)
			continue;
		s->parked[i] = s->parked[--s->n_parked];
		return fd;
	}
	return -1;
}

static void reply_place(struct ttrpc_call *call, const struct vmm_place *place)
{
	Caisson__Vmm__V1__DiskAttachResponse res = CAISSON__VMM__V1__DISK_ATTACH_RESPONSE__INIT;

	res.part = place->part;
	res.start = place->start;
	res.size = place->size;
	ttrpc_reply_msg(call, &res.base);
}

static void on_disk_attach(void *ctx, struct ttrpc_call *call, const uint8_t *data, size_t len)
{
	struct service *s = ctx;
	Caisson__Vmm__V1__DiskAttachRequest *req;
	auto_close int fd = -1, direct_fd = -1;
	struct vmm_place place = { 0 };
	struct error err = { 0 };

	req = ttrpc_call_unpack(call, &caisson__vmm__v1__disk_attach_request__descriptor, data,
				len);
	if (!req)
		return;
	fd = claim_fd(s, req->token);
	if (req->direct_token)
		direct_fd = claim_fd(s, req->direct_token);
	if (fd < 0) {
		ttrpc_call_fail(call, TTRPC_INVALID_ARGUMENT, "no descriptor came for the disk");
	} else if (!usable(s, call)) {
		/* The call has been answered. */
	} else if (machine_attach_disk(s->machine, take_fd(&fd), take_fd(&direct_fd), req, &place,
				       &err) < 0) {
		ttrpc_call_fail_error(call, &err);
	} else {
		reply_place(call, &place);
	}
	protobuf_c_message_free_unpacked(&req->base, NULL);
}

static void on_save_template(void *ctx, struct ttrpc_call *call, const uint8_t *data, size_t len)
{
	struct service *s = ctx;
	Caisson__Vmm__V1__SaveTemplateRequest *req;
	auto_close int ram = -1, state = -1, pages = -1;
	bool stay, layer;
	int r;

	req = ttrpc_call_unpack(call, &caisson__vmm__v1__save_template_request__descriptor, data,
				len);
	if (!req)
		return;
	ram = claim_fd(s, req->ram_token);
	state = claim_fd(s, req->state_token);
	stay = req->stay_paused;
	layer = req->pages_token != 0;
	if (layer)
		pages = claim_fd(s, req->pages_token);
	protobuf_c_message_free_unpacked(&req->base, NULL);
	if (ram < 0 || state < 0 || (layer && pages < 0)) {
		ttrpc_call_fail(call, TTRPC_INVALID_ARGUMENT,
				"no descriptors came for the template");
		return;
	}
	if (!usable(s, call))
		return;
	r = layer ? machine_save_layer(s->machine, take_fd(&ram), take_fd(&pages), take_fd(&state),
				       command_done, call) :
		    machine_save(s->machine, take_fd(&ram), take_fd(&state), stay, command_done, call);
	if (r < 0)
		ttrpc_call_fail(call, ttrpc_code_from_errno(r), "this machine cannot be saved");
}

static void on_save_working_set(void *ctx, struct ttrpc_call *call, const uint8_t *data, size_t len)
{
	struct service *s = ctx;
	Caisson__Vmm__V1__SaveWorkingSetRequest *req;
	auto_close int fd = -1;
	struct error err = { 0 };

	req = ttrpc_call_unpack(call, &caisson__vmm__v1__save_working_set_request__descriptor, data, len);
	if (!req)
		return;
	fd = claim_fd(s, req->token);
	protobuf_c_message_free_unpacked(&req->base, NULL);
	if (fd < 0)
		ttrpc_call_fail(call, TTRPC_INVALID_ARGUMENT, "no descriptor came for the list of pages");
	else if (usable(s, call))
		command_done(call, machine_save_working_set(s->machine, take_fd(&fd), &err) < 0 ? &err : NULL);
}

static void on_disk_detach(void *ctx, struct ttrpc_call *call, const uint8_t *data, size_t len)
{
	struct service *s = ctx;
	Caisson__Vmm__V1__DiskDetachRequest *req;
	struct error err = { 0 };

	req = ttrpc_call_unpack(call, &caisson__vmm__v1__disk_detach_request__descriptor, data,
				len);
	if (!req)
		return;
	if (usable(s, call)) {
		if (machine_detach_disk(s->machine, req->serial, &err) < 0)
			ttrpc_call_fail_error(call, &err);
		else
			ttrpc_reply_empty(call);
	}
	protobuf_c_message_free_unpacked(&req->base, NULL);
}

static void on_disk_measure(void *ctx, struct ttrpc_call *call, const uint8_t *data, size_t len)
{
	struct service *s = ctx;
	Caisson__Vmm__V1__DiskMeasureRequest *req;
	struct vmm_place place = { 0 };
	struct error err = { 0 };

	req = ttrpc_call_unpack(call, &caisson__vmm__v1__disk_measure_request__descriptor, data,
				len);
	if (!req)
		return;
	if (usable(s, call)) {
		if (machine_measure_disk(s->machine, req->serial, &place, &err) < 0)
			ttrpc_call_fail_error(call, &err);
		else
			reply_place(call, &place);
	}
	protobuf_c_message_free_unpacked(&req->base, NULL);
}

static void on_resize(void *ctx, struct ttrpc_call *call, const uint8_t *data, size_t len)
{
	struct service *s = ctx;
	Caisson__Vmm__V1__ResizeRequest *req;
	struct error err = { 0 };

	req = ttrpc_call_unpack(call, &caisson__vmm__v1__resize_request__descriptor, data, len);
	if (!req)
		return;
	if (usable(s, call)) {
		if (machine_resize(s->machine, req, &err) < 0)
			ttrpc_call_fail_error(call, &err);
		else
			ttrpc_reply_empty(call);
	}
	protobuf_c_message_free_unpacked(&req->base, NULL);
}

static void on_console(void *ctx, struct ttrpc_call *call, const uint8_t *data, size_t len)
{
	struct service *s = ctx;
	Caisson__Vmm__V1__ConsoleResponse res = CAISSON__VMM__V1__CONSOLE_RESPONSE__INIT;
	auto_free char *text = NULL;
	size_t n = 0;

	(void)data;
	(void)len;
	if (!s->machine) {
		ttrpc_reply_msg(call, &res.base);
		return;
	}
	text = console_text(machine_console(s->machine), &n);
	if (!text) {
		ttrpc_call_fail(call, TTRPC_RESOURCE_EXHAUSTED, "no memory for the console");
		return;
	}
	res.data = (ProtobufCBinaryData){ .data = (uint8_t *)text, .len = n };
	ttrpc_reply_msg(call, &res.base);
}

static const struct ttrpc_method methods[] = {
	{ "WaitStarted", on_wait_started, 0 },
	{ "WaitExit", on_wait_exit, 0 },
	{ "Pause", on_pause, 0 },
	{ "Resume", on_resume, 0 },
	{ "Shutdown", on_shutdown, 0 },
	{ "DiskAttach", on_disk_attach, 0 },
	{ "DiskDetach", on_disk_detach, 0 },
	{ "DiskMeasure", on_disk_measure, 0 },
	{ "SaveTemplate", on_save_template, 0 },
	{ "SaveWorkingSet", on_save_working_set, 0 },
	{ "Resize", on_resize, 0 },
	{ "Console", on_console, 0 },
};

static void linger_over(uv_timer_t *timer)
{
	struct service *s = timer->data;

	uv_stop(&s->loop);
}

/* Each round of the loop: once told, the callers hang up, and that was it. */
static void look_for_end(uv_prepare_t *prepare)
{
	struct service *s = prepare->data;

	if (s->asked && ttrpc_server_connections(s->server) == 0)
		uv_stop(&s->loop);
}

static void finish(struct service *s, enum vmm_exit reason, const char *text)
{
	s->over = true;
	s->reason = reason;
	s->text = strdup(text);
	if (!s->text)
		s->text = strdup("");
	while (s->started.n) {
		struct ttrpc_call *call = s->started.calls[--s->started.n];

		ttrpc_call_on_cancel(call, NULL, NULL);
		tell_info(s, call);
	}
	while (s->ended.n) {
		struct ttrpc_call *call = s->ended.calls[--s->ended.n];

		ttrpc_call_on_cancel(call, NULL, NULL);
		tell_end(s, call);
	}
	(void)uv_prepare_start(&s->watch_end, look_for_end);
	(void)uv_timer_start(&s->linger, linger_over, s->asked ? END_HANG_UP_MS : END_ASK_MS, 0);
}

static void machine_running(void *ctx)
{
	struct service *s = ctx;

	s->running = true;
	while (s->started.n) {
		struct ttrpc_call *call = s->started.calls[--s->started.n];

		ttrpc_call_on_cancel(call, NULL, NULL);
		tell_info(s, call);
	}
}

static void machine_ended(void *ctx, enum vmm_exit reason, const char *text)
{
	struct service *s = ctx;

	s->running = false;
	log_debug("the machine has ended (%s): %s", vmm_exit_name(reason), text);
	finish(s, reason, text);
}

static const struct machine_ops machine_ops = {
	.running = machine_running,
	.ended = machine_ended,
};

static int set_up(struct service *s, struct service_fds *fds, struct error *err)
{
	int r = ttrpc_server_new(&s->server);

	if (r == 0)
		r = ttrpc_server_register(s->server, SPAWN_SERVICE, methods, ARRAY_LEN(methods), s);
	if (r == 0)
		r = ttrpc_server_listen(s->server, &s->loop, fds->control, &s->listener);
	if (r == 0)
		r = loop_error(uv_timer_init(&s->loop, &s->linger));
	if (r == 0)
		r = loop_error(uv_prepare_init(&s->loop, &s->watch_end));
	if (r < 0)
		return error_errno(err, r, "set up the control service");
	s->linger.data = s;
	s->watch_end.data = s;
	return 0;
}

int service_run(const Caisson__Vmm__V1__VmConfig *config, struct service_fds *fds,
		struct error *err)
{
	struct service s = { .config = config, .descriptors = fds->descriptors };
	struct error start_err = { 0 };
	int r = loop_error(uv_loop_init(&s.loop));

	if (r < 0)
		return error_errno(err, r, "make an event loop");
	r = set_up(&s, fds, err);
	if (r < 0)
		return r;
	if (machine_start(&s.loop, config, &fds->machine, &machine_ops, &s, &s.machine,
			  &start_err) < 0)
		finish(&s, VMM_EXIT_START, error_text(&start_err));
	(void)uv_run(&s.loop, UV_RUN_DEFAULT);

	/* The process ends now: memory and handles go with it. Only the machine has threads. */
	machine_free(s.machine);
	free(s.text);
	return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest's arrival: the agent has connected. A machine that is to be a template is saved first; one
 * that started from a template is made unlike the others; then the sandbox is made in it, and the
 * containers that wait for it go on.
 */
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "sandbox/internal.h"
#include "sandbox/network.h"
#include "sandbox/pool.h"

#define AGENT_LOST_MS 1000 /* between the agent's connection and the VM's own end */

static void on_agent_lost(void *arg)
{
	struct sandbox *s = arg;

	s->lost_timer = NULL;
	if (s->state == VM_GONE)
		return;
	log_warn("the agent closed its connection, ending the virtual machine");
	(void)error_set(&s->failure, -ECONNRESET, "the agent in the virtual machine has gone");
	if (s->vmm)
		vmm_kill(s->vmm);
}

static void on_agent_closed(void *arg, int err)
{
	struct sandbox *s = arg;

	(void)err;
	/* Mostly the VM itself is about to end, and its own report says more. */
	if (s->state == VM_READY && !s->lost_timer &&
	    loop_timer_start(s->loop, AGENT_LOST_MS, on_agent_lost, s, &s->lost_timer) < 0)
		on_agent_lost(s);
}

static void on_oom(void *arg, const struct error *err, const Grpc__OOMEvent *answer);

static void ask_oom(struct sandbox *s)
{
	const Grpc__GetOOMEventRequest req = GRPC__GET_OOMEVENT_REQUEST__INIT;

	(void)!agent_get_oom_event(s->agent, &req, on_oom, s);
}

static void on_oom(void *arg, const struct error *err, const Grpc__OOMEvent *answer)
{
	struct sandbox *s = arg;
	struct sandbox_event ev = { .type = SANDBOX_EVENT_OOM };
	struct container *c;

	if (err || s->state != VM_READY)
		return;
	list_for_each(c, &s->containers, node)
		if (str_eq(c->guest_id, answer->container_id))
			ev.id = c->id;
	if (s->event && ev.id)
		s->event(s->arg, &ev);
	ask_oom(s);
}

int guest_resume(struct sandbox *s, uint32_t oom_call)
{
	agent_client_on_closed(s->agent, on_agent_closed, s);
	return oom_call ? agent_resume_get_oom_event(s->agent, oom_call, on_oom, s) : 0;
}

static void sandbox_prepared(struct sandbox *s)
{
	ask_oom(s);
	pod_prepared(s);
}

static void on_sandbox_created(void *arg, const struct error *err,
			       const Google__Protobuf__Empty *answer)
{
	struct sandbox *s = arg;

	(void)answer;
	if (s->state != VM_READY)
		return;
	if (err) {
		(void)error_set(&s->failure, err->code, "prepare the guest: %s", err->msg);
		log_error("%s", s->failure.msg);
		vmm_kill(s->vmm);
		return;
	}
	sandbox_prepared(s);
}

static const char *sandbox_hostname(struct sandbox *s)
{
	struct container *c;

	if (!str_empty(s->hostname))
		return s->hostname;

	list_for_each(c, &s->containers, node)
		if (c->spec && !str_empty(c->spec->hostname))
			return c->spec->hostname;
	return "caisson";
}

static void add_share(Grpc__Storage *g, Grpc__Storage **list, size_t *n, const char *tag,
		      const char *mount_point)
{
	grpc__storage__init(g);
	g->driver = (char *)"virtio-fs";
	g->source = (char *)tag;
	g->fstype = (char *)"virtiofs";
	g->mount_point = (char *)mount_point;
	list[(*n)++] = g;
}

/* A machine that started from a template has its clock and its random numbers. */
static void on_reseeded(void *arg, const struct error *err, const Google__Protobuf__Empty *answer)
{
	struct sandbox *s = arg;

	(void)answer;
	if (!err || s->state != VM_READY)
		return;
	(void)error_set(&s->failure, err->code, "give the guest fresh random numbers: %s", err->msg);
	vmm_kill(s->vmm);
}

static int make_unique(struct sandbox *s)
{
	Grpc__ReseedRandomDevRequest seed = GRPC__RESEED_RANDOM_DEV_REQUEST__INIT;
	Grpc__SetGuestDateTimeRequest now = GRPC__SET_GUEST_DATE_TIME_REQUEST__INIT;
	struct timespec ts;
	uint8_t data[32];
	int r;

	if (getrandom(data, sizeof(data), 0) != (ssize_t)sizeof(data))
		return -EIO;
	seed.data = (ProtobufCBinaryData){ .data = data, .len = sizeof(data) };
	r = agent_reseed_random_dev(s->agent, &seed, on_reseeded, s);
	explicit_bzero(data, sizeof(data));
	if (r < 0)
		return r;
	(void)clock_gettime(CLOCK_REALTIME, &ts);
	now.sec = ts.tv_sec;
	now.usec = ts.tv_nsec / 1000;
	return agent_set_guest_date_time(s->agent, &now, NULL, NULL);
}

static int create_sandbox(struct sandbox *s)
{
	Grpc__CreateSandboxRequest req = GRPC__CREATE_SANDBOX_REQUEST__INIT;
	Grpc__Storage share[2], *storages[2];

	req.sandbox_id = s->id;
	req.hostname = (char *)sandbox_hostname(s);
	req.n_dns = network_dns(s, &req.dns);
	req.storages = storages;
	if (s->shares.ro)
		add_share(&share[req.n_storages], storages, &req.n_storages, "caisson-ro",
			  SHARES_GUEST_DIR "/ro");
	if (s->shares.rw)
		add_share(&share[req.n_storages], storages, &req.n_storages, "caisson-rw",
			  SHARES_GUEST_DIR "/rw");
	return agent_create_sandbox(s->agent, &req, on_sandbox_created, s);
}

/* Takes @fd. */
static void agent_arrived(struct sandbox *s, int fd)
{
	struct container *c, *tmp;
	int r = agent_client_new(s->loop, fd, &s->agent);

	if (r < 0)
		(void)close(fd);
	if (r == 0) {
		s->state = VM_READY;
		log_info("the agent is ready");
		vmm_booted(s->vmm);
		agent_client_on_closed(s->agent, on_agent_closed, s);
		health_start(s);
		if (template_loads(s->template) || s->restore)
			r = make_unique(s);
		if (template_loads(s->template) && s->is_builtin && s->vmm && !s->taken)
			template_learn(s->template, s->vmm);
	}
	if (r == 0)
		pool_refill(s);
	template_free(take_ptr(&s->template));
	if (r == 0 && s->restore)
		sandbox_prepared(s);
	else if (r == 0)
		r = create_sandbox(s);
	if (r < 0) {
		(void)error_errno(&s->failure, r, "talk to the agent");
		vmm_kill(s->vmm);
		return;
	}
	/* Not after the answers: the agent takes requests in order. */
	network_configure(s);
	list_for_each_safe(c, tmp, &s->containers, node)
		container_agent_ready(c);
}

static void on_template_saved(void *arg)
{
	struct sandbox *s = arg;

	if (s->state == VM_BOOTING && s->vmm)
		agent_arrived(s, take_fd(&s->hello_fd));
}

static void guest_hello(void *arg, const struct error *err, int fd, uint32_t host_port)
{
	struct sandbox *s = arg;

	(void)host_port;
	s->hello = NULL;
	if (err) {
		s->failure = *err;
		vmm_kill(s->vmm);
		return;
	}
	loop_timer_cancel(s->boot_timer);
	s->boot_timer = NULL;
	s->hello_fd = fd;
	if (!s->template || template_loads(s->template) ||
	    template_save(s->template, s->vmm, on_template_saved, s) < 0)
		agent_arrived(s, take_fd(&s->hello_fd));
}

int guest_spawn(struct sandbox *s, const struct vmm_config *cfg, struct error *err)
{
	int r = agent_vsock_accept(s->loop, s->vsock, AGENT_PORT_HELLO, 0, guest_hello, s, &s->hello, err);

	return r < 0 ? r : vmm_spawn(s->loop, cfg, &sandbox_vm_events, s, &s->vmm, err);
}

static void on_arrival(void *arg)
{
	struct sandbox *s = arg;

	s->boot_timer = NULL;
	agent_arrived(s, take_fd(&s->hello_fd));
}

int guest_arrives(struct sandbox *s, int fd)
{
	s->hello_fd = fd;
	return loop_timer_start(s->loop, 0, on_arrival, s, &s->boot_timer);
}

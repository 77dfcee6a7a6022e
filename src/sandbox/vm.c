/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sandbox's VM: boot and end (guest.c: the agent's hello). A boot has four outcomes: the agent connects;
 * the VM exits first; the time limit passes (the console's last lines then tell why); the caller
 * stops it. After the end nothing can be started again.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "oci/oci.h"
#include "sandbox/internal.h"
#include "sandbox/network.h"
#include "sandbox/pool.h"

#define CONSOLE_MS    1000 /* for the console's last lines */
#define TAIL_LINES    12u
#define WIND_DOWN_MS  20000 /* for the guest to write its disks out */

/* The last one may free the sandbox. */
static void run_stop_waiters(struct sandbox *s)
{
	struct stop_waiter *w = s->stop_waiters, *next;

	s->stop_waiters = NULL;
	for (; w; w = next) {
		next = w->next;
		w->done(w->arg, NULL);
		free(w);
	}
}

/* One line beside the bundle for whoever asks later why the containers ended. */
static void write_crash_record(struct sandbox *s)
{
	auto_close int dfd = open(s->bundle, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
	auto_free char *line = str_printf("%s\n", s->failure.msg);

	if (dfd >= 0 && line)
		(void)!fsutil_write_volatile(dfd, "crash", line, strlen(line), 0600);
}

static void vm_gone(struct sandbox *s, uint32_t status, int code, const char *text)
{
	struct container *c, *tmp;
	struct agent_client *agent = s->agent;

	if (s->state == VM_GONE)
		return;
	s->state = VM_GONE;
	s->gone_status = status;
	if (!s->failure.code)
		(void)error_set(&s->failure, code, "%s", text ? text : "the virtual machine is gone");
	if (!s->stopping) {
		log_error("%s", s->failure.msg);
		write_crash_record(s);
	}
	loop_timer_cancel(s->boot_timer);
	loop_timer_cancel(s->lost_timer);
	loop_timer_cancel(s->wind_down_timer);
	health_stop(s);
	s->boot_timer = s->lost_timer = s->wind_down_timer = NULL;
	agent_vsock_cancel(s->hello);
	s->hello = NULL;
	cleanup_close_(&s->hello_fd);
	s->hello_fd = -1;
	template_free(take_ptr(&s->template));
	s->agent = NULL;
	agent_client_close(agent);
	network_vm_gone(s);
	list_for_each_safe(c, tmp, &s->containers, node)
		container_vm_gone(c);
	pod_gone(s);
	run_stop_waiters(s);
}

/* The last lines of @text, in one line for a message. */
static char *tail_of(const char *text, size_t len)
{
	struct buf b = BUF_INIT(0);
	unsigned lines = 0;
	char *out = NULL;
	size_t from = len;

	while (from && (text[from - 1] == '\n' || text[from - 1] == '\r'))
		from--;
	len = from;
	while (from) {
		if (text[from - 1] == '\n' && ++lines == TAIL_LINES)
			break;
		from--;
	}
	for (size_t i = from; i < len; i++) {
		char ch = text[i];
		int r;

		if (ch == '\r')
			continue;
		r = ch == '\n' ? buf_append(&b, " | ", 3) : buf_append(&b, &ch, 1);
		if (r < 0)
			break;
	}
	/* The end says the most: cut the front to what a message holds. */
	if (b.len > ERROR_MSG_MAX / 2)
		buf_consume(&b, b.len - ERROR_MSG_MAX / 2);
	if (buf_take_str(&b, &out) < 0)
		out = NULL;
	buf_fini(&b);
	return out;
}

static void on_console_tail(struct vmm *vmm, const struct error *err, const char *data, size_t len,
			    void *arg)
{
	struct sandbox *s = arg;

	if (s->state == VM_GONE)
		return;
	free(s->console_tail);
	s->console_tail = !err && len ? tail_of(data, len) : NULL;
	(void)error_set(&s->failure, -ETIMEDOUT,
			"the virtual machine did not come up within %u ms%s%s",
			s->config->boot_timeout_ms,
			s->console_tail ? "; its console says: " : "; its console is empty",
			s->console_tail ? s->console_tail : "");
	vmm_kill(vmm);
}

static void on_boot_timeout(void *arg)
{
	struct sandbox *s = arg;

	s->boot_timer = NULL;
	if (s->state != VM_BOOTING || s->dying)
		return;
	if (s->failure.code == 0)
		(void)error_set(&s->failure, -ETIMEDOUT,
				"the virtual machine did not come up within %u ms",
				s->config->boot_timeout_ms);
	s->dying = true;
	if (vmm_console(s->vmm, on_console_tail, s) < 0)
		vmm_kill(s->vmm);
	else
		(void)!loop_timer_start(s->loop, CONSOLE_MS, on_boot_timeout, s,
					&s->boot_timer);
}

static void on_vm_started(struct vmm *vmm, const struct vmm_info *info, void *arg)
{
	struct sandbox *s = arg;

	(void)vmm;
	log_write(LOG_INFO, "virtual machine started", "accelerator",
		  info->accel == VMM_ACCEL_KVM ? "kvm" : "tcg", "machine",
		  vmm_machine_name(info->machine), NULL);
	s->is_builtin = info->machine == VMM_MACHINE_BUILTIN;
	size_of_vm(s, info);
}

static void on_vm_closed(void *arg)
{
	(void)arg;
}

/* All of the VM's containers have run out of memory, before they end. */
static void tell_oom(struct sandbox *s)
{
	const struct container *c;

	list_for_each(c, &s->containers, node) {
		struct sandbox_event ev = { .type = SANDBOX_EVENT_OOM, .id = c->id };

		if (s->event && c->init && c->init->state == PROCESS_RUNNING)
			s->event(s->arg, &ev);
	}
}

static void on_vm_exited(struct vmm *vmm, enum vmm_exit reason, const char *text, void *arg)
{
	struct sandbox *s = arg;
	bool booting = s->state == VM_BOOTING;
	auto_free char *tail = NULL;

	s->vmm = NULL;
	vmm_close(vmm, on_vm_closed, NULL);
	if (booting && !s->stopping)
		template_reject(s->template);
	if (s->stopping && !s->failure.code) {
		vm_gone(s, EXIT_KILLED, -ECONNRESET, "the virtual machine has been stopped");
		return;
	}
	log_write(LOG_WARN, "virtual machine ended", "reason", vmm_exit_name(reason), "text", text,
		  NULL);
	if (s->failure.code) {
		vm_gone(s, EXIT_KILLED, s->failure.code, NULL);
		return;
	}
	tail = tail_of(text, strlen(text));
	switch (reason) {
	case VMM_EXIT_PANIC:
		(void)error_set(&s->failure, -ECONNRESET, "the guest's kernel %s: %s",
				booting ? "did not start" : "panicked", tail ? tail : "");
		break;
	case VMM_EXIT_START:
		(void)error_set(&s->failure, -EIO, "the virtual machine could not be started: %s",
				tail ? tail : "");
		break;
	case VMM_EXIT_GUEST:
		(void)error_set(&s->failure, -ECONNRESET, "the guest powered off%s%s",
				booting ? " before its agent was ready: " : "",
				booting && tail ? tail : "");
		break;
	case VMM_EXIT_OOM:
		(void)error_set(&s->failure, -ECONNRESET,
				"the virtual machine was killed: the host had no memory for it, or its "
				"pod's limit was reached");
		tell_oom(s);
		break;
	case VMM_EXIT_STOPPED:
	case VMM_EXIT_CRASH:
	case VMM_EXIT_LOST:
		(void)error_set(&s->failure, -ECONNRESET, "the virtual machine was lost (%s)%s%s",
				vmm_exit_name(reason), str_empty(tail) ? "" : ": ",
				tail ? tail : "");
		break;
	}
	vm_gone(s, reason == VMM_EXIT_PANIC || reason == VMM_EXIT_GUEST ? EXIT_UNKNOWN : EXIT_KILLED,
		s->failure.code, NULL);
}

/* [A-Za-z0-9_.-], at most VMM_ID_MAX. */
static char *vm_name(const struct sandbox *s)
{
	char *name = str_printf("%s.%s", s->ns, s->id);

	if (name && strlen(name) > VMM_ID_MAX)
		name[VMM_ID_MAX] = '\0';
	for (char *p = name; p && *p; p++)
		if (!strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-", *p))
			*p = '_';
	return name;
}

const struct vmm_events sandbox_vm_events = { on_vm_started, on_vm_exited };

int sandbox_attach_vm(struct sandbox *s)
{
	struct error err = { 0 };
	int r = vmm_attach(s->loop, s->vm_dir, &sandbox_vm_events, s, &s->vmm, &err);

	if (r == 0)
		return 0;
	log_warn("%s", error_text(&err));
	if (vmm_reclaim(s->vm_dir, &err) < 0)
		log_warn("%s", error_text(&err));
	(void)error_set(&s->failure, -ECONNRESET, "the virtual machine was lost");
	vm_gone(s, EXIT_KILLED, s->failure.code, NULL);
	return r;
}

int sandbox_boot(struct sandbox *s, const Grpc__Spec *spec, struct error *err)
{
	auto_free char *extra = NULL, *name = NULL, *cgroup = pod_cgroup(s, spec), *claims = NULL;
	struct vmm_nic nics[VMM_MAX_NICS];
	const char *pci[VMM_MAX_PCI];
	struct vmm_share shares[2];
	struct vmm_config cfg;
	bool ro, rw;
	int r;

	if (s->state != VM_NEW)
		return 0;
	if (mkdir(s->vm_dir, 0700) < 0 && errno != EEXIST)
		return error_errno(err, -errno, "make '%s'", s->vm_dir);
	name = vm_name(s);
	extra = str_printf("agent.log=%s agent.hotplug_timeout=20%s%s", s->config->agent_log_level,
			   s->config->kernel_params ? " " : "",
			   s->config->kernel_params ? s->config->kernel_params : "");
	if (!name || !extra)
		return error_set(err, -ENOMEM, "out of memory");

	/* A pod's later containers may ask for anything; containerd's root may be an overlay. */
	volumes_shared(spec, &ro, &rw);
	if (s->own_mounts) {
		ro = ro || s->is_pod;
		rw = rw || s->is_pod || !str_eq(s->ns, SANDBOX_OWN_NAMESPACE);
	} else if (ro || rw) {
		return error_set(err, -EPERM,
				 "host directories cannot be shared without a mount namespace");
	}
	r = restore_open(s, spec, err);
	if (r < 0)
		return r;
	r = shares_init(&s->shares, s->dir, ro, rw, err);
	if (r < 0)
		return r;
	r = hostdev_find_pci(s, spec, err);
	if (r == 0)
		r = network_open(s, spec, pod_vcpus(s, spec), err);
	if (r < 0)
		return r;
	claims = str_printf("%s/uids", sandbox_run_root());
	if (!claims)
		return error_set(err, -ENOMEM, "out of memory");
	vmm_config_init(&cfg);
	cfg.id = name;
	cfg.dir = s->vm_dir;
	cfg.cgroup_parent = cgroup;
	cfg.kernel = s->kernel;
	cfg.root_image = s->config->root_image;
	cfg.initrd = cfg.root_image ? NULL : s->initrd;
	cfg.cmdline_extra = extra;
	cfg.memory_mib = pod_memory_mib(s, spec);
	cfg.vcpus = pod_vcpus(s, spec);
	cfg.memory_max_mib = pod_memory_max_mib(s, cfg.memory_mib);
	cfg.vcpus_max = pod_vcpus_max(s, cfg.vcpus);
	cfg.baseline_cpu = s->config->baseline_cpu;
	cfg.uids = (struct vmm_uids){ s->config->uid_first, s->config->n_uids, claims };
	cfg.hugepages = s->config->hugepages;
	cfg.prealloc = s->config->prealloc;
	cfg.machine = str_eq(s->config->machine, "q35")	    ? VMM_MACHINE_Q35 :
		      str_eq(s->config->machine, "microvm") ? VMM_MACHINE_MICROVM :
		      str_eq(s->config->machine, "builtin") ? VMM_MACHINE_BUILTIN :
							      VMM_MACHINE_AUTO;
	cfg.accel = s->config->accel == CONFIG_ACCEL_KVM ? VMM_ACCEL_KVM :
		    s->config->accel == CONFIG_ACCEL_TCG ? VMM_ACCEL_TCG :
							   VMM_ACCEL_AUTO;
	cfg.shelf = true;
	cfg.shares = shares;
	cfg.n_shares = shares_for_vmm(&s->shares, s->config, shares);
	cfg.nics = nics;
	cfg.n_nics = network_nics(s, nics);
	cfg.pci = pci;
	cfg.n_pci = network_pci(s, pci);
	cfg.netns_fd = network_netns(s);
	cfg.console_fd = s->config->log_console ? s->log_fd : -1;
	cfg.log_fd = s->log_fd;
	cfg.qemu = s->config->qemu;
	cfg.debug = log_get_level() >= LOG_DEBUG;
	if (s->restore) {
		r = restore_config(s, &cfg, err);
		if (r < 0)
			return r;
	}
	if (vmm_snapshot_key(&cfg, &s->snapshot_key, NULL) < 0)
		s->snapshot_key = NULL;
	if (s->config->templates && !s->restore)
		template_find(&cfg, &s->template);
	if (!pool_take(s, &cfg))
		r = guest_spawn(s, &cfg, err);
	network_vm_started(s);
	if (r < 0) {
		network_vm_gone(s);
		agent_vsock_cancel(s->hello);
		s->hello = NULL;
		return r;
	}
	s->state = VM_BOOTING;
	s->vm_pid = (uint32_t)vmm_pid(s->vmm);
	/* Of a machine that was there the agent's arrival is under way. */
	if (!s->boot_timer)
		r = loop_timer_start(s->loop, s->config->boot_timeout_ms, on_boot_timeout, s,
				     &s->boot_timer);
	if (r < 0)
		return error_errno(err, r, "start a timer");

	if (spec && !spec_root_readonly(spec) && !s->scratch && !s->restore &&
	    str_eq(s->ns, SANDBOX_OWN_NAMESPACE)) {
		struct error e = { 0 };

		/* The container's creation tries again, and reports it. */
		if (scratch_of_spec(s, spec, &s->scratch, &e) < 0)
			log_warn("%s", error_text(&e));
	}
	return 0;
}

static void on_wind_down_timeout(void *arg)
{
	struct sandbox *s = arg;

	s->wind_down_timer = NULL;
	if (s->vmm)
		vmm_kill(s->vmm);
}

static void on_wound_down(void *arg, const struct error *err, const Google__Protobuf__Empty *answer)
{
	struct sandbox *s = arg;

	(void)answer;
	if (err && s->state != VM_GONE)
		log_warn("unmount the guest's disks: %s", err->msg);
	if (s->state != VM_GONE)
		vmm_kill(s->vmm);
}

/*
 * Has the guest unmount what outlives it: what is written is then in the disks' files, whose file
 * systems are clean. False if there is nothing to wait for.
 */
static bool wind_down(struct sandbox *s)
{
	const Grpc__DestroySandboxRequest req = GRPC__DESTROY_SANDBOX_REQUEST__INIT;

	if (s->wind_down_timer)
		return true;
	if (!s->has_lasting_disk || s->state != VM_READY)
		return false;
	if (loop_timer_start(s->loop, WIND_DOWN_MS, on_wind_down_timeout, s, &s->wind_down_timer) < 0)
		return false;
	return agent_destroy_sandbox(s->agent, &req, on_wound_down, s) == 0;
}

void sandbox_stop(struct sandbox *s, sandbox_done_fn done, void *arg)
{
	struct stop_waiter *w, **end;

	s->stopping = true;
	if (s->state == VM_NEW || s->state == VM_GONE) {
		if (s->state == VM_NEW)
			vm_gone(s, EXIT_KILLED, -ECONNRESET, "the virtual machine has been stopped");
		if (done)
			done(arg, NULL);
		return;
	}
	if (done) {
		w = calloc(1, sizeof(*w));
		if (!w) {
			struct error err = { 0 };

			(void)error_set(&err, -ENOMEM, "out of memory");
			done(arg, &err);
			return;
		}
		w->done = done;
		w->arg = arg;
		for (end = &s->stop_waiters; *end; end = &(*end)->next)
			;
		*end = w;
	}
	if (!wind_down(s))
		vmm_kill(s->vmm);
}

uint32_t sandbox_vm_pid(const struct sandbox *s)
{
	return s->vm_pid ? s->vm_pid : (uint32_t)getpid();
}

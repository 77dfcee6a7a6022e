/*
 * Drives vmm.h from a script: options describe a VM, commands come on stdin, one a line, and
 * what happens is printed, one line each. Used by tests/e2e/test_vmm.py; not installed.
 */
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/str.h"
#include "vmm/vmm.h"

struct drive {
	uv_loop_t loop;
	uv_pipe_t input;
	struct vmm *vmm;
	char line[4096];
	size_t len;
	bool closed;
};

static void say(const char *what, const char *text)
{
	printf("%s ", what);
	for (; *text; text++) {
		if (*text == '\n')
			fputs("\\n", stdout);
		else
			putchar(*text);
	}
	putchar('\n');
	fflush(stdout);
}

static void leave(struct drive *d)
{
	if (d->closed)
		return;
	d->closed = true;
	uv_close((uv_handle_t *)&d->input, NULL);
	vmm_close(d->vmm, NULL, NULL);
}

static void on_started(struct vmm *vmm, const struct vmm_info *info, void *ctx)
{
	(void)vmm;
	(void)ctx;
	printf("started machine=%s accel=%s vmm=%d qemu=%d\n",
	       vmm_machine_name(info->machine),
	       info->accel == VMM_ACCEL_KVM ? "kvm" : "tcg", info->vmm_pid, info->qemu_pid);
	fflush(stdout);
}

static void on_exited(struct vmm *vmm, enum vmm_exit reason, const char *text, void *ctx)
{
	char what[32];

	(void)vmm;
	snprintf(what, sizeof(what), "exited %s", vmm_exit_name(reason));
	say(what, text);
	leave(ctx);
}

static void on_done(struct vmm *vmm, const struct error *err, void *ctx)
{
	(void)vmm;
	(void)ctx;
	if (err)
		say("failed", error_text(err));
	else
		say("done", "");
}

static void on_attached(struct vmm *vmm, const struct error *err, const struct vmm_place *place,
			void *ctx)
{
	(void)vmm;
	(void)ctx;
	if (err) {
		say("failed", error_text(err));
		return;
	}
	printf("done %u %llu %llu\n", place->part, (unsigned long long)place->start,
	       (unsigned long long)place->size);
	fflush(stdout);
}

static void on_console(struct vmm *vmm, const struct error *err, const char *data, size_t len,
		       void *ctx)
{
	(void)vmm;
	(void)ctx;
	if (err)
		say("failed", error_text(err));
	else
		printf("console %zu ", len);
	for (size_t i = 0; i < len; i++)
		printf("%02x", (unsigned char)data[i]);
	printf("\n");
	fflush(stdout);
}

static int save(struct drive *d, bool stay, const char *ram, const char *state)
{
	auto_close int ram_fd = open(ram, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	auto_close int state_fd = open(state, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	return ram_fd < 0 || state_fd < 0 ? -errno
					  : (stay ? vmm_snapshot : vmm_template_save)(
						    d->vmm, ram_fd, state_fd, on_done, d);
}

static void command(struct drive *d, char *line)
{
	char *word = strtok(line, " "), *one = strtok(NULL, " "), *two = strtok(NULL, " ");
	int r = 0;

	if (!word)
		return;
	if (str_eq(word, "pause")) {
		r = vmm_pause(d->vmm, on_done, d);
	} else if (str_eq(word, "resume")) {
		r = vmm_resume(d->vmm, on_done, d);
	} else if (str_eq(word, "shutdown")) {
		r = vmm_shutdown(d->vmm, on_done, d);
	} else if (str_eq(word, "kill")) {
		vmm_kill(d->vmm);
	} else if (str_eq(word, "console")) {
		r = vmm_console(d->vmm, on_console, d);
	} else if (str_eq(word, "attach") && one && two) {
		const struct vmm_disk disk = { .path = one, .serial = two };

		r = vmm_disk_attach(d->vmm, &disk, on_attached, d);
	} else if (str_eq(word, "detach") && one) {
		r = vmm_disk_detach(d->vmm, one, on_done, d);
	} else if (str_eq(word, "save") && one && two) {
		r = save(d, false, one, two);
	} else if (str_eq(word, "resize") && one && two) {
		const struct vmm_size size = { .vcpus = (uint32_t)atoi(one),
					       .memory_mib = (uint32_t)atoi(two) };

		r = vmm_resize(d->vmm, &size, on_done, d);
	} else if (str_eq(word, "working-set") && one) {
		auto_close int fd = open(one, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

		r = fd < 0 ? -errno : vmm_working_set(d->vmm, fd, on_done, d);
	} else if (str_eq(word, "snapshot") && one && two) {
		r = save(d, true, one, two);
	} else if (str_eq(word, "close")) {
		leave(d);
	} else {
		say("failed", "unknown command");
	}
	if (r < 0)
		say("failed", strerror(-r));
}

static void on_input(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
	struct drive *d = stream->data;

	(void)buf;
	if (n < 0) {
		uv_read_stop(stream);
		return;
	}
	d->len += (size_t)n;
	for (;;) {
		char *nl = memchr(d->line, '\n', d->len);
		size_t used;

		if (!nl || d->closed)
			return;
		*nl = '\0';
		used = (size_t)(nl - d->line) + 1;
		command(d, d->line);
		memmove(d->line, d->line + used, d->len - used);
		d->len -= used;
	}
}

static void give_room(uv_handle_t *handle, size_t hint, uv_buf_t *buf)
{
	struct drive *d = handle->data;

	(void)hint;
	*buf = uv_buf_init(d->line + d->len, (unsigned)(sizeof(d->line) - d->len));
}

static void add_disk(struct vmm_disk *disk, char *text)
{
	*disk = (struct vmm_disk){ .path = strtok(text, ":") };
	disk->serial = strtok(NULL, ":");
	disk->read_only = str_eq(strtok(NULL, ":"), "ro");
}

static void add_share(struct vmm_share *share, char *text)
{
	share->path = strtok(text, ":");
	share->tag = strtok(NULL, ":");
	share->read_only = str_eq(strtok(NULL, ":"), "ro");
}

/* FIRST:N:DIRECTORY */
static void add_uids(struct vmm_uids *uids, char *text)
{
	uids->first = (uint32_t)strtoul(strtok(text, ":"), NULL, 10);
	uids->n = (uint32_t)strtoul(strtok(NULL, ":"), NULL, 10);
	uids->claims = strtok(NULL, ":");
}

static enum vmm_machine machine_of(const char *name)
{
	static const enum vmm_machine all[] = { VMM_MACHINE_MICROVM, VMM_MACHINE_Q35,
						VMM_MACHINE_BUILTIN };

	for (size_t i = 0; i < ARRAY_LEN(all); i++)
		if (str_eq(name, vmm_machine_name(all[i])))
			return all[i];
	return VMM_MACHINE_AUTO;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "dir", 1, NULL, 'd' },    { "kernel", 1, NULL, 'k' },  { "initrd", 1, NULL, 'i' },
		{ "append", 1, NULL, 'a' }, { "disk", 1, NULL, 'D' },    { "shelf", 0, NULL, 's' },
		{ "memory", 1, NULL, 'm' }, { "vcpus", 1, NULL, 'c' },   { "machine", 1, NULL, 'M' },
		{ "accel", 1, NULL, 'A' },  { "console", 1, NULL, 'C' }, { "program", 1, NULL, 'p' },
		{ "debug", 0, NULL, 'v' },  { "attach", 0, NULL, 't' },  { "reclaim", 0, NULL, 'r' },
		{ "root", 1, NULL, 'R' },   { "share", 1, NULL, 'S' },   { "qemu", 1, NULL, 'q' },
		{ "probe", 0, NULL, 'P' },  { "hugepages", 0, NULL, 'H' }, { "prealloc", 0, NULL, 'Z' },
		{ "vcpus-max", 1, NULL, 'X' }, { "memory-max", 1, NULL, 'Y' },
		{ "will-save", 0, NULL, 'w' }, { "load-ram", 1, NULL, 'l' },
		{ "load-state", 1, NULL, 'L' }, { "working-set", 1, NULL, 'W' },
		{ "uids", 1, NULL, 'U' }, { "baseline", 0, NULL, 'B' }, { NULL, 0, NULL, 0 },
	};
	const struct vmm_events events = { .started = on_started, .exited = on_exited };
	static struct drive d;
	struct vmm_disk disks[VMM_MAX_DISKS];
	struct vmm_share shares[VMM_MAX_SHARES];
	struct vmm_config cfg;
	struct vmm_host host;
	struct error err = { 0 };
	bool attach = false, reclaim = false, probe = false;
	int c, r;

	log_init("drive", 2, LOG_INFO);
	vmm_config_init(&cfg);
	cfg.id = "drive";
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'd': cfg.dir = optarg; break;
		case 'k': cfg.kernel = optarg; break;
		case 'i': cfg.initrd = optarg; break;
		case 'a': cfg.cmdline_extra = optarg; break;
		case 'D': add_disk(&disks[cfg.n_disks++], optarg); break;
		case 'S': add_share(&shares[cfg.n_shares++], optarg); break;
		case 's': cfg.shelf = true; break;
		case 'm': cfg.memory_mib = (uint32_t)atoi(optarg); break;
		case 'c': cfg.vcpus = (uint32_t)atoi(optarg); break;
		case 'M': cfg.machine = machine_of(optarg); break;
		case 'A': cfg.accel = str_eq(optarg, "kvm") ? VMM_ACCEL_KVM : VMM_ACCEL_TCG; break;
		case 'C': cfg.console_fd = open(optarg, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600); break;
		case 'p': cfg.program = optarg; break;
		case 'q': cfg.qemu = optarg; break;
		case 'R': cfg.root_image = optarg; break;
		case 'v': cfg.debug = true; break;
		case 't': attach = true; break;
		case 'r': reclaim = true; break;
		case 'P': probe = true; break;
		case 'H': cfg.hugepages = true; break;
		case 'Z': cfg.prealloc = true; break;
		case 'X': cfg.vcpus_max = (uint32_t)atoi(optarg); break;
		case 'Y': cfg.memory_max_mib = (uint32_t)atoi(optarg); break;
		case 'w': cfg.will_save = true; break;
		case 'l': cfg.template_ram_fd = open(optarg, O_RDONLY | O_CLOEXEC); break;
		case 'L': cfg.template_state_fd = open(optarg, O_RDONLY | O_CLOEXEC); break;
		case 'W': cfg.working_set_fd = open(optarg, O_RDONLY | O_CLOEXEC); break;
		case 'B': cfg.baseline_cpu = true; break;
		case 'U': add_uids(&cfg.uids, optarg); break;
		default: return 2;
		}
	}
	if (probe) {
		r = vmm_host_probe(cfg.dir, &host, &err);
		printf("probe %d %s %u %s\n", host.kvm_usable, host.qemu_path, host.tsc_khz, host.kvm_why);
		return r < 0;
	}
	if (!cfg.dir)
		return 2;
	cfg.id = strrchr(cfg.dir, '/') ? strrchr(cfg.dir, '/') + 1 : cfg.dir;
	cfg.disks = disks;
	cfg.shares = shares;
	if (reclaim) {
		r = vmm_reclaim(cfg.dir, &err);
		say(r < 0 ? "failed" : "done", error_text(&err));
		return r < 0;
	}
	uv_loop_init(&d.loop);
	uv_pipe_init(&d.loop, &d.input, 0);
	if (uv_guess_handle(0) == UV_NAMED_PIPE)
		uv_pipe_open(&d.input, 0);
	d.input.data = &d;
	if (attach)
		r = vmm_attach(&d.loop, cfg.dir, &events, &d, &d.vmm, &err);
	else
		r = vmm_spawn(&d.loop, &cfg, &events, &d, &d.vmm, &err);
	if (r < 0) {
		say("failed", error_text(&err));
		return 1;
	}
	printf("spawned %d\n", vmm_pid(d.vmm));
	fflush(stdout);
	(void)uv_read_start((uv_stream_t *)&d.input, give_room, on_input);
	uv_run(&d.loop, UV_RUN_DEFAULT);
	return 0;
}

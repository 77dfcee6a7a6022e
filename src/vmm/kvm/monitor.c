/*
 * Theory of operation
 *
 * Three kinds of threads: the loop's, one for each vCPU, one for each device. A vCPU that meets an
 * address without memory finds the device by its page and accesses its registers; kicks and
 * interrupts go through KVM and the device's thread alone. A vCPU that ends leaves word in `end`
 * and wakes the loop, which stops the other vCPUs, then the devices, reads the rest of the console,
 * and reports. The table of devices does not change once vCPUs run.
 */
#include "vmm/kvm/monitor.h"

#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/str.h"
#include "virtio/balloon.h"
#include "virtio/console.h"
#include "virtio/rng.h"
#include "vmm/kvm/boot.h"
#include "vmm/kvm/cmdline.h"
#include "vmm/kvm/layout.h"
#include "vmm/kvm/snapshot.h"
#include "vmm/ram.h"

#define READ_SIZE 4096u
#define OWN_QUEUE 64u

struct device {
	struct virtio_mmio *mmio;
	int irq_fd;
};

struct monitor {
	const struct monitor_ops *ops;
	void *ctx;
	uv_loop_t *loop;
	struct monitor_config config;
	struct vm vm;
	struct vcpu vcpus[MONITOR_MAX_VCPUS];
	struct device devices[MONITOR_MAX_DEVICES];
	size_t n_devices;

	uv_async_t wake;
	uv_poll_t console;
	int console_fd;    /* our end */
	int console_guest; /* the device's, until it has it */
	bool wake_open, console_open;
	bool started, told, over, freed;
	bool frozen;
	bool vm_open;
	unsigned n_handles;

	pthread_mutex_t lock;
	bool ended; /* under lock, as the two below */
	struct monitor_end end;
	char text[200];
};

/* --- vCPUs' threads --- */

static void on_mmio(void *ctx, uint64_t addr, void *data, unsigned len, bool write)
{
	struct monitor *m = ctx;
	uint64_t i = (addr - LAYOUT_MMIO) / VIRTIO_MMIO_SIZE;

	if (addr < LAYOUT_MMIO || i >= m->n_devices) {
		if (!write)
			memset(data, 0xff, len);
		return;
	}
	addr = (addr - LAYOUT_MMIO) % VIRTIO_MMIO_SIZE;
	if (write)
		virtio_mmio_write(m->devices[i].mmio, addr, data, len);
	else
		virtio_mmio_read(m->devices[i].mmio, addr, data, len);
}

static void set_end(struct monitor *m, bool stopped, enum vcpu_end why, const char *text)
{
	pthread_mutex_lock(&m->lock);
	if (!m->ended) {
		m->ended = true;
		(void)snprintf(m->text, sizeof(m->text), "%s", text);
		m->end = (struct monitor_end){ .stopped = stopped, .why = why, .text = m->text };
		(void)uv_async_send(&m->wake);
	}
	pthread_mutex_unlock(&m->lock);
}

static void on_vcpu_ended(void *ctx, enum vcpu_end why, const char *text)
{
	set_end(ctx, false, why, text);
}

static const struct vcpu_ops vcpu_ops = {
	.mmio = on_mmio,
	.ended = on_vcpu_ended,
};

/* --- the loop's thread --- */

static void handle_closed(uv_handle_t *handle)
{
	struct monitor *m = handle->data;

	m->n_handles--;
	if (m->freed && m->n_handles == 0) {
		pthread_mutex_destroy(&m->lock);
		free(m);
	}
}

/* Reads what is there, at most @rounds times; false at the end. */
static bool read_console(struct monitor *m, int rounds)
{
	char data[READ_SIZE];

	while (rounds-- > 0) {
		ssize_t n = read(m->console_fd, data, sizeof(data));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return true;
		if (n <= 0)
			return false;
		m->ops->console(m->ctx, data, (size_t)n);
	}
	return true;
}

static void close_console(struct monitor *m)
{
	if (m->console_open) {
		m->console_open = false;
		(void)uv_poll_stop(&m->console);
		uv_close((uv_handle_t *)&m->console, handle_closed);
	}
	if (m->console_fd >= 0)
		(void)close(take_fd(&m->console_fd));
	if (m->console_guest >= 0)
		(void)close(take_fd(&m->console_guest));
}

static void on_console(uv_poll_t *poll, int status, int events)
{
	struct monitor *m = poll->data;

	(void)events;
	if (status < 0 || !read_console(m, 4))
		close_console(m);
}

static void log_exits(const struct monitor *m)
{
	uint64_t n[VCPU_N_EXITS] = { 0 };

	for (unsigned i = 0; i < m->config.vcpus; i++)
		for (unsigned k = 0; k < VCPU_N_EXITS; k++)
			n[k] += m->vcpus[i].exits[k];
	if (!m->vm_open)
		return;
	log_debug("exits: io %llu, mmio %llu, interrupted %llu, other %llu",
		  (unsigned long long)n[VCPU_EXIT_IO], (unsigned long long)n[VCPU_EXIT_MMIO],
		  (unsigned long long)n[VCPU_EXIT_INTERRUPTED],
		  (unsigned long long)n[VCPU_EXIT_OTHER]);
}

/* Everything with a thread, in the order in which they need each other. */
static void stop_all(struct monitor *m)
{
	for (unsigned i = 0; i < m->config.vcpus; i++) {
		vcpu_stop(&m->vcpus[i]);
		m->end.panic_known |= m->vcpus[i].panic_known;
	}
	log_exits(m);
	for (unsigned i = 0; i < m->config.vcpus; i++)
		vcpu_fini(&m->vcpus[i]);
	for (size_t i = 0; i < m->n_devices; i++) {
		virtio_mmio_stop(m->devices[i].mmio);
		(void)close(m->devices[i].irq_fd);
	}
	m->n_devices = 0;
	if (m->vm_open)
		vm_fini(&m->vm);
	m->vm_open = false;
}

static void on_wake(uv_async_t *async)
{
	struct monitor *m = async->data;
	bool ended;

	if (m->started && !m->told) {
		m->told = true;
		m->ops->running(m->ctx);
	}
	pthread_mutex_lock(&m->lock);
	ended = m->ended;
	pthread_mutex_unlock(&m->lock);
	if (!ended || m->over || m->freed)
		return;
	m->over = true;
	stop_all(m);
	if (m->console_fd >= 0)
		(void)read_console(m, 64);
	close_console(m);
	m->ops->ended(m->ctx, &m->end);
}

static int open_handles(struct monitor *m)
{
	int fds[2], r;

	r = loop_error(uv_async_init(m->loop, &m->wake, on_wake));
	if (r < 0)
		return r;
	m->wake.data = m;
	m->wake_open = true;
	m->n_handles++;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0)
		return -errno;
	m->console_fd = fds[0];
	m->console_guest = fds[1];
	r = loop_error(uv_poll_init(m->loop, &m->console, m->console_fd));
	if (r < 0)
		return r;
	m->console.data = m;
	m->console_open = true;
	m->n_handles++;
	return loop_error(uv_poll_start(&m->console, UV_READABLE, on_console));
}

static int add_own_devices(struct monitor *m, struct error *err)
{
	struct virtio_mmio_config config = { .id = VIRTIO_ID_CONSOLE_DEV, .queue_size = OWN_QUEUE };
	struct virtio_dev *dev = NULL;
	int r = console_dev_new(take_fd(&m->console_guest), &dev, err);

	if (r == 0)
		r = monitor_add_device(m, &dev, &config, err);
	if (r == 0)
		r = rng_dev_new(&dev, err);
	config.id = VIRTIO_ID_RNG_DEV;
	if (r == 0)
		r = monitor_add_device(m, &dev, &config, err);
	if (r == 0)
		r = balloon_dev_new(&dev, err);
	config.id = VIRTIO_ID_BALLOON_DEV;
	if (r == 0)
		r = monitor_add_device(m, &dev, &config, err);
	return r;
}

static void close_config(struct monitor_config *config)
{
	cleanup_close_(&config->kvm_fd);
	cleanup_close_(&config->mem_fd);
	cleanup_close_(&config->kernel_fd);
	cleanup_close_(&config->initrd_fd);
	cleanup_close_(&config->state_fd);
	cleanup_close_(&config->pagemap_fd);
	cleanup_close_(&config->working_set_fd);
	for (size_t i = 0; i < config->n_layers; i++) {
		cleanup_close_(&config->layers[i].ram);
		cleanup_close_(&config->layers[i].pages);
	}
}

/* The memory of a machine that goes on from a saved one, as its snapshots have changed it. */
static int lay(struct monitor *m, struct error *err)
{
	int r = 0;

	for (size_t i = 0; i < m->config.n_layers && r == 0; i++)
		r = ram_overlay(m->vm.mem, m->vm.mem_size, &m->config.layers[i], err);
	return r;
}

int monitor_new(uv_loop_t *loop, const struct monitor_config *config, const struct monitor_ops *ops,
		void *ctx, struct monitor **ret_monitor, struct error *err)
{
	struct monitor *m = calloc(1, sizeof(*m));
	int r;

	if (!m) {
		struct monitor_config copy = *config;

		close_config(&copy);
		return error_set(err, -ENOMEM, "no memory for the machine");
	}
	m->ops = ops;
	m->ctx = ctx;
	m->loop = loop;
	m->config = *config;
	m->console_fd = m->console_guest = -1;
	(void)pthread_mutex_init(&m->lock, NULL);
	r = open_handles(m);
	if (r < 0)
		(void)error_errno(err, r, "watch the machine");
	if (r == 0 && (config->vcpus == 0 || config->vcpus > MONITOR_MAX_VCPUS))
		r = error_set(err, -EINVAL, "%u vCPUs: 1 to %u can be had", config->vcpus,
			      MONITOR_MAX_VCPUS);
	if (r == 0)
		r = vm_init(&m->vm, config->kvm_fd, take_fd(&m->config.mem_fd),
			    config->memory_size, config->state_fd >= 0, err);
	m->vm_open = r == 0;
	if (r == 0)
		r = lay(m, err);
	if (r < 0) {
		m->config.vcpus = 0;
		monitor_free(m);
		return r;
	}
	*ret_monitor = m;
	return 0;
}

int monitor_add_window(struct monitor *m, struct window *w, struct error *err)
{
	int r = vm_add_window(&m->vm, w);

	return r < 0 ? error_errno(err, r, "give the guest a window of %llu MiB for files",
				   (unsigned long long)(w->size >> 20))
		     : 0;
}

int monitor_add_device(struct monitor *m, struct virtio_dev **dev,
		       const struct virtio_mmio_config *config, struct error *err)
{
	struct virtio_mmio_config mine = *config;
	struct device *d = &m->devices[m->n_devices];
	uint64_t page = LAYOUT_MMIO + m->n_devices * VIRTIO_MMIO_SIZE;
	uint32_t irq = LAYOUT_IRQ_FIRST +
		       (uint32_t)m->n_devices % LAYOUT_N_LINES;
	int r;

	if (m->n_devices == MONITOR_MAX_DEVICES) {
		virtio_dev_free(take_ptr(dev));
		return error_set(err, -ENOSPC, "the machine holds %u devices", MONITOR_MAX_DEVICES);
	}
	mine.irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (mine.irq_fd < 0) {
		virtio_dev_free(take_ptr(dev));
		return error_errno(err, -errno, "make an eventfd");
	}
	r = virtio_mmio_start(dev, &m->vm.gmem, &mine, &d->mmio, err);
	if (r < 0) {
		(void)close(mine.irq_fd);
		return r;
	}
	d->irq_fd = mine.irq_fd;
	m->n_devices++;
	r = vm_irq(&m->vm, irq, d->irq_fd);
	for (unsigned q = 0; q < virtio_mmio_n_queues(d->mmio) && r == 0; q++)
		r = vm_ioevent(&m->vm, page + VIRTIO_MMIO_NOTIFY, q,
			       virtio_mmio_kick_fd(d->mmio, q));
	return r < 0 ? error_errno(err, r, "connect a device with KVM") : 0;
}

static int load(struct monitor *m, struct kernel_image *kernel, struct error *err)
{
	auto_free char *cmdline = NULL;
	const uint64_t end = m->config.memory_boot_end;
	struct boot_config boot = {
		.low_size = MIN_OF(m->vm.low_size, end),
		.high_size = end > LAYOUT_HOLE_END ? end - LAYOUT_HOLE_END : 0,
		.n_cpus = m->config.vcpus,
		.n_lines = MIN_OF((unsigned)m->n_devices, LAYOUT_N_LINES),
		.initrd_fd = m->config.initrd_fd,
	};
	const struct cmdline_plan plan = {
		.extra = m->config.cmdline_extra,
		.memory_mib = (uint32_t)((boot.low_size + boot.high_size) >> 20),
		.vcpus = m->config.vcpus_boot < m->config.vcpus ? m->config.vcpus_boot : 0,
		.n_devices = m->n_devices,
		.debug = m->config.debug,
	};
	int r = cmdline_make(&plan, &cmdline, err);

	if (r == 0)
		r = kernel_load(&m->vm.gmem, boot.low_size, m->config.kernel_fd, kernel, err);
	boot.cmdline = cmdline;
	return r < 0 ? r : boot_prepare(&m->vm.gmem, &boot, kernel, err);
}

static int boot(struct monitor *m, struct error *err)
{
	auto_free struct kvm_cpuid2 *cpuid = NULL;
	struct kernel_image kernel;
	int r = load(m, &kernel, err);

	if (r == 0)
		r = vcpu_cpuid(m->vm.kvm, &cpuid, err);
	for (unsigned i = 0; i < m->config.vcpus && r == 0; i++) {
		const struct cpuid_plan plan = { .id = i,
						 .n_cpus = m->config.vcpus,
						 .baseline = m->config.baseline_cpu };

		r = vcpu_init(&m->vcpus[i], &m->vm, &plan, cpuid, &kernel, err);
	}
	return r;
}

/* --- saving and going on --- */

static struct snapshot_parts parts_of(struct monitor *m, struct virtio_mmio **devices)
{
	for (size_t i = 0; i < m->n_devices; i++)
		devices[i] = m->devices[i].mmio;
	return (struct snapshot_parts){ .vm = &m->vm,
					.vcpus = m->vcpus,
					.n_vcpus = m->config.vcpus,
					.devices = devices,
					.n_devices = m->n_devices };
}

static void release_devices(struct monitor *m)
{
	for (size_t i = 0; i < m->n_devices; i++)
		virtio_mmio_release(m->devices[i].mmio);
	for (size_t i = 0; i < m->n_devices; i++)
		virtio_mmio_resume(m->devices[i].mmio);
}

static int restore(struct monitor *m, struct error *err)
{
	struct virtio_mmio *devices[MONITOR_MAX_DEVICES];
	const struct snapshot_parts parts = parts_of(m, devices);
	int r = 0;

	for (unsigned i = 0; i < m->config.vcpus && r == 0; i++)
		r = vcpu_create(&m->vcpus[i], &m->vm, i, err);
	if (r < 0)
		return r;
	/* Interrupts of theirs would come before there is a state to receive them. */
	for (size_t i = 0; i < m->n_devices; i++)
		virtio_mmio_hold(m->devices[i].mmio);
	m->frozen = true;
	if (m->config.working_set_fd >= 0)
		ram_prefetch(m->vm.mem, m->vm.mem_size, m->config.working_set_fd);
	r = snapshot_read(&parts, m->config.state_fd, err);
	if (r == 0 && !m->config.paused)
		monitor_thaw(m);
	else if (r == 0)
		monitor_pause(m);
	return r;
}

void monitor_freeze(struct monitor *m)
{
	monitor_pause(m);
	for (size_t i = 0; i < m->n_devices && !m->frozen; i++)
		virtio_mmio_hold(m->devices[i].mmio);
	m->frozen = true;
}

void monitor_thaw(struct monitor *m)
{
	if (m->frozen)
		release_devices(m);
	m->frozen = false;
	for (unsigned i = 0; i < m->config.vcpus; i++)
		vcpu_resume(&m->vcpus[i]);
}

int monitor_save(struct monitor *m, int ram, int state, struct error *err)
{
	struct virtio_mmio *devices[MONITOR_MAX_DEVICES];
	const struct snapshot_parts parts = parts_of(m, devices);

	int r = snapshot_write(&parts, state, err);

	if (r < 0)
		return r;
	if (m->config.state_fd < 0)
		return ram_store(m->vm.mem_fd, ram, m->vm.mem_size, err);
	r = ram_store_changed(m->vm.mem_fd, m->vm.mem, m->config.pagemap_fd, ram, m->vm.mem_size, err);
	for (size_t i = 0; i < m->config.n_layers && r == 0; i++)
		r = ram_store_overlay(m->vm.mem, m->vm.mem_size, &m->config.layers[i], ram, err);
	return r;
}

int monitor_save_layer(struct monitor *m, const struct ram_layer *to, int state, struct error *err)
{
	struct virtio_mmio *devices[MONITOR_MAX_DEVICES];
	const struct snapshot_parts parts = parts_of(m, devices);
	int r;

	if (m->config.state_fd < 0)
		return error_set(err, -EOPNOTSUPP, "the machine was booted: there is nothing saved that it "
				 "could have changed");
	r = snapshot_write(&parts, state, err);
	return r < 0 ? r : ram_store_layer(m->vm.mem, m->config.pagemap_fd, to, m->vm.mem_size, err);
}

int monitor_save_working_set(struct monitor *m, int fd, struct error *err)
{
	if (m->config.state_fd < 0)
		return error_set(err, -EOPNOTSUPP, "the machine was booted");
	return ram_store_working_set(m->vm.mem, m->config.pagemap_fd, m->vm.mem_size, fd, err);
}

int monitor_start(struct monitor *m, struct error *err)
{
	int r = add_own_devices(m, err);

	if (r == 0)
		r = m->config.state_fd >= 0 ? restore(m, err) : boot(m, err);
	if (r < 0)
		return r;
	r = vcpu_prepare_signal();
	for (unsigned i = m->config.vcpus; i > 0 && r == 0; i--)
		r = vcpu_start(&m->vcpus[i - 1], &vcpu_ops, m);
	if (r < 0)
		return error_errno(err, r, "start the vCPUs' threads");
	m->started = true;
	(void)uv_async_send(&m->wake);
	return 0;
}

void monitor_free(struct monitor *m)
{
	if (!m)
		return;
	m->freed = true;
	stop_all(m);
	close_console(m);
	close_config(&m->config);
	if (m->wake_open)
		uv_close((uv_handle_t *)&m->wake, handle_closed);
	else if (m->n_handles == 0) {
		pthread_mutex_destroy(&m->lock);
		free(m);
	}
}

void monitor_pause(struct monitor *m)
{
	for (unsigned i = 0; i < m->config.vcpus; i++)
		vcpu_pause(&m->vcpus[i]);
	for (unsigned i = 0; i < m->config.vcpus; i++)
		vcpu_wait_paused(&m->vcpus[i]);
}

int monitor_take_memory(struct monitor *m, uint64_t offset, uint64_t size)
{
	if (offset > m->vm.mem_size || size > m->vm.mem_size - offset)
		return -EINVAL;
	/* Of memory that is shared with a template only what was changed can be given back. */
	if (madvise(m->vm.mem + offset, size, MADV_REMOVE) == 0 ||
	    madvise(m->vm.mem + offset, size, MADV_DONTNEED) == 0)
		return 0;
	return -errno;
}

void monitor_stop(struct monitor *m)
{
	set_end(m, true, VCPU_END_RESET, "stopped");
}

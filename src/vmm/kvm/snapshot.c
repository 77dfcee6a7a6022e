#include "vmm/kvm/snapshot.h"

#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/fd.h"

/* Magic, version, length of what follows, its checksum. */
#define MAGIC   "CSNSTATE"
#define VERSION 1u
#define HEAD    32u

#define TAG_VM STATE_TAG('V', 'M', ' ', ' ')

/* FNV-1a: finds damage; who could forge it could write the whole file. */
static uint64_t checksum(const uint8_t *data, size_t len)
{
	uint64_t h = UINT64_C(0xcbf29ce484222325);

	for (size_t i = 0; i < len; i++)
		h = (h ^ data[i]) * UINT64_C(0x100000001b3);
	return h;
}

/* --- the VM: interrupt controllers and clock --- */

static const uint32_t chips[] = { KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
				  KVM_IRQCHIP_IOAPIC };

static int save_vm(const struct vm *vm, struct state_out *out)
{
	size_t section = state_begin(out, TAG_VM);
	struct kvm_clock_data clock = { 0 };
	struct kvm_pit_state2 pit = { 0 };

	state_put_u64(out, vm->mem_size);
	for (size_t i = 0; i < ARRAY_LEN(chips); i++) {
		struct kvm_irqchip chip = { .chip_id = chips[i] };

		if (ioctl(vm->fd, KVM_GET_IRQCHIP, &chip) < 0)
			return -errno;
		state_put_blob(out, &chip, sizeof(chip));
	}
	if (ioctl(vm->fd, KVM_GET_CLOCK, &clock) < 0)
		return -errno;
	state_put_u64(out, clock.clock);
	state_put_u8(out, !vm->tsc_deadline);
	if (!vm->tsc_deadline && ioctl(vm->fd, KVM_GET_PIT2, &pit) < 0)
		return -errno;
	state_put_blob(out, &pit, sizeof(pit));
	state_end(out, section);
	return 0;
}

static int load_vm(const struct vm *vm, struct state_in *all, struct error *err)
{
	struct state_in in = state_open(all, TAG_VM);
	struct kvm_clock_data clock = { 0 };
	struct kvm_irqchip chip[ARRAY_LEN(chips)];
	struct kvm_pit_state2 pit;
	bool with_pit;

	if (state_get_u64(&in) != vm->mem_size)
		return error_set(err, -EBADMSG, "it is of a machine with more or less memory");
	for (size_t i = 0; i < ARRAY_LEN(chips); i++) {
		state_get_blob(&in, &chip[i], sizeof(chip[i]));
		if (chip[i].chip_id != chips[i])
			in.failed = true;
	}
	clock.clock = state_get_u64(&in);
	with_pit = state_get_u8(&in);
	state_get_blob(&in, &pit, sizeof(pit));
	if (!state_done(&in))
		return error_set(err, -EBADMSG, "its description of the interrupt controllers is malformed");
	if (with_pit == vm->tsc_deadline)
		return error_set(err, -ENOTSUP, "it is of a host with other timers");
	for (size_t i = 0; i < ARRAY_LEN(chips); i++)
		if (ioctl(vm->fd, KVM_SET_IRQCHIP, &chip[i]) < 0)
			return error_errno(err, -errno, "KVM_SET_IRQCHIP");
	if (with_pit && ioctl(vm->fd, KVM_SET_PIT2, &pit) < 0)
		return error_errno(err, -errno, "KVM_SET_PIT2");
	if (ioctl(vm->fd, KVM_SET_CLOCK, &clock) < 0)
		return error_errno(err, -errno, "KVM_SET_CLOCK");
	return 0;
}

/* --- the file --- */

static int save_all(const struct snapshot_parts *p, struct state_out *out, struct error *err)
{
	int r = 0;

	state_put_u32(out, p->n_vcpus);
	state_put_u32(out, (uint32_t)p->n_devices);
	/* vCPUs first: what they have in hand may change what the others say. */
	for (unsigned i = 0; i < p->n_vcpus && r == 0; i++)
		r = vcpu_save(&p->vcpus[i], p->vm, out, err);
	for (size_t i = 0; i < p->n_devices && r == 0; i++)
		r = virtio_mmio_save(p->devices[i], out, err);
	if (r < 0)
		return r;
	r = save_vm(p->vm, out);
	if (r == 0)
		r = out->error;
	return r < 0 ? error_errno(err, r, "save the virtual machine") : 0;
}

int snapshot_write(const struct snapshot_parts *parts, int fd, struct error *err)
{
	uint8_t head[HEAD] = { 0 };
	struct state_out out;
	int r;

	state_out_init(&out);
	r = save_all(parts, &out, err);
	if (r == 0) {
		memcpy(head, MAGIC, 8);
		store_le32(head + 8, VERSION);
		store_le64(head + 16, out.buf.len);
		store_le64(head + 24, checksum(buf_head(&out.buf), out.buf.len));
		r = fd_pwrite_full(fd, buf_head(&out.buf), out.buf.len, HEAD);
		/* The head last: without it nothing is believed. */
		if (r == 0)
			r = fd_pwrite_full(fd, head, sizeof(head), 0);
		if (r < 0)
			(void)error_errno(err, r, "write the machine's state");
	}
	state_out_fini(&out);
	return r;
}

static int read_file(int fd, uint8_t **ret_data, size_t *ret_len, struct error *err)
{
	auto_free uint8_t *data = NULL;
	struct stat st;
	size_t len;

	if (fstat(fd, &st) < 0)
		return error_errno(err, -errno, "the machine's saved state");
	if (st.st_size < (off_t)HEAD || st.st_size > (off_t)(HEAD + STATE_MAX))
		return error_set(err, -EBADMSG, "the machine's saved state is not of a possible size");
	len = (size_t)st.st_size;
	data = malloc(len);
	if (!data)
		return error_set(err, -ENOMEM, "no memory for the machine's saved state");
	for (size_t done = 0; done < len;) {
		ssize_t n = pread(fd, data + done, len - done, (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return error_errno(err, n < 0 ? -errno : -EIO, "read the machine's saved state");
		done += (size_t)n;
	}
	if (memcmp(data, MAGIC, 8) != 0)
		return error_set(err, -EBADMSG, "this is no saved state of a machine");
	if (load_le32(data + 8) != VERSION)
		return error_set(err, -ENOTSUP, "the saved state has version %u, known is %u",
				 load_le32(data + 8), VERSION);
	if (load_le64(data + 16) != len - HEAD ||
	    load_le64(data + 24) != checksum(data + HEAD, len - HEAD))
		return error_set(err, -EBADMSG, "the machine's saved state is damaged");
	*ret_data = take_ptr(&data);
	*ret_len = len;
	return 0;
}

int snapshot_read(const struct snapshot_parts *p, int fd, struct error *err)
{
	auto_free uint8_t *data = NULL;
	struct state_in in;
	size_t len = 0;
	int r = read_file(fd, &data, &len, err);

	if (r < 0)
		return r;
	state_in_init(&in, data + HEAD, len - HEAD);
	if (state_get_u32(&in) != p->n_vcpus || state_get_u32(&in) != p->n_devices)
		return error_set(err, -EBADMSG,
				 "the saved state is of a machine with other vCPUs or devices");
	for (unsigned i = 0; i < p->n_vcpus && r == 0; i++)
		r = vcpu_load(&p->vcpus[i], p->vm, &in, err);
	for (size_t i = 0; i < p->n_devices && r == 0; i++)
		r = virtio_mmio_load(p->devices[i], &in, err);
	if (r == 0)
		r = load_vm(p->vm, &in, err);
	if (r == 0 && !state_done(&in))
		r = error_set(err, -EBADMSG, "the saved state has more in it than the machine");
	return r < 0 ? error_prefix(err, r, "go on from a saved state") : 0;
}

/*
 * The state of a whole machine but for its memory: interrupt controllers, clock, devices, vCPUs, with
 * a head that says what it is and a checksum. Private to kvm/.
 */
#pragma once

#include "virtio/mmio.h"
#include "vmm/kvm/vcpu.h"

/* All parts of a machine, in the order in which they are written. */
struct snapshot_parts {
	struct vm *vm;
	struct vcpu *vcpus;
	unsigned n_vcpus;
	struct virtio_mmio **devices;
	size_t n_devices;
};

/* All vCPUs are paused and all devices held. @fd is a new, empty file. */
__must_check int snapshot_write(const struct snapshot_parts *parts, int fd, struct error *err);
/*
 * vCPUs are made and not started, devices are made and held. A file that is not whole, of another
 * version or machine is refused before anything is set.
 */
__must_check int snapshot_read(const struct snapshot_parts *parts, int fd, struct error *err);

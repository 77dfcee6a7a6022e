/* A queue whose rings, descriptors and indirect tables are the input. */
#include <stdlib.h>
#include <string.h>

#include "virtio/vq.h"

#define RAM  8192u
#define BASE 0x1000u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static _Alignas(4096) uint8_t ram[2][RAM];
	struct gmem mem = { 0 };
	struct vq vq = { .mem = &mem };
	struct iovec iov[24];
	struct vq_chain chain = { .iov = iov, .iov_cap = 24 };

	if (size < 4)
		return 0;
	memset(ram, 0, sizeof(ram));
	memcpy(ram, data + 4, size - 4 < sizeof(ram) ? size - 4 : sizeof(ram));
	/* Two adjoining regions that lie elsewhere in our memory. */
	if (gmem_add_host(&mem, BASE, RAM, 0x100000, ram[0]) < 0 ||
	    gmem_add_host(&mem, BASE + RAM, RAM, 0x200000, ram[1]) < 0)
		abort();
	vq.size = (uint16_t)(1u << (data[0] % 8));
	vq.event_idx = data[1] & 1;
	vq.desc_addr = BASE + (data[1] >> 1) * 16u;
	vq.avail_addr = BASE + 2048 + data[2] * 2u;
	vq.used_addr = BASE + 4096 + data[3] * 4u;
	if (vq_start(&vq, 0) < 0)
		return 0;
	for (int i = 0; i < 64; i++) {
		int r = vq_pop(&vq, &chain);
		size_t n = 0;

		if (r < 0)
			break;
		if (r == 0) {
			(void)vq_should_notify(&vq);
			if (!vq_enable_kick(&vq))
				break;
			continue;
		}
		for (size_t k = 0; k < chain.n_out; k++) {
			volatile uint8_t c = *((uint8_t *)iov[k].iov_base + iov[k].iov_len - 1);

			(void)c;
			n += iov[k].iov_len;
		}
		if (n != chain.out_len)
			abort();
		for (size_t k = 0; k < chain.n_in; k++) {
			memset(iov[chain.n_out + k].iov_base, i, iov[chain.n_out + k].iov_len);
			n += iov[chain.n_out + k].iov_len;
		}
		if (n != chain.out_len + chain.in_len)
			abort();
		vq_push(&vq, chain.head, (uint32_t)chain.in_len);
	}
	return 0;
}

#include "virtio/vq_poll.h"

#include <sched.h>

#include "base/cleanup.h"
#include "virtio/evloop.h"

#define MIN_NS         UINT64_C(4096)
#define LOOKS_PER_TIME 32u

void vq_poll_init(struct vq_poll *p)
{
	cpu_set_t cpus;

	*p = (struct vq_poll){ 0 };
	CPU_ZERO(&cpus);
	/* With more processors than the set has, there are enough. */
	p->off = sched_getaffinity(0, sizeof(cpus), &cpus) == 0 && CPU_COUNT(&cpus) < 2;
}

bool vq_poll(struct vq_poll *p, const struct vq *vq)
{
	uint64_t end;

	if (p->off || p->window_ns == 0)
		return false;
	end = evloop_now_ns() + p->window_ns;
	do {
		for (unsigned i = 0; i < LOOKS_PER_TIME; i++) {
			if (vq_has_more(vq))
				return true;
			__builtin_ia32_pause();
		}
	} while (evloop_now_ns() < end);
	p->window_ns = p->window_ns > MIN_NS ? p->window_ns / 2 : 0;
	return false;
}

void vq_poll_sleeps(struct vq_poll *p)
{
	if (!p->off)
		p->slept_ns = evloop_now_ns();
}

void vq_poll_kicked(struct vq_poll *p)
{
	if (p->off || p->slept_ns == 0)
		return;
	if (evloop_now_ns() - p->slept_ns < VQ_POLL_MAX_NS)
		p->window_ns = MIN_OF(MAX_OF(2 * p->window_ns, MIN_NS), VQ_POLL_MAX_NS);
	p->slept_ns = 0;
}

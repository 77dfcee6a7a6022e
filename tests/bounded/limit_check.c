/*
 * The rate limiter: whatever is asked for when, no more gets through than a second's worth at once,
 * the rate after that, and what the last operation is too large by; and nobody waits for ever.
 */
#include "bounded.h"

#include "virtio/blk_engine.h"

static uint64_t clock_ns;
#define evloop_now_ns() (clock_ns)
#include "virtio/blk_limit.c" /* for what is static there */

#define STEPS 4u

void check(void)
{
	const uint64_t rate = CHOOSE(1, 3, 1000000, 1ull << 40, UINT64_MAX);
	uint64_t begin;
	__extension__ unsigned __int128 passed = 0, allowed;
	struct bucket b;

	clock_ns = begin = CHOOSE(0, 1, UINT64_MAX / 4);
	bucket_init(&b, rate);
	for (unsigned i = 0; i < STEPS; i++) {
		uint64_t wait, cost = CHOOSE(1, 512, 1u << 25);

		clock_ns += CHOOSE(0, 1, SECOND_NS / 3, SECOND_NS, 3600ull * SECOND_NS);
		bucket_fill(&b, clock_ns);
		MUST(b.tokens <= (int64_t)b.per_s);
		MUST(b.filled_ns <= clock_ns);
		wait = bucket_wait_ns(&b, clock_ns);
		if (wait > 0) {
			/* A nanosecond too early is too early; in time, it goes on. A bucket takes no more
			   than a second's worth at once. */
			const uint64_t step = MIN_OF(wait, (uint64_t)SECOND_NS);

			clock_ns += step - 1;
			bucket_fill(&b, clock_ns);
			MUST(bucket_wait_ns(&b, clock_ns) > 0);
			clock_ns++;
			bucket_fill(&b, clock_ns);
			if (bucket_wait_ns(&b, clock_ns) > 0) {
				MUST(wait > SECOND_NS);
				continue;
			}
		}
		b.tokens -= (int64_t)cost;
		passed += cost;
		allowed = b.per_s + (unsigned __int128)b.per_s * (clock_ns - begin) / SECOND_NS + cost;
		MUST(passed <= allowed);
	}
}

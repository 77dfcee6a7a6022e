/*
 * Block source: another one with a limit on bytes and operations a second. Two token buckets, each
 * holding a second's worth; an operation starts when both are above zero and may draw them below,
 * so that one larger than the bucket gets through and is paid for afterwards.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "virtio/blk_engine.h"

#define SECOND_NS 1000000000u

struct bucket {
	uint64_t per_s; /* 0: no limit */
	int64_t tokens;
	uint64_t filled_ns;
};

struct blk_limiter {
	struct blk_source src;
	struct blk_source *inner;
	struct evloop *loop;
	struct blk_engine *engine;
	struct evtimer timer;
	struct bucket bytes, ops;
	struct blk_io *first, **last; /* waiting, in order */
};

static struct blk_limiter *limiter_of(struct blk_source *src)
{
	return container_of(src, struct blk_limiter, src);
}

static void bucket_init(struct bucket *b, uint64_t per_s)
{
	*b = (struct bucket){ .per_s = MIN_OF(per_s, (uint64_t)INT64_MAX / SECOND_NS / 2) };
	b->tokens = (int64_t)b->per_s;
	b->filled_ns = evloop_now_ns();
}

static void bucket_fill(struct bucket *b, uint64_t now)
{
	uint64_t ns = MIN_OF(now - b->filled_ns, (uint64_t)SECOND_NS), add;

	if (!b->per_s)
		return;
	/* Only whole tokens move the clock, so that slow buckets fill too. */
	add = b->per_s * ns / SECOND_NS;
	if (!add)
		return;
	b->filled_ns = now - b->filled_ns > SECOND_NS ? now :
							b->filled_ns + add * SECOND_NS / b->per_s;
	b->tokens = MIN_OF(b->tokens + (int64_t)add, (int64_t)b->per_s);
}

/* Of a bucket that has been filled as of @now: until there is a token in it. */
static uint64_t bucket_wait_ns(const struct bucket *b, uint64_t now)
{
	uint64_t missing, since = now - b->filled_ns, ns;

	if (!b->per_s || b->tokens > 0)
		return 0;
	missing = (uint64_t)-b->tokens + 1;
	ns = (missing * SECOND_NS + b->per_s - 1) / b->per_s;
	return ns > since ? ns - since : 1;
}

static bool may_start(struct blk_limiter *l, uint64_t *ret_wait_ns)
{
	uint64_t now = evloop_now_ns(), a, b;

	bucket_fill(&l->bytes, now);
	bucket_fill(&l->ops, now);
	a = bucket_wait_ns(&l->bytes, now);
	b = bucket_wait_ns(&l->ops, now);
	*ret_wait_ns = MAX_OF(a, b);
	return a == 0 && b == 0;
}

static void start(struct blk_limiter *l, struct blk_io *io)
{
	bool moves = io->op == BLK_READ || io->op == BLK_WRITE;

	if (l->ops.per_s)
		l->ops.tokens--;
	if (l->bytes.per_s && moves)
		l->bytes.tokens -= (int64_t)io->len;
	l->inner->ops->submit(l->inner, io);
}

static void start_waiting(struct blk_limiter *l, bool all);

static void on_timer(struct evtimer *timer)
{
	struct blk_limiter *l = container_of(timer, struct blk_limiter, timer);

	start_waiting(l, false);
	blk_engine_commit(l->engine);
}

static void start_waiting(struct blk_limiter *l, bool all)
{
	uint64_t wait_ns = 0;
	struct blk_io *io;

	while ((io = l->first) && (all || may_start(l, &wait_ns))) {
		l->first = io->next;
		if (!l->first)
			l->last = &l->first;
		start(l, io);
	}
	if (l->first)
		evloop_arm(l->loop, &l->timer, wait_ns, on_timer);
}

static int limiter_attach(struct blk_source *src, struct evloop *loop, struct blk_engine *engine)
{
	struct blk_limiter *l = limiter_of(src);

	l->loop = loop;
	l->engine = engine;
	return l->inner->ops->attach(l->inner, loop, engine);
}

static void limiter_submit(struct blk_source *src, struct blk_io *io)
{
	struct blk_limiter *l = limiter_of(src);

	/* A flush is as expensive as what was written before it, which has been paid for. */
	if (io->op == BLK_FLUSH) {
		l->inner->ops->submit(l->inner, io);
		return;
	}
	io->next = NULL;
	*l->last = io;
	l->last = &io->next;
	if (l->first == io)
		start_waiting(l, false);
}

static void limiter_drain(struct blk_source *src)
{
	struct blk_limiter *l = limiter_of(src);

	start_waiting(l, true);
	l->inner->ops->drain(l->inner);
}

static int limiter_measure(struct blk_source *src)
{
	struct blk_limiter *l = limiter_of(src);
	int r = l->inner->ops->measure ? l->inner->ops->measure(l->inner) : 0;

	if (r == 0)
		src->size = l->inner->size;
	return r;
}

static void limiter_free(struct blk_source *src)
{
	struct blk_limiter *l = limiter_of(src);

	if (l->loop)
		evloop_disarm(l->loop, &l->timer);
	blk_source_free(l->inner);
	free(l);
}

static const struct blk_source_ops limiter_ops = {
	.attach = limiter_attach,
	.submit = limiter_submit,
	.drain = limiter_drain,
	.measure = limiter_measure,
	.free = limiter_free,
};

int blk_source_new_limit(struct blk_source *inner, const struct blk_limit *limit,
			 struct blk_source **ret_src, struct error *err)
{
	struct blk_limiter *l = calloc(1, sizeof(*l));

	if (!l) {
		blk_source_free(inner);
		return error_set(err, -ENOMEM, "disk: out of memory");
	}
	l->src.ops = &limiter_ops;
	l->src.size = inner->size;
	l->src.read_only = inner->read_only;
	l->inner = inner;
	l->last = &l->first;
	bucket_init(&l->bytes, limit->bytes_per_s);
	bucket_init(&l->ops, limit->ops_per_s);
	*ret_src = &l->src;
	return 0;
}

/* Usage figures from cgroup v2 files. A file that is missing leaves its figures at zero. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "agent/container/internal.h"

#define STATS_FILE_MAX (256u << 10)

static uint64_t stats_number(int dir, const char *file, uint64_t missing)
{
	char buf[32];

	if (ctr_read_at(dir, file, buf, sizeof(buf)) <= 0)
		return missing;
	return strncmp(buf, "max", 3) == 0 ? CONTAINER_NO_LIMIT : strtoull(buf, NULL, 10);
}

/* Value of the line "key N" in a flat keyed file's text. */
static uint64_t stats_key(const char *text, const char *key)
{
	size_t len = strlen(key);

	for (const char *s = text; s && *s; s = strchr(s, '\n'), s = s ? s + 1 : NULL)
		if (strncmp(s, key, len) == 0 && s[len] == ' ')
			return strtoull(s + len + 1, NULL, 10);
	return 0;
}

/* "0.12" to 12. */
static uint32_t stats_percent(const char *s)
{
	unsigned a = 0, b = 0;

	(void)sscanf(s, "%u.%2u", &a, &b);
	return a * 100 + b;
}

static void stats_psi(int dir, const char *file, struct container_psi *ret)
{
	char buf[512], *save = NULL;

	if (ctr_read_at(dir, file, buf, sizeof(buf)) <= 0)
		return;
	for (char *line = strtok_r(buf, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		bool some = strncmp(line, "some ", 5) == 0;
		const char *a = strstr(line, "avg10="), *b = strstr(line, "avg60=");
		const char *c = strstr(line, "avg300="), *t = strstr(line, "total=");

		if (!a || !b || !c || !t)
			continue;
		*(some ? &ret->some_avg10 : &ret->full_avg10) = stats_percent(a + 6);
		*(some ? &ret->some_avg60 : &ret->full_avg60) = stats_percent(b + 6);
		*(some ? &ret->some_avg300 : &ret->full_avg300) = stats_percent(c + 7);
		*(some ? &ret->some_total : &ret->full_total) = strtoull(t + 6, NULL, 10);
	}
}

static void stats_cpu(int dir, struct container_stats *st)
{
	char buf[1024];

	if (ctr_read_at(dir, "cpu.stat", buf, sizeof(buf)) > 0) {
		st->cpu.usage_ns = stats_key(buf, "usage_usec") * 1000;
		st->cpu.user_ns = stats_key(buf, "user_usec") * 1000;
		st->cpu.system_ns = stats_key(buf, "system_usec") * 1000;
		st->cpu.periods = stats_key(buf, "nr_periods");
		st->cpu.throttled_periods = stats_key(buf, "nr_throttled");
		st->cpu.throttled_ns = stats_key(buf, "throttled_usec") * 1000;
	}
	stats_psi(dir, "cpu.pressure", &st->cpu.psi);
}

static int stats_memory(int dir, struct container_stats *st)
{
	auto_free char *text = NULL;
	char buf[512], *save = NULL;
	size_t lines = 0;

	st->memory.usage = stats_number(dir, "memory.current", 0);
	st->memory.peak = stats_number(dir, "memory.peak", 0);
	st->memory.limit = stats_number(dir, "memory.max", CONTAINER_NO_LIMIT);
	st->memory.swap_usage = stats_number(dir, "memory.swap.current", 0);
	st->memory.swap_limit = stats_number(dir, "memory.swap.max", CONTAINER_NO_LIMIT);
	if (ctr_read_at(dir, "memory.events", buf, sizeof(buf)) > 0) {
		st->memory.ev_low = stats_key(buf, "low");
		st->memory.ev_high = stats_key(buf, "high");
		st->memory.ev_max = stats_key(buf, "max");
		st->memory.ev_oom = stats_key(buf, "oom");
		st->memory.ev_oom_kill = stats_key(buf, "oom_kill");
	}
	stats_psi(dir, "memory.pressure", &st->memory.psi);

	if (ctr_slurp_at(dir, "memory.stat", STATS_FILE_MAX, &text) < 0)
		return 0;
	for (const char *s = text; *s; s++)
		lines += *s == '\n';
	st->memory.stat = calloc(lines + 1, sizeof(*st->memory.stat));
	if (!st->memory.stat)
		return -ENOMEM;
	for (char *s = strtok_r(text, "\n", &save); s; s = strtok_r(NULL, "\n", &save)) {
		struct container_kv *kv = &st->memory.stat[st->memory.n_stat];
		size_t len = strcspn(s, " ");

		if (len >= sizeof(kv->key) || s[len] != ' ' || st->memory.n_stat > lines)
			continue;
		memcpy(kv->key, s, len);
		kv->key[len] = '\0';
		kv->value = strtoull(s + len + 1, NULL, 10);
		st->memory.n_stat++;
	}
	return 0;
}

/* The name that the kernel has for a block device. */
static void stats_device(struct container_io_stats *d)
{
	char path[64], target[256];
	const char *base;
	ssize_t n;

	(void)snprintf(path, sizeof(path), "/sys/dev/block/%u:%u", d->major, d->minor);
	n = readlink(path, target, sizeof(target) - 1);
	if (n <= 0)
		return;
	target[n] = '\0';
	base = strrchr(target, '/');
	if (base)
		(void)snprintf(d->name, sizeof(d->name), "%.31s", base + 1);
}

static int stats_io(int dir, struct container_stats *st)
{
	auto_free char *text = NULL;
	char *save = NULL;
	size_t lines = 1;

	stats_psi(dir, "io.pressure", &st->io.psi);
	if (ctr_slurp_at(dir, "io.stat", STATS_FILE_MAX, &text) < 0)
		return 0;
	for (const char *s = text; *s; s++)
		lines += *s == '\n';
	st->io.dev = calloc(lines, sizeof(*st->io.dev));
	if (!st->io.dev)
		return -ENOMEM;
	for (char *s = strtok_r(text, "\n", &save); s; s = strtok_r(NULL, "\n", &save)) {
		struct container_io_stats *d = &st->io.dev[st->io.n_dev];
		unsigned long long r = 0, w = 0, ri = 0, wi = 0, db = 0, di = 0;
		int at = 0;

		if (sscanf(s, "%u:%u %n", &d->major, &d->minor, &at) != 2 || at == 0 ||
		    sscanf(s + at, "rbytes=%llu wbytes=%llu rios=%llu wios=%llu dbytes=%llu "
			   "dios=%llu", &r, &w, &ri, &wi, &db, &di) < 4)
			continue;
		d->rbytes = r;
		d->wbytes = w;
		d->rios = ri;
		d->wios = wi;
		d->dbytes = db;
		d->dios = di;
		stats_device(d);
		st->io.n_dev++;
	}
	return 0;
}

static int stats_hugetlb(int dirfd, struct container_stats *st)
{
	auto_closedir DIR *d = NULL;
	struct dirent *e;
	int r = fd_opendir(dirfd, ".", &d);

	if (r < 0)
		return r;
	while ((e = readdir(d))) {
		struct container_hugetlb_stats *h;
		char file[96], size[16], buf[128];

		if (sscanf(e->d_name, "hugetlb.%15[0-9KMG]B.current", size) != 1 ||
		    !strstr(e->d_name, "B.current") || strstr(e->d_name, "rsvd"))
			continue;
		h = realloc(st->hugetlb, (st->n_hugetlb + 1) * sizeof(*h));
		if (!h)
			return -ENOMEM;
		st->hugetlb = h;
		h += st->n_hugetlb++;
		memset(h, 0, sizeof(*h));
		(void)snprintf(h->size, sizeof(h->size), "%.14sB", size);
		(void)snprintf(file, sizeof(file), "hugetlb.%s.current", h->size);
		h->usage = stats_number(dirfd, file, 0);
		(void)snprintf(file, sizeof(file), "hugetlb.%s.max", h->size);
		h->max = stats_number(dirfd, file, CONTAINER_NO_LIMIT);
		(void)snprintf(file, sizeof(file), "hugetlb.%s.events", h->size);
		if (ctr_read_at(dirfd, file, buf, sizeof(buf)) > 0)
			h->failcnt = stats_key(buf, "max");
	}
	return 0;
}

int container_stats(struct container *c, struct container_stats *ret, struct error *err)
{
	struct container_stats st;
	int r;

	memset(&st, 0, sizeof(st));
	stats_cpu(c->cgroup_fd, &st);
	st.pids.current = stats_number(c->cgroup_fd, "pids.current", 0);
	st.pids.limit = stats_number(c->cgroup_fd, "pids.max", CONTAINER_NO_LIMIT);
	r = stats_memory(c->cgroup_fd, &st);
	if (r == 0)
		r = stats_io(c->cgroup_fd, &st);
	if (r == 0)
		r = stats_hugetlb(c->cgroup_fd, &st);
	if (r < 0) {
		container_stats_fini(&st);
		return error_errno(err, r, "statistics of container \"%s\"", c->id);
	}
	*ret = st;
	return 0;
}

void container_stats_fini(struct container_stats *st)
{
	free(st->memory.stat);
	free(st->io.dev);
	free(st->hugetlb);
	memset(st, 0, sizeof(*st));
}

uint64_t container_stats_memory(const struct container_stats *st, const char *key)
{
	for (size_t i = 0; i < st->memory.n_stat; i++)
		if (strcmp(st->memory.stat[i].key, key) == 0)
			return st->memory.stat[i].value;
	return 0;
}

int container_oom_fd(struct container *c)
{
	return c->oom_fd;
}

uint64_t container_oom_take(struct container *c)
{
	char buf[512];
	uint64_t now, n;

	if (c->oom_fd < 0)
		return 0;
	while (read(c->oom_fd, buf, sizeof(buf)) > 0)
		;
	if (ctr_read_at(c->cgroup_fd, "memory.events", buf, sizeof(buf)) <= 0)
		return 0;
	now = stats_key(buf, "oom_kill");
	n = now > c->oom_seen ? now - c->oom_seen : 0;
	c->oom_seen = now;
	return n;
}

#include "agent/resize.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/str.h"

#define CPUS_MAX 1024u
/* Kernel memory for each byte of movable memory: page tables and much else can only be in the first. */
#define MOVABLE_RATIO 4u
/* Left to the guest when a block is taken from it. */
#define RESERVE ((uint64_t)32 << 20)

enum state {
	ABSENT,
	OFF,
	ON,
};

struct job {
	const struct resize_target *to;
	struct resize_result *res;
	uint64_t block;         /* bytes */
};

__attribute__((format(printf, 2, 3))) static void problem(struct job *j, const char *fmt, ...)
{
	va_list ap;

	if (*j->res->problem)
		return;
	va_start(ap, fmt);
	(void)vsnprintf(j->res->problem, sizeof(j->res->problem), fmt, ap);
	va_end(ap);
}

static bool stopped(struct job *j)
{
	if (!*j->to->stop)
		return false;
	problem(j, "out of time");
	return true;
}

static int read_text(const struct job *j, const char *name, char *text, size_t size)
{
	auto_free char *path = str_printf("%s/%s", j->to->sysfs, name);
	auto_close int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);

	if (n < 0)
		return -errno;
	text[n] = '\0';
	return 0;
}

/* One write: sysfs takes no more, and one that a signal ended is not to be repeated. */
static int write_text(const struct job *j, const char *name, const char *text)
{
	auto_free char *path = str_printf("%s/%s", j->to->sysfs, name);
	auto_close int fd = path ? open(path, O_WRONLY | O_CLOEXEC) : -1;

	return fd < 0 || write(fd, text, strlen(text)) < 0 ? -errno : 0;
}

/* --- processors --- */

static enum state cpu_state(const struct job *j, unsigned cpu)
{
	char name[48], text[8];
	int r;

	(void)snprintf(name, sizeof(name), "cpu/cpu%u/online", cpu);
	r = read_text(j, name, text, sizeof(text));
	if (r == 0)
		return text[0] == '1' ? ON : OFF;
	/* The first one cannot be switched. */
	return cpu == 0 ? ON : ABSENT;
}

static void switch_cpu(struct job *j, unsigned cpu, bool on)
{
	char name[48];
	int r;

	(void)snprintf(name, sizeof(name), "cpu/cpu%u/online", cpu);
	r = write_text(j, name, on ? "1" : "0");
	if (r < 0)
		problem(j, "switch processor %u %s: %s", cpu, on ? "on" : "off", strerror(-r));
	else
		j->res->vcpus += on ? 1u : -1u;
}

static void resize_cpus(struct job *j)
{
	unsigned n = 0;

	for (enum state st; n < CPUS_MAX && (st = cpu_state(j, n)) != ABSENT; n++)
		j->res->vcpus += st == ON;
	if (!j->to->vcpus)
		return;
	for (unsigned i = 1; i < n && j->res->vcpus < j->to->vcpus && !stopped(j); i++)
		if (cpu_state(j, i) == OFF)
			switch_cpu(j, i, true);
	for (unsigned i = n; i-- > 1 && j->res->vcpus > j->to->vcpus && !stopped(j);)
		if (cpu_state(j, i) == ON)
			switch_cpu(j, i, false);
	if (j->res->vcpus < j->to->vcpus)
		problem(j, "the machine has %u processors", n);
}

/* --- memory --- */

static enum state block_state(const struct job *j, uint64_t at)
{
	char name[64], text[24];

	(void)snprintf(name, sizeof(name), "memory/memory%" PRIu64 "/state", at / j->block);
	if (read_text(j, name, text, sizeof(text)) < 0)
		return ABSENT;
	return str_has_prefix(text, "online") ? ON : OFF;
}

static bool is_movable(const struct job *j, uint64_t at)
{
	char name[64], text[32];

	(void)snprintf(name, sizeof(name), "memory/memory%" PRIu64 "/valid_zones", at / j->block);
	return read_text(j, name, text, sizeof(text)) == 0 && str_has_prefix(text, "Movable");
}

/* In bytes; 0 if it is not known. */
static uint64_t meminfo(const struct job *j, const char *key)
{
	auto_free char *text = NULL;
	const char *at;

	if (fd_read_file(AT_FDCWD, j->to->meminfo, 16384, &text, NULL) < 0)
		return 0;
	at = strstr(text, key);
	return at ? strtoull(at + strlen(key), NULL, 10) << 10 : 0;
}

static uint64_t movable_bytes(const struct job *j)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < j->to->n_spare; i++)
		for (uint64_t k = 0; k < j->to->spare[i].size; k += j->block)
			if (block_state(j, j->to->spare[i].start + k) == ON &&
			    is_movable(j, j->to->spare[i].start + k))
				sum += j->block;
	return sum;
}

static void add_block(struct job *j, uint64_t at)
{
	uint64_t movable = movable_bytes(j), total = meminfo(j, "MemTotal:");
	bool kernel = total > movable && movable + j->block > MOVABLE_RATIO * (total - movable);
	char name[64], text[24];
	int r = 0;

	if (block_state(j, at) == ABSENT) {
		(void)snprintf(text, sizeof(text), "0x%" PRIx64, at);
		r = write_text(j, "memory/probe", text);
	}
	(void)snprintf(name, sizeof(name), "memory/memory%" PRIu64 "/state", at / j->block);
	/* The kernel may be set up to use it at once. */
	if (r == 0 && block_state(j, at) != ON)
		r = write_text(j, name, kernel ? "online_kernel" : "online_movable");
	if (r < 0)
		problem(j, "add memory at 0x%" PRIx64 ": %s", at, strerror(-r));
	else
		j->res->memory += j->block;
}

static void give_up_block(struct job *j, uint64_t at)
{
	char name[64];
	int r;

	(void)snprintf(name, sizeof(name), "memory/memory%" PRIu64 "/state", at / j->block);
	r = write_text(j, name, "offline");
	if (r < 0)
		problem(j, "give up memory at 0x%" PRIx64 ": %s", at, strerror(-r));
	else
		j->res->memory -= j->block;
}

static void add_unused(struct job *j, uint64_t at)
{
	struct resize_result *res = j->res;
	struct resize_range *last = res->n_unused ? &res->unused[res->n_unused - 1] : NULL;

	if (last && last->start + last->size == at)
		last->size += j->block;
	else if (res->n_unused < RESIZE_MAX_RANGES)
		res->unused[res->n_unused++] = (struct resize_range){ at, j->block };
}

static void grow(struct job *j)
{
	for (size_t i = 0; i < j->to->n_spare; i++) {
		const struct resize_range *s = &j->to->spare[i];

		for (uint64_t k = 0; k < s->size; k += j->block) {
			if (j->res->memory >= j->to->memory || *j->res->problem || stopped(j))
				return;
			if (block_state(j, s->start + k) != ON)
				add_block(j, s->start + k);
		}
	}
}

/* From the end; a block that cannot be had is no reason not to ask for others. */
static void shrink(struct job *j)
{
	for (size_t i = j->to->n_spare; i-- > 0;) {
		const struct resize_range *s = &j->to->spare[i];

		for (uint64_t k = s->size; k > 0; k -= j->block) {
			if (j->res->memory < j->to->memory + j->block || stopped(j))
				return;
			if (block_state(j, s->start + k - j->block) != ON)
				continue;
			if (meminfo(j, "MemAvailable:") < j->block + RESERVE) {
				problem(j, "the guest needs its memory");
				return;
			}
			give_up_block(j, s->start + k - j->block);
		}
	}
}

static void resize_memory(struct job *j)
{
	const struct resize_target *to = j->to;
	char text[24];

	if (to->n_spare == 0 || read_text(j, "memory/block_size_bytes", text, sizeof(text)) < 0)
		return;
	j->block = strtoull(text, NULL, 16);
	for (size_t i = 0; i < to->n_spare; i++)
		if (!j->block || to->spare[i].start % j->block || to->spare[i].size % j->block) {
			problem(j, "the guest's blocks of memory have 0x%" PRIx64 " bytes",
				j->block);
			return;
		}
	for (size_t i = 0; i < to->n_spare; i++)
		for (uint64_t k = 0; k < to->spare[i].size; k += j->block)
			if (block_state(j, to->spare[i].start + k) == ON)
				j->res->memory += j->block;
	if (j->res->memory < to->memory)
		grow(j);
	else
		shrink(j);
	for (size_t i = 0; i < to->n_spare; i++)
		for (uint64_t k = 0; k < to->spare[i].size; k += j->block)
			if (block_state(j, to->spare[i].start + k) == OFF)
				add_unused(j, to->spare[i].start + k);
}

void resize_apply(const struct resize_target *to, struct resize_result *ret)
{
	struct job j = { .to = to, .res = ret };

	*ret = (struct resize_result){ 0 };
	resize_cpus(&j);
	resize_memory(&j);
}

#include "vmm/ram.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"

#define PAGE ((off_t)4096)

static bool is_zero(const char *page)
{
	return page[0] == 0 && memcmp(page, page + 1, (size_t)PAGE - 1) == 0;
}

/* How far from @at pages are all zero, or (@zero false) none is. */
static off_t run_of(const char *data, off_t at, off_t len, bool zero)
{
	while (at < len && (len - at >= PAGE && is_zero(data + at)) == zero)
		at += MIN_OF(PAGE, len - at);
	return at;
}

/* Writes what of @data isn't zero, and drops what is from the file @ram that it is mapped from. */
static int write_sparse(int ram, int to, const char *data, off_t len, off_t at)
{
	for (off_t from = 0, end; from < len; from = end) {
		bool zero = len - from >= PAGE && is_zero(data + from);
		int r = 0;

		end = run_of(data, from, len, zero);
		if (!zero)
			r = fd_pwrite_full(to, data + from, (size_t)(end - from), at + from);
		else if (fallocate(ram, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at + from,
				   end - from) < 0)
			r = -errno;
		if (r < 0)
			return r;
	}
	return 0;
}

static int copy(int from, int to, off_t size, bool sparse)
{
	off_t at = 0;

	for (;;) {
		off_t start = lseek(from, at, SEEK_DATA), end;
		char *data;
		int r;

		if (start < 0)
			return errno == ENXIO ? 0 : -errno;
		start -= start % PAGE;
		end = lseek(from, start, SEEK_HOLE);
		if (end < 0)
			return -errno;
		end = MIN_OF(end, size);
		if (end <= start)
			return 0;
		data = mmap(NULL, (size_t)(end - start), PROT_READ, MAP_SHARED | MAP_POPULATE, from,
			    start);
		if (data == MAP_FAILED)
			return -errno;
		r = sparse ? write_sparse(from, to, data, end - start, start) :
			     fd_pwrite_full(to, data, (size_t)(end - start), start);
		(void)munmap(data, (size_t)(end - start));
		if (r < 0)
			return r;
		at = end;
	}
}

int ram_load(int ram, int from, uint64_t size, struct error *err)
{
	struct stat st;
	int r;

	if (fstat(from, &st) < 0)
		return error_errno(err, -errno, "the template's memory");
	if ((uint64_t)st.st_size != size)
		return error_set(err, -EINVAL,
				 "the template's memory has %lld bytes and not %llu",
				 (long long)st.st_size, (unsigned long long)size);
	r = copy(from, ram, (off_t)size, false);
	return r < 0 ? error_errno(err, r, "fill the guest's memory from the template") : 0;
}

int ram_store(int ram, int to, uint64_t size, struct error *err)
{
	int r = ftruncate(to, (off_t)size) < 0 ? -errno : copy(ram, to, (off_t)size, true);

	return r < 0 ? error_errno(err, r, "write the template's memory") : 0;
}

/* Of an entry of pagemap: what is neither absent nor the file's is the machine's own. */
#define PM_FILE    (UINT64_C(1) << 61)
#define PM_SWAPPED (UINT64_C(1) << 62)
#define PM_PRESENT (UINT64_C(1) << 63)
#define PM_BATCH   512u

static bool is_own(uint64_t entry)
{
	return (entry & PM_SWAPPED) || ((entry & PM_PRESENT) && !(entry & PM_FILE));
}

/* A run of pages. */
struct run {
	uint64_t first, count;
};

struct runs {
	struct run *v;
	size_t n, room;
};

static void runs_fini(struct runs *r)
{
	free(r->v);
}

static int runs_add(struct runs *r, uint64_t page)
{
	if (r->n && r->v[r->n - 1].first + r->v[r->n - 1].count == page) {
		r->v[r->n - 1].count++;
		return 0;
	}
	if (r->n == r->room) {
		size_t room = r->room ? 2 * r->room : 256;
		struct run *v = reallocarray(r->v, room, sizeof(*v));

		if (!v)
			return -ENOMEM;
		r->v = v;
		r->room = room;
	}
	r->v[r->n++] = (struct run){ page, 1 };
	return 0;
}

/* The pages of @mem that are no longer the file's. */
static int find_own(const char *mem, int pagemap, uint64_t size, struct runs *ret)
{
	uint64_t first = (uintptr_t)mem / (uint64_t)PAGE, n_pages = size / (uint64_t)PAGE;
	uint64_t entries[PM_BATCH];

	for (uint64_t at = 0; at < n_pages;) {
		size_t want = (size_t)MIN_OF(n_pages - at, (uint64_t)PM_BATCH), n;
		ssize_t got = pread(pagemap, entries, want * sizeof(entries[0]),
				    (off_t)((first + at) * sizeof(entries[0])));

		if (got < (ssize_t)sizeof(entries[0]))
			return got < 0 ? -errno : -EIO;
		n = (size_t)got / sizeof(entries[0]);
		for (size_t i = 0; i < n; i++) {
			int r = is_own(entries[i]) ? runs_add(ret, at + i) : 0;

			if (r < 0)
				return r;
		}
		at += n;
	}
	return 0;
}

static int write_runs(const char *mem, const struct run *runs, size_t n, int to)
{
	int r = 0;

	for (size_t i = 0; i < n && r == 0; i++)
		r = fd_pwrite_full(to, mem + runs[i].first * (uint64_t)PAGE,
				   runs[i].count * (size_t)PAGE, (off_t)runs[i].first * PAGE);
	return r;
}

static int store_own(const char *mem, int pagemap, int to, uint64_t size)
{
	__attribute__((cleanup(runs_fini))) struct runs own = { 0 };
	int r = find_own(mem, pagemap, size, &own);

	return r < 0 ? r : write_runs(mem, own.v, own.n, to);
}

int ram_store_changed(int base, const void *mem, int pagemap, int to, uint64_t size,
		      struct error *err)
{
	int r = ftruncate(to, (off_t)size) < 0 ? -errno : copy(base, to, (off_t)size, false);

	if (r == 0)
		r = store_own(mem, pagemap, to, size);
	return r < 0 ? error_errno(err, r, "write the machine's memory") : 0;
}

/* --- layers --- */

/*
 * The list of a layer's pages: magic, version, count of runs, the memory's size, a checksum of the runs;
 * then for each run its first page and its length. All numbers are little endian.
 */
#define PAGES_MAGIC   "CSNPAGES"
#define PAGES_VERSION 1u
#define PAGES_HEAD    32u
#define PAGES_RUN     16u
/* Each is a mapping, of which a process can have some 65,000. */
#define MAX_RUNS      4096u

/* FNV-1a: finds damage. */
static uint64_t checksum(const uint8_t *data, size_t len)
{
	uint64_t h = UINT64_C(0xcbf29ce484222325);

	for (size_t i = 0; i < len; i++)
		h = (h ^ data[i]) * UINT64_C(0x100000001b3);
	return h;
}

/* Joins runs with the smallest gaps between them until there are few enough. */
static void join_runs(struct runs *r)
{
	for (uint64_t gap = 1; r->n > MAX_RUNS; gap *= 2) {
		size_t n = 0;

		for (size_t i = 1; i < r->n; i++) {
			struct run *last = &r->v[n];

			if (r->v[i].first - last->first - last->count <= gap)
				last->count = r->v[i].first + r->v[i].count - last->first;
			else
				r->v[++n] = r->v[i];
		}
		r->n = n + 1;
	}
}

/* Of a working set: the run is written to. */
#define RUN_WRITTEN (UINT64_C(1) << 63)

static int write_pages(const struct runs *runs, uint64_t size, int fd)
{
	size_t len = PAGES_HEAD + runs->n * PAGES_RUN;
	auto_free uint8_t *data = calloc(1, len);

	if (!data)
		return -ENOMEM;
	for (size_t i = 0; i < runs->n; i++) {
		store_le64(data + PAGES_HEAD + i * PAGES_RUN, runs->v[i].first);
		store_le64(data + PAGES_HEAD + i * PAGES_RUN + 8, runs->v[i].count);
	}
	memcpy(data, PAGES_MAGIC, 8);
	store_le32(data + 8, PAGES_VERSION);
	store_le32(data + 12, (uint32_t)runs->n);
	store_le64(data + 16, size);
	store_le64(data + 24, checksum(data + PAGES_HEAD, len - PAGES_HEAD));
	return fd_pwrite_full(fd, data, len, 0);
}

int ram_store_layer(const void *mem, int pagemap, const struct ram_layer *to, uint64_t size,
		    struct error *err)
{
	__attribute__((cleanup(runs_fini))) struct runs own = { 0 };
	int r = ftruncate(to->ram, (off_t)size) < 0 ? -errno : find_own(mem, pagemap, size, &own);

	if (r == 0) {
		join_runs(&own);
		r = write_runs(mem, own.v, own.n, to->ram);
	}
	if (r == 0)
		r = write_pages(&own, size, to->pages);
	return r < 0 ? error_errno(err, r, "write what has changed of the machine's memory") : 0;
}

/* @flag: what the counts may have besides. */
static int read_pages(int fd, uint64_t size, uint64_t flag, struct runs *ret, struct error *err)
{
	uint8_t head[PAGES_HEAD];
	auto_free uint8_t *data = NULL;
	uint64_t end = 0, n_pages = size / (uint64_t)PAGE;
	uint32_t n;

	if (fd_pread_full(fd, head, sizeof(head), 0) != (ssize_t)sizeof(head) ||
	    memcmp(head, PAGES_MAGIC, 8) != 0)
		return error_set(err, -EBADMSG, "this is no list of a machine's pages");
	if (load_le32(head + 8) != PAGES_VERSION)
		return error_set(err, -ENOTSUP, "the list of pages has version %u, known is %u",
				 load_le32(head + 8), PAGES_VERSION);
	n = load_le32(head + 12);
	if (n > MAX_RUNS || load_le64(head + 16) != size)
		return error_set(err, -EBADMSG, "the list of pages is of another machine");
	data = malloc((size_t)n * PAGES_RUN + 1);
	ret->v = calloc((size_t)n + 1, sizeof(*ret->v));
	if (!data || !ret->v)
		return error_set(err, -ENOMEM, "no memory for a list of pages");
	if (fd_pread_full(fd, data, (size_t)n * PAGES_RUN, PAGES_HEAD) != (ssize_t)(n * PAGES_RUN) ||
	    checksum(data, (size_t)n * PAGES_RUN) != load_le64(head + 24))
		return error_set(err, -EBADMSG, "the list of pages is damaged");
	for (; ret->n < n; ret->n++) {
		struct run run = { load_le64(data + ret->n * PAGES_RUN),
				   load_le64(data + ret->n * PAGES_RUN + 8) };

		uint64_t count = run.count & ~flag;

		if (run.first < end || run.first > n_pages || !count || count > n_pages - run.first)
			return error_set(err, -EBADMSG, "the list of pages is malformed");
		end = run.first + count;
		ret->v[ret->n] = run;
	}
	return 0;
}

int ram_overlay(void *mem, uint64_t size, const struct ram_layer *layer, struct error *err)
{
	__attribute__((cleanup(runs_fini))) struct runs runs = { 0 };
	struct stat st;
	int r = read_pages(layer->pages, size, 0, &runs, err);

	if (r < 0)
		return r;
	/* Access beyond a file's end is a signal. */
	if (fstat(layer->ram, &st) < 0 || (uint64_t)st.st_size != size)
		return error_set(err, -EBADMSG, "the memory of a layer is not of the machine's size");
	for (size_t i = 0; i < runs.n; i++)
		if (mmap((char *)mem + runs.v[i].first * (uint64_t)PAGE, runs.v[i].count * (size_t)PAGE,
			 PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, layer->ram,
			 (off_t)runs.v[i].first * PAGE) == MAP_FAILED)
			return error_errno(err, -errno, "map a layer of the machine's memory");
	(void)madvise(mem, size, MADV_DONTDUMP);
	return 0;
}

int ram_store_overlay(const void *mem, uint64_t size, const struct ram_layer *layer, int to,
		      struct error *err)
{
	__attribute__((cleanup(runs_fini))) struct runs runs = { 0 };
	int r = read_pages(layer->pages, size, 0, &runs, err);

	if (r < 0)
		return r;
	r = write_runs(mem, runs.v, runs.n, to);
	return r < 0 ? error_errno(err, r, "write the machine's memory") : 0;
}

/* --- working sets --- */

/* 0: not touched. */
static uint64_t how_touched(uint64_t entry)
{
	return is_own(entry) ? 2 : (entry & PM_PRESENT) ? 1 : 0;
}

int ram_store_working_set(const void *mem, int pagemap, uint64_t size, int to, struct error *err)
{
	__attribute__((cleanup(runs_fini))) struct runs set = { 0 };
	uint64_t first = (uintptr_t)mem / (uint64_t)PAGE, n_pages = size / (uint64_t)PAGE, last = 0;
	uint64_t entries[PM_BATCH];
	int r = 0;

	set.v = calloc(MAX_RUNS, sizeof(*set.v));
	if (!set.v)
		return error_set(err, -ENOMEM, "no memory for a list of pages");
	/* What does not fit in the list is not fetched ahead. */
	for (uint64_t at = 0; at < n_pages && set.n < MAX_RUNS && r == 0;) {
		size_t want = (size_t)MIN_OF(n_pages - at, (uint64_t)PM_BATCH), n;
		ssize_t got = pread(pagemap, entries, want * sizeof(entries[0]),
				    (off_t)((first + at) * sizeof(entries[0])));

		r = got < (ssize_t)sizeof(entries[0]) ? -EIO : 0;
		n = r < 0 ? 0 : (size_t)got / sizeof(entries[0]);
		for (size_t i = 0; i < n && set.n < MAX_RUNS; i++) {
			uint64_t how = how_touched(entries[i]);

			if (how && how == last)
				set.v[set.n - 1].count++;
			else if (how)
				set.v[set.n++] = (struct run){ at + i, 1 | (how == 2 ? RUN_WRITTEN : 0) };
			last = how;
		}
		at += n;
	}
	if (r == 0)
		r = write_pages(&set, size, to);
	return r < 0 ? error_errno(err, r, "write the list of pages that the machine has used") : 0;
}

void ram_prefetch(void *mem, uint64_t size, int fd)
{
	__attribute__((cleanup(runs_fini))) struct runs set = { 0 };
	struct error err = { 0 };

	if (read_pages(fd, size, RUN_WRITTEN, &set, &err) < 0) {
		log_debug("nothing is fetched ahead: %s", error_text(&err));
		return;
	}
	/* Kernels before 5.14 have neither. */
	for (size_t i = 0; i < set.n; i++)
		if (madvise((char *)mem + set.v[i].first * (uint64_t)PAGE,
			    (set.v[i].count & ~RUN_WRITTEN) * (size_t)PAGE,
			    set.v[i].count & RUN_WRITTEN ? MADV_POPULATE_WRITE : MADV_POPULATE_READ) < 0)
			return;
}

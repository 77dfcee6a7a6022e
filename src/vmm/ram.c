#include "vmm/ram.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"

#define PAGE ((off_t)4096)

/* pwrite() of all of it. */
static int write_at(int fd, const char *data, off_t len, off_t at)
{
	while (len > 0) {
		ssize_t n = pwrite(fd, data, (size_t)len, at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		data += n;
		at += n;
		len -= n;
	}
	return 0;
}

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
			r = write_at(to, data + from, end - from, at + from);
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
			     write_at(to, data, end - start, start);
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

static int store_own(const char *mem, int pagemap, int to, uint64_t size)
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
		for (size_t i = 0, end; i < n; i = end) {
			int r;

			end = i + 1;
			if (!is_own(entries[i]))
				continue;
			while (end < n && is_own(entries[end]))
				end++;
			r = write_at(to, mem + (at + i) * (uint64_t)PAGE, (off_t)(end - i) * PAGE,
				     (off_t)(at + i) * PAGE);
			if (r < 0)
				return r;
		}
		at += n;
	}
	return 0;
}

int ram_store_changed(int base, const void *mem, int pagemap, int to, uint64_t size,
		      struct error *err)
{
	int r = ftruncate(to, (off_t)size) < 0 ? -errno : copy(base, to, (off_t)size, false);

	if (r == 0)
		r = store_own(mem, pagemap, to, size);
	return r < 0 ? error_errno(err, r, "write the machine's memory") : 0;
}

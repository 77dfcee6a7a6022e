#include "vmm/kvm/window.h"

#include <errno.h>
#include <sys/mman.h>

#include "virtio/gmem.h"

int window_init(struct window *w, uint64_t size)
{
	uint8_t *mem = gmem_reserve(size);

	if (!mem)
		return -ENOMEM;
	*w = (struct window){ .mem = mem, .size = size };
	return 0;
}

void window_fini(struct window *w)
{
	if (w->mem)
		(void)munmap(w->mem, w->size);
	w->mem = NULL;
}

static int map_file(void *ctx, uint64_t off, uint64_t len, int fd, uint64_t file_off, bool writable)
{
	struct window *w = ctx;
	int prot = PROT_READ | (writable ? PROT_WRITE : 0);

	if (mmap(w->mem + off, len, prot, MAP_SHARED | MAP_FIXED, fd, (off_t)file_off) == MAP_FAILED)
		return -errno;
	/* A core dump of ours must not hold the files. */
	(void)madvise(w->mem + off, len, MADV_DONTDUMP);
	return 0;
}

static int unmap_file(void *ctx, uint64_t off, uint64_t len)
{
	struct window *w = ctx;

	/* The addresses stay ours. */
	if (mmap(w->mem + off, len, PROT_NONE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
		return -errno;
	return 0;
}

const struct fs_dax_ops window_dax_ops = { .map = map_file, .unmap = unmap_file };

/* A kernel's file that may be anything, and what is then written for it to find. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm/kvm/boot.h"

#define RAM (4u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t *ram;
	static int fd = -1;
	struct boot_config config = { .low_size = RAM, .n_cpus = 2, .cmdline = "quiet" };
	struct kernel_image image;
	struct gmem mem = { 0 };

	if (fd < 0) {
		fd = memfd_create("kernel", 0);
		ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	}
	if (fd < 0 || ram == MAP_FAILED || ftruncate(fd, 0) < 0 ||
	    pwrite(fd, data, size, 0) != (ssize_t)size || gmem_add_host(&mem, 0, RAM, 0, ram) < 0)
		abort();
	config.initrd_fd = fd;
	if (kernel_load(&mem, RAM, fd, &image, NULL) == 0) {
		if (image.entry_addr < 0x100000 || image.entry_addr >= image.end || image.end > RAM)
			abort();
		(void)!boot_prepare(&mem, &config, &image, NULL);
	}
	gmem_fini(&mem);
	return 0;
}

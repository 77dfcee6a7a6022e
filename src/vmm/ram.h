/*
 * The file of a guest's memory (JAIL_RAM), to and from a template's file of the same size. Holes stay
 * holes: memory that the guest never touched, or has given back, costs nothing on either side.
 */
#pragma once

#include <stdint.h>

#include "base/error.h"

#define RAM_MAX_LAYERS 8u
/* All the system calls (sys/syscall.h) that this module makes. */
#define RAM_SYSCALLS                                                                    \
	SYS_lseek, SYS_ftruncate, SYS_fallocate, SYS_mmap, SYS_munmap, SYS_pwrite64

/* @ram is new and empty. -EINVAL if @from does not have exactly @size bytes. */
int ram_load(int ram, int from, uint64_t size, struct error *err);
/* @to is new and empty. Pages of zeros become holes, in @ram too: nobody may write to it meanwhile. */
int ram_store(int ram, int to, uint64_t size, struct error *err);
/*
 * The same of a memory that is mapped at @mem, page-aligned, from the file @base, copy-on-write.
 * @pagemap is /proc/PID/pagemap of this process: it tells which pages are no longer the file's.
 */
int ram_store_changed(int base, const void *mem, int pagemap, int to, uint64_t size,
		      struct error *err);

/*
 * Layers: what a machine has changed of the memory that it goes on from, in a file @ram of the memory's
 * size, the list of its pages in a file @pages. A few unchanged pages may be among them.
 */
struct ram_layer {
	int ram, pages;
};

/* @to and @pages are new and empty; the rest as above. */
int ram_store_layer(const void *mem, int pagemap, const struct ram_layer *to, uint64_t size,
		    struct error *err);
/*
 * Maps the pages of a layer, copy-on-write, over the memory @mem of @size bytes. Whatever the files hold,
 * nothing outside of that is touched.
 */
int ram_overlay(void *mem, uint64_t size, const struct ram_layer *layer, struct error *err);
/* Writes the pages of a layer that is mapped in @mem to @to, as they are there now. */
int ram_store_overlay(const void *mem, uint64_t size, const struct ram_layer *layer, int to,
		      struct error *err);

/*
 * The working set of a machine since it went on: which pages of @mem it has touched, and which of them it
 * has written to, as a list like that of a layer.
 */
int ram_store_working_set(const void *mem, int pagemap, uint64_t size, int to, struct error *err);
/* Has those pages there before they are asked for, the written ones as copies. Never fails. */
void ram_prefetch(void *mem, uint64_t size, int fd);

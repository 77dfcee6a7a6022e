/*
 * The file of a guest's memory (JAIL_RAM), to and from a template's file of the same size. Holes stay
 * holes: memory that the guest never touched, or has given back, costs nothing on either side.
 */
#pragma once

#include <stdint.h>

#include "base/error.h"

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

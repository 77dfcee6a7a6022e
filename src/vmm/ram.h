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

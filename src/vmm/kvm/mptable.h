/*
 * The Intel MultiProcessor Specification's tables (1.4), by which a kernel without ACPI finds
 * processors, the I/O APIC and which device has which of its lines.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define MPTABLE_MAX_CPUS 254u /* of APIC ids with 8 bits */

/*
 * Writes floating pointer and table for @n_cpus to @to, which has @size bytes and is at guest
 * address @gpa. APIC ids are 0 to @n_cpus - 1. The lines named are the timer's and @n_lines from
 * LAYOUT_IRQ_FIRST on: a kernel accesses the I/O APIC several times for each.
 * Returns the length, -EINVAL or -ENOSPC.
 */
__must_check int mptable_write(void *to, size_t size, uint32_t gpa, unsigned n_cpus,
			       unsigned n_lines);

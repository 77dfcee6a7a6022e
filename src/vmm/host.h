/* Finding QEMU. */
#pragma once

#include <stddef.h>

/* The path of qemu-system-x86_64, or "". */
void host_find_qemu(char *dst, size_t size);

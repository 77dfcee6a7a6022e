/* The system calls that caisson-vmm needs once its machine runs; all others end the process. */
#pragma once

#include <stdbool.h>

/*
 * For the calling thread and those it starts from now on. With @files also what serves shared
 * directories is allowed; a second call without it takes that back. 0 or a negative errno.
 */
int seccomp_enter(bool files);

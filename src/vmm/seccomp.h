/* The system calls that caisson-vmm needs once its machine runs; all others end the process. */
#pragma once

/* For all threads of the process. 0 or a negative errno. */
int seccomp_enter(void);

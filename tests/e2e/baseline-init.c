/*
 * The smallest PID 1: ends the machine at once. What bare QEMU needs from its start to the end of
 * this is the yardstick of bench/start.py. Built without libc:
 *   cc -static -nostdlib -Os -o init baseline-init.c
 */
#include <linux/reboot.h>
#include <sys/syscall.h>

void _start(void);

void _start(void)
{
	long r;

	__asm__ volatile("syscall"
			 : "=a"(r)
			 : "a"(SYS_reboot), "D"(LINUX_REBOOT_MAGIC1), "S"(LINUX_REBOOT_MAGIC2),
			   "d"(LINUX_REBOOT_CMD_RESTART)
			 : "rcx", "r11", "memory");
	for (;;)
		;
}

/* Where things are in a guest of the built-in monitor (x86_64). Guest-physical addresses. */
#pragma once

#define LAYOUT_GDT        0x500u
#define LAYOUT_IDT        0x520u
#define LAYOUT_START_INFO 0x6000u       /* PVH: hvm_start_info, module list, memory map */
#define LAYOUT_MODULES    0x6040u
#define LAYOUT_MEMMAP     0x6100u
#define LAYOUT_BOOT_PARAMS 0x7000u      /* Linux's zero page */
#define LAYOUT_STACK      0x8ff0u
#define LAYOUT_PML4       0x9000u
#define LAYOUT_PDPT       0xa000u
#define LAYOUT_PD         0xb000u
#define LAYOUT_CMDLINE    0x20000u
#define LAYOUT_CMDLINE_MAX 2048u        /* with the final zero: what an x86 kernel takes */
#define LAYOUT_BASE_END   0x9fc00u      /* of what a kernel may use below the first MiB */
#define LAYOUT_MPTABLE    0xf0000u      /* where kernels look */
#define LAYOUT_MPTABLE_MAX 0x10000u
#define LAYOUT_HIGH       0x100000u     /* the kernel and all else */

/* Between the two parts of memory: devices. */
#define LAYOUT_HOLE       0xc0000000u
#define LAYOUT_HOLE_END   0x100000000ull
#define LAYOUT_MMIO       0xc0001000u   /* one page for each virtio device */
#define LAYOUT_MMIO_STEP  0x1000u
#define LAYOUT_IOAPIC     0xfec00000u
#define LAYOUT_LAPIC      0xfee00000u
#define LAYOUT_IDENTITY_MAP 0xfffbc000u
#define LAYOUT_TSS        0xfffbd000u

/* Above all memory: windows of files, each from a multiple of this on. */
#define LAYOUT_WINDOW_STEP 0x8000000ull

#define LAYOUT_PANIC_PORT 0x505u        /* an I/O port: the guest's kernel tells of its panic */

/* Lines of the I/O APIC that devices have; a machine with more devices shares them. */
#define LAYOUT_IRQ_FIRST  5u
#define LAYOUT_IRQ_LAST   23u
#define LAYOUT_N_LINES    (LAYOUT_IRQ_LAST - LAYOUT_IRQ_FIRST + 1)

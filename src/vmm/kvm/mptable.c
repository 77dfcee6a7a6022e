#include "vmm/kvm/mptable.h"

#include <string.h>

#include "base/bytes.h"
#include "vmm/kvm/layout.h"

#define FLOATING_SIZE 16u
#define HEADER_SIZE   44u
#define CPU_SIZE      20u
#define ENTRY_SIZE    8u /* all others */
#define REVISION      4u
#define APIC_VERSION  0x14u

#define ENTRY_CPU       0u
#define ENTRY_BUS       1u
#define ENTRY_IOAPIC    2u
#define ENTRY_IRQ       3u
#define ENTRY_LOCAL_IRQ 4u

#define IRQ_INT    0u
#define IRQ_NMI    1u
#define IRQ_EXTINT 3u
#define ALL_APICS  0xffu

static uint8_t checksum(const uint8_t *p, size_t n)
{
	unsigned sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += p[i];
	return (uint8_t)(0x100u - (sum & 0xff));
}

static uint8_t *put_irq(uint8_t *p, uint8_t entry, uint8_t type, uint8_t irq, uint8_t apic,
			uint8_t pin)
{
	/* Polarity and trigger as the bus has them, which is edge for ISA. */
	const uint8_t raw[ENTRY_SIZE] = { entry, type, 0, 0, 0, irq, apic, pin };

	memcpy(p, raw, sizeof(raw));
	return p + sizeof(raw);
}

static uint8_t *put_cpu(uint8_t *p, unsigned id)
{
	memset(p, 0, CPU_SIZE);
	p[0] = ENTRY_CPU;
	p[1] = (uint8_t)id;
	p[2] = APIC_VERSION;
	p[3] = (uint8_t)(1 | (id == 0 ? 2 : 0)); /* enabled; the one that boots */
	store_le32(p + 4, 0x600);                /* family 6: nobody looks */
	store_le32(p + 8, 0x201);                /* has an APIC and an FPU */
	return p + CPU_SIZE;
}

int mptable_write(void *to, size_t size, uint32_t gpa, unsigned n_cpus, unsigned n_lines)
{
	uint8_t *start = to, *table = start + FLOATING_SIZE, *p = table + HEADER_SIZE;
	unsigned n_others = 1 + 1 + 1 + n_lines + 2;
	size_t len = HEADER_SIZE + n_cpus * CPU_SIZE + n_others * ENTRY_SIZE;
	uint8_t ioapic = (uint8_t)n_cpus;

	if (n_cpus == 0 || n_cpus > MPTABLE_MAX_CPUS || n_lines > LAYOUT_N_LINES)
		return -EINVAL;
	if (FLOATING_SIZE + len > size)
		return -ENOSPC;
	for (unsigned i = 0; i < n_cpus; i++)
		p = put_cpu(p, i);
	memcpy(p, (const uint8_t[]){ ENTRY_BUS, 0, 'I', 'S', 'A', ' ', ' ', ' ' }, ENTRY_SIZE);
	p += ENTRY_SIZE;
	memcpy(p, (const uint8_t[]){ ENTRY_IOAPIC, ioapic, APIC_VERSION, 1 }, 4);
	store_le32(p + 4, LAYOUT_IOAPIC);
	p += ENTRY_SIZE;
	p = put_irq(p, ENTRY_IRQ, IRQ_INT, 0, ioapic, 0);
	for (unsigned i = LAYOUT_IRQ_FIRST; i < LAYOUT_IRQ_FIRST + n_lines; i++)
		p = put_irq(p, ENTRY_IRQ, IRQ_INT, (uint8_t)i, ioapic, (uint8_t)i);
	p = put_irq(p, ENTRY_LOCAL_IRQ, IRQ_EXTINT, 0, 0, 0);
	p = put_irq(p, ENTRY_LOCAL_IRQ, IRQ_NMI, 0, ALL_APICS, 1);

	memset(table, 0, HEADER_SIZE);
	memcpy(table, "PCMP", 4);
	store_le16(table + 4, (uint16_t)len);
	table[6] = REVISION;
	memcpy(table + 8, "CAISSON ", 8);
	memcpy(table + 16, "MICROVM     ", 12);
	store_le16(table + 34, (uint16_t)(n_cpus + n_others));
	store_le32(table + 36, LAYOUT_LAPIC);
	table[7] = checksum(table, len);

	memset(start, 0, FLOATING_SIZE);
	memcpy(start, "_MP_", 4);
	store_le32(start + 4, gpa + FLOATING_SIZE);
	start[8] = FLOATING_SIZE / 16;
	start[9] = REVISION;
	start[10] = checksum(start, FLOATING_SIZE);
	return (int)(FLOATING_SIZE + len);
}

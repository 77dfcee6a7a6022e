#include "vmm/kvm/cmdline.h"

#include <stdio.h>

#include "base/cleanup.h"
#include "vmm/kvm/layout.h"

#define SMALL_MIB 256u /* guests that save on hash tables */

/* The end of the guest is a reset by the keyboard controller's port, so that a triple fault is one.
 */
static const char cmdline_common[] =
	"console=hvc0 reboot=k panic=-1 nomodule tsc=reliable no_timer_check noreplace-smp"
	" cryptomgr.notests random.trust_cpu=on swiotlb=noforce rcupdate.rcu_expedited=1 pci=off acpi=off"
	/* Free pieces of 64 KiB go back to the host; by default only those of 2 MiB would. */
	" page_reporting.page_reporting_order=4";

int cmdline_make(const struct cmdline_plan *plan, char **ret, struct error *err)
{
	auto_free char *text = NULL;
	size_t size = 0;
	FILE *f = open_memstream(&text, &size);
	bool bad;

	if (!f)
		return error_set(err, -ENOMEM, "no memory for the kernel command line");
	fputs(cmdline_common, f);
	fprintf(f, " pvpanic_mmio.port=%#x", LAYOUT_PANIC_PORT);
	fputs(plan->debug ? " loglevel=7" : " quiet", f);
	/* The others the agent starts when they are wanted. */
	if (plan->vcpus)
		fprintf(f, " maxcpus=%u", plan->vcpus);
	/* The kernel would size these for a machine that runs more than one small pod. */
	if (plan->memory_mib <= SMALL_MIB)
		fputs(" dhash_entries=4096 ihash_entries=2048 thash_entries=1024 "
		      "dummy.numdummies=0",
		      f);
	for (unsigned i = 0; i < plan->n_devices; i++)
		fprintf(f, " virtio_mmio.device=4K@%#x:%u", LAYOUT_MMIO + i * LAYOUT_MMIO_STEP,
			LAYOUT_IRQ_FIRST + i % LAYOUT_N_LINES);
	if (plan->extra && *plan->extra)
		fprintf(f, " %s", plan->extra);
	bad = ferror(f);
	if (fclose(f) != 0 || bad)
		return error_set(err, -ENOMEM, "no memory for the kernel command line");
	if (size >= LAYOUT_CMDLINE_MAX)
		return error_set(err, -E2BIG,
				 "kernel command line of %zu bytes is too long (at most %u)", size,
				 LAYOUT_CMDLINE_MAX - 1);
	*ret = take_ptr(&text);
	return 0;
}

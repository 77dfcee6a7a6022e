#include "../test.h"

#include <stdlib.h>
#include <string.h>

#include "vmm/qemu/args.h"

static const struct qemu_device devices[] = {
	{ QEMU_DEVICE_VSOCK, 5, NULL },
	{ QEMU_DEVICE_BLK, 6, NULL },
	{ QEMU_DEVICE_FS, 7, "a,b" },
};

static struct qemu_plan plan_of(enum vmm_machine machine)
{
	return (struct qemu_plan){
		.qemu = "/usr/bin/qemu",
		.id = "one",
		.machine = machine,
		.accel = VMM_ACCEL_TCG,
		.kernel = "/kernel",
		.memory_mib = 128,
		.vcpus = 2,
		.qmp_fd = 3,
		.console_fd = 4,
		.devices = devices,
		.n_devices = 3,
	};
}

static bool has(const struct argv *a, const char *key, const char *value)
{
	for (size_t i = 0; i + 1 < a->n; i++)
		if (strcmp(a->v[i], key) == 0 && strcmp(a->v[i + 1], value) == 0)
			return true;
	return false;
}

static void microvm_lists_its_devices(void **state)
{
	struct qemu_plan plan = plan_of(VMM_MACHINE_MICROVM);
	char *text = NULL;

	(void)state;
	plan.cmdline_extra = "agent.log=info";
	assert_int_equal(qemu_cmdline(&plan, &text, NULL), 0);
	assert_non_null(strstr(text, " virtio_mmio.device=512@0xfeb00000:5 "));
	assert_non_null(strstr(text, " virtio_mmio.device=512@0xfeb00800:9 "));
	assert_null(strstr(text, "0xfeb00a00"));
	assert_string_equal(text + strlen(text) - 15, " agent.log=info");
	free(text);
}

static void what_can_grow_is_left_alone_at_first(void **state)
{
	struct qemu_plan plan = plan_of(VMM_MACHINE_MICROVM);
	struct argv a = { 0 };
	char *text = NULL;

	(void)state;
	assert_int_equal(qemu_cmdline(&plan, &text, NULL), 0);
	assert_null(strstr(text, "maxcpus="));
	assert_null(strstr(text, "mem="));
	free(text);
	plan.vcpus_max = 4;
	plan.memory_all_mib = 5120;
	plan.memory_boot_end = (uint64_t)128 << 20;
	assert_int_equal(qemu_cmdline(&plan, &text, NULL), 0);
	assert_non_null(strstr(text, " maxcpus=2 mem=128M "));
	free(text);
	assert_int_equal(qemu_args(&plan, &a, NULL), 0);
	assert_true(has(&a, "-smp", "4"));
	assert_true(has(&a, "-m", "5120M"));
	argv_fini(&a);
}

static void cards_have_longer_queues(void **state)
{
	struct qemu_plan plan = plan_of(VMM_MACHINE_MICROVM);
	char *text = NULL;

	(void)state;
	assert_int_equal(qemu_cmdline(&plan, &text, NULL), 0);
	assert_non_null(strstr(text, " virtio_mmio.queue_max=64 "));
	free(text);
	plan.n_nics = 2;
	assert_int_equal(qemu_cmdline(&plan, &text, NULL), 0);
	assert_non_null(strstr(text, " virtio_mmio.queue_max=64,64,64,64,64,256 "));
	free(text);
}

static void q35_finds_them_by_pci(void **state)
{
	struct qemu_plan plan = plan_of(VMM_MACHINE_Q35);
	struct argv a = { 0 };
	char *text = NULL;

	(void)state;
	assert_int_equal(qemu_cmdline(&plan, &text, NULL), 0);
	assert_null(strstr(text, "virtio_mmio"));
	assert_null(strstr(text, "pci=off"));
	free(text);
	assert_int_equal(qemu_args(&plan, &a, NULL), 0);
	assert_true(has(&a, "-device", "vhost-user-blk-pci,chardev=vu1,num-queues=1"));
	argv_fini(&a);
	plan.pci = (const char *const[]){ "0000:01:00.0" };
	plan.n_pci = 1;
	assert_int_equal(qemu_args(&plan, &a, NULL), 0);
	assert_true(has(&a, "-device", "vfio-pci,sysfsdev=/vfio/0000:01:00.0,addr=17,rombar=0"));
	argv_fini(&a);
}

static void values_are_escaped(void **state)
{
	struct qemu_plan plan = plan_of(VMM_MACHINE_MICROVM);
	struct argv a = { 0 };

	(void)state;
	assert_int_equal(qemu_args(&plan, &a, NULL), 0);
	assert_true(has(&a, "-device",
			"vhost-user-fs-device,chardev=vu2,tag=a,,b,queue-size=512,"
			"num-request-queues=1,bus=virtio-mmio-bus.4"));
	assert_true(has(&a, "-chardev", "socket,id=vu0,fd=5"));
	assert_true(has(&a, "-m", "128M"));
	assert_true(has(&a, "-smp", "2"));
	argv_fini(&a);
}

static void sandbox_is_on(void **state)
{
	struct qemu_plan plan = plan_of(VMM_MACHINE_Q35);
	struct argv a = { 0 };

	(void)state;
	assert_int_equal(qemu_args(&plan, &a, NULL), 0);
	assert_true(has(&a, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,"
					"resourcecontrol=deny"));
	argv_fini(&a);
}

static void too_many_devices(void **state)
{
	struct qemu_plan plan = plan_of(VMM_MACHINE_MICROVM);
	struct qemu_device many[QEMU_MAX_DEVICES] = { 0 };
	struct argv a = { 0 };
	struct error err = { 0 };

	(void)state;
	plan.devices = many;
	plan.n_devices = QEMU_MICROVM_SLOTS;
	assert_int_equal(qemu_args(&plan, &a, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "q35"));
	plan.n_devices = QEMU_MICROVM_SLOTS - 2;
	assert_int_equal(qemu_args(&plan, &a, NULL), 0);
	argv_fini(&a);
}

static void command_line_too_long(void **state)
{
	struct qemu_plan plan = plan_of(VMM_MACHINE_MICROVM);
	char extra[2048], *text = NULL;
	struct error err = { 0 };

	(void)state;
	memset(extra, 'x', sizeof(extra) - 1);
	extra[sizeof(extra) - 1] = '\0';
	plan.cmdline_extra = extra;
	assert_int_equal(qemu_cmdline(&plan, &text, &err), -E2BIG);
	assert_null(text);
}

static void pmem_root_needs_q35(void **state)
{
	struct qemu_plan plan = plan_of(VMM_MACHINE_MICROVM);
	struct argv a = { 0 };
	char *text = NULL;

	(void)state;
	plan.root_image = "/root.image";
	plan.root_image_size = 4u << 20;
	assert_int_equal(qemu_args(&plan, &a, NULL), -EINVAL);
	plan.machine = VMM_MACHINE_Q35;
	assert_int_equal(qemu_args(&plan, &a, NULL), 0);
	assert_true(has(&a, "-m", "128M,slots=2,maxmem=388M"));
	argv_fini(&a);
	assert_int_equal(qemu_cmdline(&plan, &text, NULL), 0);
	assert_non_null(strstr(text, "root=/dev/pmem0"));
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(microvm_lists_its_devices),
		cmocka_unit_test(what_can_grow_is_left_alone_at_first),
		cmocka_unit_test(cards_have_longer_queues),
		cmocka_unit_test(q35_finds_them_by_pci),
		cmocka_unit_test(values_are_escaped),
		cmocka_unit_test(sandbox_is_on),
		cmocka_unit_test(too_many_devices),
		cmocka_unit_test(command_line_too_long),
		cmocka_unit_test(pmem_root_needs_q35),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

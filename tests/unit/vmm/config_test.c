#include "../test.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "../tmpdir.h"
#include "base/cleanup.h"
#include "vmm/config.h"

struct fixture {
	struct tmpdir t;
	char kernel[96], disk[96], qemu[96];
	struct vmm_config cfg;
};

static void make(struct fixture *f, const char *name, const char *text, size_t len, char *path)
{
	assert_int_equal(fsutil_write_volatile(f->t.fd, name, text, len, 0755), 0);
	snprintf(path, 96, "%s/%s", f->t.path, name);
}

static int set_up(void **state)
{
	static const char elf[64] = { 0x7f, 'E', 'L', 'F', 2, 1, 1, [18] = 62 };
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	tmpdir_init(&f->t);
	make(f, "vmlinux", elf, sizeof(elf), f->kernel);
	make(f, "disk", "data", 4, f->disk);
	make(f, "qemu", "#!", 2, f->qemu);
	vmm_config_init(&f->cfg);
	f->cfg.id = "a-1";
	f->cfg.dir = f->t.path;
	f->cfg.kernel = f->kernel;
	f->cfg.qemu = f->qemu;
	f->cfg.accel = VMM_ACCEL_TCG;
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	tmpdir_fini(&f->t);
	free(f);
	return 0;
}

static int pack(struct fixture *f, Caisson__Vmm__V1__VmConfig **ret, struct error *err)
{
	auto_free uint8_t *data = NULL;
	size_t len = 0;
	int r = config_pack(&f->cfg, &data, &len, &(bool){ false }, err);

	if (r == 0 && ret) {
		*ret = caisson__vmm__v1__vm_config__unpack(NULL, len, data);
		assert_non_null(*ret);
	}
	return r;
}

static void refused(struct fixture *f, int code, const char *word)
{
	struct error err = { 0 };

	assert_int_equal(pack(f, NULL, &err), code);
	if (!strstr(err.msg, word))
		fail_msg("'%s' is not in '%s'", word, err.msg);
}

static void defaults(void **state)
{
	Caisson__Vmm__V1__VmConfig *msg = NULL;
	struct fixture *f = *state;

	f->cfg.memory_mib = 0;
	f->cfg.vcpus = 0;
	assert_int_equal(pack(f, &msg, NULL), 0);
	assert_int_equal(msg->memory_mib, 256);
	assert_int_equal(msg->vcpus, 1);
	assert_int_equal(msg->machine, VMM_MACHINE_MICROVM);
	assert_string_equal(msg->initrd, "");
	caisson__vmm__v1__vm_config__free_unpacked(msg, NULL);
}

static void auto_takes_q35_for_many(void **state)
{
	Caisson__Vmm__V1__VmConfig *msg = NULL;
	struct fixture *f = *state;

	struct vmm_disk disks[6];
	char serial[6][2];

	for (size_t i = 0; i < 6; i++) {
		serial[i][0] = (char)('a' + i);
		serial[i][1] = '\0';
		disks[i] = (struct vmm_disk){ .path = f->disk, .serial = serial[i] };
	}
	f->cfg.disks = disks;
	f->cfg.n_disks = 6;
	f->cfg.shelf = true;
	assert_int_equal(pack(f, &msg, NULL), 0);
	assert_int_equal(msg->machine, VMM_MACHINE_Q35);
	caisson__vmm__v1__vm_config__free_unpacked(msg, NULL);
	f->cfg.machine = VMM_MACHINE_MICROVM;
	refused(f, -EINVAL, "microvm");
}

static void bad_values(void **state)
{
	struct fixture *f = *state;
	struct vmm_config good = f->cfg;

#define BAD(set, code, word) do { f->cfg = good; set; refused(f, code, word); } while (0)
	BAD(f->cfg.id = "", -EINVAL, "id");
	BAD(f->cfg.id = "a/b", -EINVAL, "a/b");
	BAD(f->cfg.id = "..", -EINVAL, "..");
	BAD(f->cfg.dir = "rel", -ENOTDIR, "rel");
	BAD(f->cfg.dir = f->disk, -ENOTDIR, "disk");
	BAD(f->cfg.kernel = NULL, -EINVAL, "kernel");
	BAD(f->cfg.kernel = "/no/kernel", -ENOENT, "/no/kernel");
	BAD(f->cfg.kernel = "vmlinux", -EINVAL, "absolute");
	BAD(f->cfg.kernel = f->disk, -ENOEXEC, "ELF");
	BAD(f->cfg.kernel = "/tmp", -EINVAL, "not a file");
	BAD(f->cfg.initrd = "/no/initrd", -ENOENT, "/no/initrd");
	BAD(f->cfg.qemu = "/no/qemu", -ENOENT, "/no/qemu");
	BAD(f->cfg.memory_mib = 8, -EINVAL, "8 MiB");
	BAD(f->cfg.vcpus = 1000, -EINVAL, "1000");
	BAD(f->cfg.cmdline_extra = "a\nb", -EINVAL, "control");
	BAD(f->cfg.machine = (enum vmm_machine)9, -EINVAL, "machine");
	BAD(f->cfg.accel = (enum vmm_accel)9, -EINVAL, "accelerator");
	BAD(f->cfg.n_disks = 17, -EINVAL, "17 disks");
#undef BAD
}

static void bad_disks(void **state)
{
	struct fixture *f = *state;
	struct vmm_disk disks[2] = { { f->disk, "one", true }, { f->disk, "two", true } };

	f->cfg.disks = disks;
	f->cfg.n_disks = 2;
	assert_int_equal(pack(f, NULL, NULL), 0);
	disks[1].serial = "one";
	refused(f, -EINVAL, "'one'");
	disks[1].serial = "";
	refused(f, -EINVAL, "serial");
	disks[1].serial = "012345678901234567890";
	refused(f, -EINVAL, "serial");
	disks[1].serial = "a b";
	refused(f, -EINVAL, "serial");
	disks[1] = (struct vmm_disk){ "/no/disk", "two", false };
	refused(f, -ENOENT, "/no/disk");
}

static void bad_shares(void **state)
{
	struct fixture *f = *state;
	struct vmm_share share = { "tag", f->disk, false };

	f->cfg.shares = &share;
	f->cfg.n_shares = 1;
	refused(f, -ENOTDIR, "disk");
	share.path = f->t.path;
	assert_int_equal(pack(f, NULL, NULL), 0);
	share.tag = "";
	refused(f, -EINVAL, "tag");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(defaults, set_up, tear_down),
		cmocka_unit_test_setup_teardown(auto_takes_q35_for_many, set_up, tear_down),
		cmocka_unit_test_setup_teardown(bad_values, set_up, tear_down),
		cmocka_unit_test_setup_teardown(bad_disks, set_up, tear_down),
		cmocka_unit_test_setup_teardown(bad_shares, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

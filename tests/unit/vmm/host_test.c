#include "../test.h"

#include <stdio.h>
#include <string.h>

#include "../tmpdir.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "vmm/cgroup.h"
#include "vmm/kvm_probe.h"
#include "vmm/vmm.h"

static void devices_that_are_not_kvm(void **state)
{
	struct error err = { 0 };

	(void)state;
	assert_int_equal(kvm_probe_here("/no/such/device", &err), -ENOENT);
	assert_non_null(strstr(err.msg, "/no/such/device"));
	assert_int_equal(kvm_probe_here("/dev/null", &err), -ENOTSUP);
	assert_non_null(strstr(err.msg, "not KVM"));
}

static void put(const struct tmpdir *t, const char *text)
{
	assert_int_equal(fsutil_write_volatile(t->fd, "kvm-probe", text, strlen(text), 0600), 0);
}

static void answers_are_kept(void **state)
{
	auto_free char *kept = NULL;
	struct vmm_host host;
	struct tmpdir t;
	char *line, text[512];

	(void)state;
	tmpdir_init(&t);
	assert_int_equal(vmm_host_probe(t.path, &host, NULL), 0);
	assert_true(host.kvm_usable == (strcmp(host.kvm_why, "ok") == 0));
	assert_int_equal(fd_read_file(t.fd, "kvm-probe", 512, &kept, NULL), 0);

	/* What is kept is believed while its key fits ... */
	line = strchr(kept, '\n');
	assert_non_null(line);
	snprintf(text, sizeof(text), "%.*s\n4242\nbecause\n", (int)(line - kept), kept);
	put(&t, text);
	assert_int_equal(vmm_host_probe(t.path, &host, NULL), 0);
	assert_false(host.kvm_usable);
	assert_string_equal(host.kvm_why, "because");
	assert_int_equal(host.tsc_khz, 4242);

	/* ... and measured anew if it is of another boot, or damaged. */
	put(&t, "another boot\n4242\nok\n");
	assert_int_equal(vmm_host_probe(t.path, &host, NULL), 0);
	assert_int_not_equal(host.tsc_khz, 4242);
	snprintf(text, sizeof(text), "%.*s\nx\nok\n", (int)(line - kept), kept);
	put(&t, text);
	assert_int_equal(vmm_host_probe(t.path, &host, NULL), 0);
	assert_string_not_equal(host.kvm_why, "because");
	tmpdir_fini(&t);
}

static void no_place_to_keep_them(void **state)
{
	struct vmm_host host;

	(void)state;
	assert_int_equal(vmm_host_probe("/no/such/dir", &host, NULL), 0);
	assert_int_not_equal(strlen(host.kvm_why), 0);
}

static void cgroups(void **state)
{
	struct error err = { 0 };
	char path[64];

	(void)state;
	assert_int_equal(cgroup_destroy("/no/such/cgroup", &err), 0);
	assert_int_equal(cgroup_make("/no/such/cgroup", &err), -ENOENT);
	assert_int_equal(cgroup_v1_path("/no/such/pod", "a", path, sizeof(path)), 0);
	assert_string_equal(path, "");
	assert_int_equal(cgroup_v1_path("/../pod", "a", path, sizeof(path)), 0);
	assert_string_equal(path, "");
	assert_int_equal(cgroup_v1_destroy("/no/such/pod/caisson-a", &err), 0);
	assert_false(cgroup_throttles("/no/such/cgroup"));
	assert_false(cgroup_oom_killed("/no/such/cgroup", ""));
	if (!cgroup_root())
		return;
	assert_int_equal(cgroup_path("some-id", path, 8), -ENAMETOOLONG);
	assert_int_equal(cgroup_path("some-id", path, sizeof(path)), 0);
	if (*path)
		assert_string_equal(path + strlen(path) - 16, "/caisson-some-id");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(devices_that_are_not_kvm),
		cmocka_unit_test(answers_are_kept),
		cmocka_unit_test(no_place_to_keep_them),
		cmocka_unit_test(cgroups),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Profiles of system calls: the default one, and Docker's form from a file. */
#include "../test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "oci/oci.h"

static Grpc__Spec *spec_with(bool privileged)
{
	struct error err = { 0 };
	Grpc__Spec *spec;

	assert_int_equal(oci_spec_default(false, privileged, &spec, &err), 0);
	return spec;
}

/* The action of the first rule that names @call without conditions; NULL: none does. */
static const char *action_of(const Grpc__Spec *spec, const char *call)
{
	const Grpc__LinuxSeccomp *s = spec->linux->seccomp;

	for (size_t i = 0; i < s->n_syscalls; i++)
		for (size_t k = 0; k < s->syscalls[i]->n_names && !s->syscalls[i]->n_args; k++)
			if (strcmp(s->syscalls[i]->names[k], call) == 0)
				return s->syscalls[i]->action;
	return NULL;
}

static void test_default(void **state)
{
	struct error err = { 0 };
	Grpc__Spec *spec = spec_with(false);

	assert_int_equal(oci_seccomp_set(spec, NULL, &err), 0);
	assert_string_equal(spec->linux->seccomp->defaultaction, "SCMP_ACT_ERRNO");
	assert_int_equal(spec->linux->seccomp->n_architectures, 2);
	assert_string_equal(action_of(spec, "read"), "SCMP_ACT_ALLOW");
	assert_string_equal(action_of(spec, "chroot"), "SCMP_ACT_ALLOW");
	assert_string_equal(action_of(spec, "clone3"), "SCMP_ACT_ERRNO");
	assert_null(action_of(spec, "mount"));
	assert_null(action_of(spec, "keyctl"));
	assert_null(action_of(spec, "io_uring_setup"));
	oci_spec_free(spec);

	/* All capabilities, but no more than that. */
	spec = spec_with(true);
	assert_int_equal(oci_seccomp_set(spec, NULL, &err), 0);
	assert_string_equal(action_of(spec, "mount"), "SCMP_ACT_ALLOW");
	assert_string_equal(action_of(spec, "clone3"), "SCMP_ACT_ALLOW");
	assert_null(action_of(spec, "keyctl"));
	oci_spec_free(spec);
}

static int set_from(Grpc__Spec *spec, const char *text, struct error *err)
{
	char path[] = "/tmp/oci-seccomp-XXXXXX";
	int fd = mkstemp(path), r;

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	close(fd);
	r = oci_seccomp_set(spec, path, err);
	unlink(path);
	return r;
}

static void test_files(void **state)
{
	static const char profile[] =
		"{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"archMap\":["
		"{\"architecture\":\"SCMP_ARCH_AARCH64\",\"subArchitectures\":[\"SCMP_ARCH_ARM\"]},"
		"{\"architecture\":\"SCMP_ARCH_X86_64\",\"subArchitectures\":[]}],"
		"\"syscalls\":[{\"name\":\"one\",\"action\":\"SCMP_ACT_KILL\",\"comment\":\"old form\"},"
		"{\"names\":[\"arm\"],\"action\":\"SCMP_ACT_KILL\",\"includes\":{\"arches\":[\"arm64\"]}},"
		"{\"names\":[\"here\"],\"action\":\"SCMP_ACT_KILL\",\"includes\":{\"arches\":[\"amd64\"],"
		"\"minKernel\":\"4.8\"}},"
		"{\"names\":[\"bpf\"],\"action\":\"SCMP_ACT_KILL\",\"includes\":{\"caps\":[\"CAP_BPF\"]}},"
		"{\"names\":[\"kill\"],\"action\":\"SCMP_ACT_KILL\",\"excludes\":{\"caps\":[\"CAP_KILL\"]}}]}";
	struct error err = { 0 };
	Grpc__Spec *spec = spec_with(false);

	assert_int_equal(set_from(spec, profile, &err), 0);
	assert_int_equal(spec->linux->seccomp->n_architectures, 1);
	assert_int_equal(spec->linux->seccomp->n_syscalls, 2);
	assert_string_equal(action_of(spec, "one"), "SCMP_ACT_KILL");
	assert_string_equal(action_of(spec, "here"), "SCMP_ACT_KILL");
	/* A bad one leaves what was there. */
	assert_int_equal(set_from(spec, "{\"defaultAction\":[]}", &err), -EINVAL);
	assert_non_null(strstr(err.msg, "defaultAction"));
	assert_int_equal(set_from(spec, "[]", &err), -EINVAL);
	assert_int_equal(set_from(spec, "{", &err), -EINVAL);
	assert_int_equal(oci_seccomp_set(spec, "/no/such", &err), -ENOENT);
	assert_int_equal(spec->linux->seccomp->n_syscalls, 2);
	oci_spec_free(spec);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_default),
		cmocka_unit_test(test_files),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* A pod's cgroup and the size of its VM. */
#include "../test.h"

#include <stdlib.h>

#include "oci/oci.h"
#include "sandbox/internal.h"

static const struct config config = {
	.memory = (uint64_t)256 << 20,
	.memory_overhead = (uint64_t)64 << 20,
	.vcpus = 1,
};

static Grpc__Spec *spec_with(const char *cgroup)
{
	Grpc__Spec *spec;

	assert_int_equal(oci_spec_default(false, false, &spec, NULL), 0);
	assert_int_equal(oci_str_set(&spec->linux->cgroupspath, cgroup), 0);
	return spec;
}

static void check_cgroup(const char *ns, const char *path, const char *parent, const char *expected)
{
	struct sandbox s = { .ns = (char *)ns, .cgroup_parent = (char *)parent };
	Grpc__Spec *spec = spec_with(path);
	char *got = pod_cgroup(&s, spec);

	if (expected)
		assert_string_equal(got, expected);
	else
		assert_null(got);
	free(got);
	oci_spec_free(spec);
}

static void cgroups(void **state)
{
	(void)state;
	check_cgroup("k8s.io", "/kubepods/burstable/pod1/c0ffee", NULL, "/kubepods/burstable/pod1");
	check_cgroup("k8s.io", "kubepods-burstable-pod1_2.slice:cri-containerd:c0ffee", NULL,
		     "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice");
	check_cgroup("k8s.io", "", "kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice");
	check_cgroup("k8s.io", "", "/kubepods/pod1", "/kubepods/pod1");
	check_cgroup("k8s.io", "", NULL, NULL);
	check_cgroup("k8s.io", "/top", NULL, NULL);
	check_cgroup("k8s.io", "relative/path", NULL, NULL);
	check_cgroup("k8s.io", "/a/b.slice:x:y", NULL, NULL);
	check_cgroup(SANDBOX_OWN_NAMESPACE, "/a/b/c", NULL, NULL);
}

static void sizes(void **state)
{
	struct sandbox s = { .ns = (char *)"k8s.io", .config = &config, .is_pod = true };
	Grpc__Spec *spec = spec_with("");

	(void)state;
	assert_int_equal(pod_memory_mib(&s, NULL), 256);
	assert_int_equal(pod_vcpus(&s, NULL), 1);
	s.pod_memory = (uint64_t)1 << 30;
	s.pod_quota = 250000;
	s.pod_period = 100000;
	assert_int_equal(pod_memory_mib(&s, NULL), 1088);
	assert_int_equal(pod_vcpus(&s, NULL), 3);
	/* Never less than without limits: some containers may have none. */
	s.pod_memory = 32 << 20;
	s.pod_quota = 10000;
	assert_int_equal(pod_memory_mib(&s, NULL), 256);
	assert_int_equal(pod_vcpus(&s, NULL), 1);
	/* What containerd says in annotations, and nonsense in them. */
	s.pod_memory = s.pod_quota = 0;
	assert_int_equal(oci_annotation_set(spec, "io.kubernetes.cri.sandbox-memory", "536870912"), 0);
	assert_int_equal(oci_annotation_set(spec, "io.kubernetes.cri.sandbox-cpu-quota", "150000"), 0);
	assert_int_equal(oci_annotation_set(spec, "io.kubernetes.cri.sandbox-cpu-period", "100000"), 0);
	assert_int_equal(pod_memory_mib(&s, spec), 576);
	assert_int_equal(pod_vcpus(&s, spec), 2);
	assert_int_equal(oci_annotation_set(spec, "io.kubernetes.cri.sandbox-memory", "-5"), 0);
	assert_int_equal(oci_annotation_set(spec, "io.kubernetes.cri.sandbox-cpu-quota", "1x"), 0);
	assert_int_equal(pod_memory_mib(&s, spec), 256);
	assert_int_equal(pod_vcpus(&s, spec), 1);
	/* The pod's own word wins. */
	assert_int_equal(oci_annotation_set(spec, "io.kubernetes.cri.sandbox-memory", "536870912"), 0);
	assert_int_equal(oci_annotation_set(spec, "io.caisson.memory", "300Mi"), 0);
	assert_int_equal(pod_memory_mib(&s, spec), 256);
	oci_spec_free(spec);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(cgroups),
		cmocka_unit_test(sizes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

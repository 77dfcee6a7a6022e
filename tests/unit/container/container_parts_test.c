/* The parts of agent/container that need no kernel: options, names, paths, weights. */
#include "../test.h"

#include <errno.h>
#include <linux/mount.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>

#include "agent/container/internal.h"

static void parse(struct ctr_mountopt *o, const char *list)
{
	char *copy = strdup(list), *v[32], *save = NULL;
	struct error err = { 0 };
	size_t n = 0;

	for (char *s = strtok_r(copy, ",", &save); s; s = strtok_r(NULL, ",", &save))
		v[n++] = s;
	assert_int_equal(ctr_mountopt_parse(v, n, o, &err), 0);
	free(copy);
}

static void mount_options(void **state)
{
	static const struct {
		const char *name;
		uint64_t set, clr;
	} flags[] = {
		{ "ro", MOUNT_ATTR_RDONLY, 0 }, { "rw", 0, MOUNT_ATTR_RDONLY },
		{ "nosuid", MOUNT_ATTR_NOSUID, 0 }, { "suid", 0, MOUNT_ATTR_NOSUID },
		{ "nodev", MOUNT_ATTR_NODEV, 0 }, { "dev", 0, MOUNT_ATTR_NODEV },
		{ "noexec", MOUNT_ATTR_NOEXEC, 0 }, { "exec", 0, MOUNT_ATTR_NOEXEC },
		{ "noatime", MOUNT_ATTR_NOATIME, MOUNT_ATTR__ATIME },
		{ "atime", 0, MOUNT_ATTR__ATIME }, { "relatime", 0, MOUNT_ATTR__ATIME },
		{ "strictatime", MOUNT_ATTR_STRICTATIME, MOUNT_ATTR__ATIME },
		{ "nodiratime", MOUNT_ATTR_NODIRATIME, 0 },
		{ "diratime", 0, MOUNT_ATTR_NODIRATIME },
		{ "nosymfollow", MOUNT_ATTR_NOSYMFOLLOW, 0 },
		{ "symfollow", 0, MOUNT_ATTR_NOSYMFOLLOW },
	};
	struct ctr_mountopt o;

	for (size_t i = 0; i < ARRAY_LEN(flags); i++) {
		char name[32];

		parse(&o, flags[i].name);
		assert_true(o.attr_set == flags[i].set && o.attr_clr == flags[i].clr);
		assert_true(!o.rec_set && !o.rec_clr && !o.n_data);
		ctr_mountopt_fini(&o);
		(void)snprintf(name, sizeof(name), "r%s", flags[i].name);
		parse(&o, name);
		assert_true(o.rec_set == flags[i].set && o.rec_clr == flags[i].clr);
		assert_true(!o.attr_set && !o.attr_clr && !o.n_data);
		ctr_mountopt_fini(&o);
	}
	parse(&o, "ro,rw,noatime,relatime");
	assert_true(o.attr_set == 0 && o.attr_clr == (MOUNT_ATTR_RDONLY | MOUNT_ATTR__ATIME));
	ctr_mountopt_fini(&o);
	parse(&o, "rbind,rslave,size=5,mode=1,defaults,idmap,tmpcopyup,sync");
	assert_true(o.bind && o.rbind && o.idmap && !o.ridmap && o.copy_up && !o.remount);
	assert_true(o.propagation == MS_SLAVE && o.propagation_rec);
	assert_int_equal(o.n_data, 3);
	assert_string_equal(o.data[0], "size=5");
	assert_string_equal(o.data[2], "sync");
	ctr_mountopt_fini(&o);
	parse(&o, "remount,unbindable,ridmap");
	assert_true(o.remount && o.propagation == MS_UNBINDABLE && !o.propagation_rec && o.ridmap);
	ctr_mountopt_fini(&o);
}

static void cgroup_paths(void **state)
{
	static const struct {
		const char *in, *out;
	} good[] = {
		{ "", "caisson/id" }, { "/a//b/", "a/b" }, { "a/b", "a/b" },
		{ "kubepods.slice:cri:123", "kubepods.slice/cri-123" },
		{ ":docker:9", "system.slice/docker-9" },
	};
	static const char *const bad[] = { "/", "//", "../x", "/a/../b", "a/./b" };
	struct error err = { 0 };
	char *out = NULL;

	for (size_t i = 0; i < ARRAY_LEN(good); i++) {
		assert_int_equal(ctr_cgroup_path(good[i].in, "id", &out, &err), 0);
		assert_string_equal(out, good[i].out);
		free(out);
	}
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		assert_int_equal(ctr_cgroup_path(bad[i], "id", &out, &err), -EINVAL);
}

static void cpu_weights(void **state)
{
	assert_int_equal(ctr_cpu_weight(0), 1);
	assert_int_equal(ctr_cpu_weight(2), 1);
	assert_int_equal(ctr_cpu_weight(1024), 39);
	assert_int_equal(ctr_cpu_weight(262144), 10000);
	assert_int_equal(ctr_cpu_weight(1u << 30), 10000);
}

static void capability_names(void **state)
{
	const char *names[] = { "CAP_CHOWN", "cap_kill", "CHECKPOINT_RESTORE", "CAP_NEW_ONE" };
	Grpc__LinuxCapabilities c = GRPC__LINUX_CAPABILITIES__INIT;
	struct ctr_caps caps;

	c.bounding = (char **)names;
	c.n_bounding = ARRAY_LEN(names);
	ctr_caps_parse(&c, &caps);
	assert_true(caps.bounding == (1ULL | 1ULL << 5 | 1ULL << 40));
	assert_true(caps.ambient == 0);
	ctr_caps_parse(NULL, &caps);
	assert_true(caps.bounding == 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(mount_options),
		cmocka_unit_test(cgroup_paths),
		cmocka_unit_test(cpu_weights),
		cmocka_unit_test(capability_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

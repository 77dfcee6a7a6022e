/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "../test.h"
#include "../tmpdir.h"
#include "config/config.h"

struct fixture {
	struct tmpdir tmp;
	struct config cfg;
	struct error err;
	char path[128];
};

static int setup(void **state)
{
	static struct fixture f;

	f = (struct fixture){ 0 };
	tmpdir_init(&f.tmp);
	(void)snprintf(f.path, sizeof(f.path), "%s/config.yaml", f.tmp.path);
	*state = &f;
	return config_init(&f.cfg);
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	config_fini(&f->cfg);
	tmpdir_fini(&f->tmp);
	return 0;
}

static void put(struct fixture *f, const char *name, const char *text)
{
	char path[192];
	FILE *out;

	(void)snprintf(path, sizeof(path), "%s/%s", f->tmp.path, name);
	out = fopen(path, "w");
	assert_non_null(out);
	assert_true(fputs(text, out) >= 0);
	assert_int_equal(fclose(out), 0);
}

static int load(struct fixture *f, const char *text)
{
	put(f, "config.yaml", text);
	return config_load(&f->cfg, f->path, &f->err);
}

static void expect_error(struct fixture *f, const char *text, const char *suffix)
{
	char want[256];

	assert_int_equal(load(f, text), -EINVAL);
	(void)snprintf(want, sizeof(want), "%s%s", f->path, suffix);
	assert_string_equal(f->err.msg, want);
}

static void test_all_keys(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(load(f, "vm:\n"
				 "  kernel: /k\n"
				 "  initrd: /i\n"
				 "  kernel_params: a=b c\n"
				 "  machine: q35\n"
				 "  accelerator: tcg\n"
				 "  memory: 512MiB\n"
				 "  memory_overhead: 32m\n"
				 "  vcpus: 3\n"
				 "  boot_timeout: 2500ms\n"
				 "  agent_timeout: 9s\n"
				 "storage:\n"
				 "  scratch_dir: /s\n"
				 "  scratch_size: 1g\n"
				 "  share_cache: never\n"
				 "  share_locks: true\n"
				 "  share_dax: 65m\n"
				 "  share_file_handles: true\n"
				 "log:\n"
				 "  level: debug\n"
				 "  console: false\n"
				 "  agent_level: warn\n"
				 "annotations:\n"
				 "  allow: [io.caisson.vcpus, 'io.x.*']\n"), 0);
	assert_string_equal(f->cfg.kernel, "/k");
	assert_string_equal(f->cfg.initrd, "/i");
	assert_string_equal(f->cfg.kernel_params, "a=b c");
	assert_string_equal(f->cfg.machine, "q35");
	assert_int_equal(f->cfg.accel, CONFIG_ACCEL_TCG);
	assert_int_equal(f->cfg.memory, 512 << 20);
	assert_int_equal(f->cfg.memory_overhead, 32 << 20);
	assert_int_equal(f->cfg.vcpus, 3);
	assert_int_equal(f->cfg.boot_timeout_ms, 2500);
	assert_int_equal(f->cfg.agent_timeout_ms, 9000);
	assert_string_equal(f->cfg.scratch_dir, "/s");
	assert_int_equal(f->cfg.scratch_size, 1 << 30);
	assert_string_equal(f->cfg.share_cache, "never");
	assert_true(f->cfg.share_locks);
	assert_true(f->cfg.share_handles);
	assert_int_equal(f->cfg.share_dax, 64 << 20);
	assert_string_equal(f->cfg.log_level, "debug");
	assert_false(f->cfg.log_console);
	assert_string_equal(f->cfg.agent_log_level, "warn");
	assert_int_equal(f->cfg.n_annotations, 2);
	assert_string_equal(f->cfg.annotations[1], "io.x.*");
}

static void test_empty_and_missing(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(load(f, ""), 0);
	assert_int_equal(load(f, "# nothing\n"), 0);
	assert_int_equal(f->cfg.vcpus, 1);
	assert_int_equal(config_load(&f->cfg, "/nonexistent/config.yaml", &f->err), -ENOENT);
}

static void test_errors_name_the_line(void **state)
{
	struct fixture *f = *state;

	expect_error(f, "vm:\n  memory: 1g\n  bogus: 3\n", ":3: unknown key 'bogus' in 'vm'");
	expect_error(f, "# x\n\nvn: {}\n", ":3: unknown key 'vn'");
	expect_error(f, "vm:\n  vcpus: 3x\n", ":2: vm.vcpus: '3x' is not a number from 1 to 64");
	expect_error(f, "vm:\n  vcpus: 0\n", ":2: vm.vcpus: '0' is not a number from 1 to 64");
	expect_error(f, "vm:\n  memory: lots\n",
		     ":2: vm.memory: 'lots' is not a size from 64MiB to 1TiB");
	expect_error(f, "vm:\n  kernel: k\n", ":2: vm.kernel: 'k' is not an absolute path");
	expect_error(f, "log:\n  level: info\n  level: warn\n", ":3: key 'level' is given twice");
	expect_error(f, "vm: 3\n", ":1: 'vm' must hold 'key: value' lines");
	expect_error(f, "vm:\n  memory: [1]\n", ":2: 'memory' must be a single value");
	expect_error(f, "annotations:\n  allow: x\n", ":2: 'allow' must be a list");
}

static void test_bad_yaml(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(load(f, "vm: [\n"), -EINVAL);
	assert_non_null(strstr(f->err.msg, "config.yaml:"));
	assert_int_equal(load(f, "vm:\n\tkernel: x\n"), -EINVAL);
	assert_non_null(strstr(f->err.msg, "config.yaml:2:"));
}

static void test_drop_in_files(void **state)
{
	struct fixture *f = *state;
	char dir[128];

	(void)snprintf(dir, sizeof(dir), "%s/config.d", f->tmp.path);
	assert_int_equal(mkdir(dir, 0700), 0);
	put(f, "config.d/20-b.yaml", "vm:\n  vcpus: 5\n");
	put(f, "config.d/10-a.yaml", "vm:\n  vcpus: 4\n  memory: 1g\n");
	put(f, "config.d/ignored.txt", "nonsense: [\n");
	put(f, "config.d/.hidden.yaml", "nonsense: [\n");
	assert_int_equal(load(f, "vm:\n  vcpus: 2\n"), 0);
	assert_int_equal(f->cfg.vcpus, 5);
	assert_int_equal(f->cfg.memory, 1 << 30);

	put(f, "config.d/30-bad.yaml", "vm:\n\n  wrong: 1\n");
	assert_int_equal(load(f, ""), -EINVAL);
	assert_non_null(strstr(f->err.msg, "config.d/30-bad.yaml:3: unknown key 'wrong'"));
}

static void test_annotations(void **state)
{
	struct fixture *f = *state;
	bool denied;

	assert_int_equal(config_annotate(&f->cfg, "io.caisson.vcpus", "2", &denied, &f->err), 0);
	assert_false(denied);
	assert_int_equal(f->cfg.vcpus, 2);
	assert_int_equal(config_annotate(&f->cfg,
					 "io.katacontainers.config.hypervisor.default_memory",
					 "512", &denied, &f->err), 0);
	assert_int_equal(f->cfg.memory, 512 << 20);
	{
		static char *rates[] = { (char *)"io.katacontainers.*" };
		struct config all = f->cfg;

		all.annotations = rates;
		all.n_annotations = 1;
		assert_int_equal(config_annotate(&all, "io.katacontainers.config.hypervisor."
						 "rx_rate_limiter_max_rate", "80000000", &denied,
						 &f->err), 0);
		assert_int_equal(all.network_rx_rate, 10000000);
	}
	assert_int_equal(config_annotate(&f->cfg, "io.caisson.kernel", "/k", &denied, &f->err), 0);
	assert_true(denied);
	assert_null(f->cfg.kernel);
	assert_int_equal(config_annotate(&f->cfg, "org.example.x", "1", &denied, &f->err), 0);
	assert_false(denied);
	assert_int_equal(config_annotate(&f->cfg, "io.caisson.vcpus", "many", &denied, &f->err),
			 -EINVAL);
	assert_string_equal(f->err.msg,
			    "annotation io.caisson.vcpus: 'many' is not a number from 1 to 64");
}

static int load_text(struct fixture *f, const char *text)
{
	return config_load_text(&f->cfg, "options", text, strlen(text), &f->err);
}

/* Every one of Kata's that has a meaning here, in Kata's units. */
static void test_annotations_of_kata(void **state)
{
#define HYPERVISOR "io.katacontainers.config.hypervisor."
	static const char *const names[][2] = {
		{ HYPERVISOR "default_memory", "640" }, { HYPERVISOR "default_vcpus", "3" },
		{ HYPERVISOR "default_max_memory", "2048" }, { HYPERVISOR "default_max_vcpus", "7" },
		{ HYPERVISOR "kernel", "/k" }, { HYPERVISOR "initrd", "/i" }, { HYPERVISOR "image", "/r" },
		{ HYPERVISOR "kernel_params", "a=b" }, { HYPERVISOR "machine_type", "q35" },
		{ HYPERVISOR "rx_rate_limiter_max_rate", "8000000" },
		{ HYPERVISOR "tx_rate_limiter_max_rate", "16000000" },
		{ "io.katacontainers.config.runtime.internetworking_model", "macvtap" },
	};
	struct fixture *f = *state;
	const struct config *cfg = &f->cfg;
	bool denied;

	assert_int_equal(load_text(f, "annotations: {allow: ['io.katacontainers.*']}\n"), 0);
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		assert_int_equal(config_annotate(&f->cfg, names[i][0], names[i][1], &denied, &f->err), 0);
		assert_false(denied);
	}
	assert_int_equal(cfg->memory, 640 << 20);
	assert_int_equal(cfg->memory_max, UINT64_C(2048) << 20);
	assert_int_equal(cfg->vcpus, 3);
	assert_int_equal(cfg->vcpus_max, 7);
	assert_string_equal(cfg->kernel, "/k");
	assert_string_equal(cfg->initrd, "/i");
	assert_string_equal(cfg->root_image, "/r");
	assert_string_equal(cfg->kernel_params, "a=b");
	assert_string_equal(cfg->machine, "q35");
	assert_int_equal(cfg->network_rx_rate, 1000000);
	assert_int_equal(cfg->network_tx_rate, 2000000);
	assert_string_equal(cfg->network_model, "macvtap");
#undef HYPERVISOR
}

static void test_text_in_either_form(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(load_text(f, "vm: {vcpus: 5}\n"), 0);
	assert_int_equal(f->cfg.vcpus, 5);
	/* As containerd writes its own configuration's table, in both styles that it has had. */
	assert_int_equal(load_text(f, "TypeUrl = \"x\"\n\n[annotations]\n  allow = [\"io.x.*\", 'a#b']\n\n"
				      "[vm]\n  memory = \"1GiB\" # much\r\n  vcpus = 3\n  templates = false\n"
				      "[storage]\nscratch_dir = '/a b'\n"), 0);
	assert_int_equal(f->cfg.memory, 1 << 30);
	assert_int_equal(f->cfg.vcpus, 3);
	assert_false(f->cfg.templates);
	assert_string_equal(f->cfg.scratch_dir, "/a b");
	assert_int_equal(f->cfg.n_annotations, 2);
	assert_string_equal(f->cfg.annotations[1], "a#b");
	assert_int_equal(load_text(f, "[annotations]\nallow = [\n  'one', # first\n  'two',\n]\n"), 0);
	assert_string_equal(f->cfg.annotations[1], "two");
	assert_int_equal(load_text(f, "# nothing\n"), 0);
}

static void test_bad_text(void **state)
{
	static const struct {
		const char *text, *error;
	} bad[] = {
		{ "[vm]\nvcpus = 0\n", "options:2: vm.vcpus: '0' is not a number from 1 to 64" },
		{ "[vm]\n\nbogus = 1\n", "options:3: unknown key 'bogus' in 'vm'" },
		{ "SystemdCgroup = true\n", "options:1: unknown key 'SystemdCgroup'" },
		{ "[[vm]]\n", "options:1: a table that is not named by one word" },
		{ "[vm.more]\n", "options:1: a table that is not named by one word" },
		{ "[vm]\nmemory\n", "options:2: neither a table nor 'key = value'" },
		{ "[vm]\nmemory =\n", "options:2: a key without a value" },
		{ "[vm]\nmemory = \"1g\n", "options:2: a string without its end" },
		{ "[vm]\nmemory = \"\"\"1g\"\"\"\n", "options:2: a string of several lines" },
		{ "[vm]\nmemory = {a = 1}\n",
		  "options:2: a value that is no string, number, boolean or list of those" },
		{ "[annotations]\nallow = ['a',\n", "options:2: a list without its end" },
	};
	struct fixture *f = *state;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(load_text(f, bad[i].text), -EINVAL);
		assert_string_equal(f->err.msg, bad[i].error);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_annotations_of_kata, setup, teardown),
		cmocka_unit_test_setup_teardown(test_text_in_either_form, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_text, setup, teardown),
		cmocka_unit_test_setup_teardown(test_all_keys, setup, teardown),
		cmocka_unit_test_setup_teardown(test_empty_and_missing, setup, teardown),
		cmocka_unit_test_setup_teardown(test_errors_name_the_line, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_yaml, setup, teardown),
		cmocka_unit_test_setup_teardown(test_drop_in_files, setup, teardown),
		cmocka_unit_test_setup_teardown(test_annotations, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * ADD, CHECK and DEL with plugins that are shell scripts: each notes its name, the environment and
 * what it was given, and does what the file "NAME.do" says.
 */
#include "../test.h"

#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "../tmpdir.h"
#include "base/fd.h"
#include "base/str.h"
#include "cni/cni.h"

#define RESULT "{\\\"cniVersion\\\":\\\"1.0.0\\\",\\\"ips\\\":[{\\\"address\\\":\\\"10.1.2.3/24\\\"}]}"

struct bench {
	struct tmpdir t;
	char *state;
	struct cni cni;
	struct cni_network *net;
	struct cni_attachment at;
};

static void write_script(const struct bench *b, const char *name, const char *behaviour)
{
	auto_free char *text = str_printf(
		"#!/bin/sh\n"
		"in=$(cat)\n"
		"echo \"%s $CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS $in\" >>%s/log\n"
		"%s\n", name, b->t.path, behaviour);

	assert_non_null(text);
	assert_int_equal(fsutil_write_volatile(b->t.fd, name, text, strlen(text), 0755), 0);
}

static void bench_init(struct bench *b)
{
	static const char conf[] = "{\"cniVersion\": \"1.0.0\", \"name\": \"net\", \"plugins\": ["
				   "{\"type\": \"first\", \"capabilities\": {\"ips\": true}},"
				   "{\"type\": \"second\", \"own\": 1}]}";
	struct error err = { 0 };

	memset(b, 0, sizeof(*b));
	tmpdir_init(&b->t);
	b->state = str_join_path(b->t.path, "state");
	assert_non_null(b->state);
	assert_int_equal(mkdir(b->state, 0700), 0);
	assert_int_equal(cni_network_parse(conf, strlen(conf), "conf", &b->net, &err), 0);
	write_script(b, "first", "[ $CNI_COMMAND != ADD ] || echo \"" RESULT "\"");
	write_script(b, "second", "[ $CNI_COMMAND != ADD ] || echo \"" RESULT "\"");
	b->cni = (struct cni){ .plugin_dirs = b->t.path, .dir = b->state, .timeout_ms = 10000 };
	b->at = (struct cni_attachment){ .container = "c1", .netns = "/proc/self/ns/net",
					 .ifname = "eth0", .args = "A=B",
					 .capabilities = json_pack("{s:[s], s:s}", "ips", "10.1.2.3",
								   "mac", "not asked for") };
}

static void bench_fini(struct bench *b)
{
	json_decref(b->at.capabilities);
	cni_network_free(b->net);
	free(b->state);
	tmpdir_fini(&b->t);
}

/* What the plugins noted since the last call. */
static char *take_log(const struct bench *b)
{
	char *text = NULL;

	if (fd_read_file(b->t.fd, "log", 65536, &text, NULL) < 0)
		return strdup("");
	assert_int_equal(unlinkat(b->t.fd, "log", 0), 0);
	return text;
}

static void check_log(const struct bench *b, const char *const *words)
{
	auto_free char *log = take_log(b);
	const char *p = log;

	for (; *words; words++) {
		const char *found = strstr(p, *words);

		if (!found)
			fail_msg("no '%s' in: %s", *words, p);
		p = found + strlen(*words);
	}
}

#define LOG(b, ...) check_log((b), (const char *const[]){ __VA_ARGS__, NULL })

static void add(struct bench *b)
{
	auto_cni_result struct cni_result *res = NULL;
	struct error err = { 0 };

	if (cni_add(&b->cni, b->net, &b->at, &res, &err) < 0)
		fail_msg("%s", err.msg);
	assert_string_equal(res->ips[0].address, "10.1.2.3");
}

static void whole_life(void **state)
{
	auto_cni_result struct cni_result *res = NULL;
	struct error err = { 0 };
	struct bench b;

	bench_init(&b);
	add(&b);
	LOG(&b, "first ADD c1 /proc/self/ns/net eth0 A=B", "\"name\":\"net\"", "\"runtimeConfig\":{\"ips\"",
	    "second ADD", "\"own\":1", "\"prevResult\":{");
	assert_int_equal(cni_cached(&b.cni, "eth0", &res, &err), 0);
	assert_int_equal(res->n_ips, 1);
	assert_int_equal(cni_check(&b.cni, "eth0", &err), 0);
	LOG(&b, "first CHECK", "\"prevResult\"", "second CHECK");
	assert_int_equal(cni_check(&b.cni, "eth1", &err), -ENOENT);
	assert_int_equal(cni_add(&b.cni, b.net, &b.at, &res, &err), -EEXIST);
	assert_int_equal(cni_del(&b.cni, "eth0", &err), 0);
	LOG(&b, "second DEL", "\"prevResult\"", "first DEL c1 /proc/self/ns/net eth0");
	assert_int_equal(cni_del(&b.cni, "eth0", &err), 0);
	LOG(&b, "");
	bench_fini(&b);
}

static void failed_add_is_taken_back(void **state)
{
	struct cni_result *res = NULL;
	struct error err = { 0 };
	struct bench b;

	bench_init(&b);
	write_script(&b, "second", "[ $CNI_COMMAND != ADD ] || { echo '{\"code\": 11, \"msg\": \"no room\","
		     " \"details\": \"at all\"}'; exit 1; }");
	assert_int_equal(cni_add(&b.cni, b.net, &b.at, &res, &err), -EIO);
	assert_non_null(strstr(err.msg, "network 'net': plugin second: ADD: no room: at all (code 11)"));
	LOG(&b, "first ADD", "second ADD", "second DEL", "first DEL");
	assert_int_equal(cni_del_all(&b.cni, &err), 0);
	LOG(&b, "");
	bench_fini(&b);
}

static void failing_del_can_be_repeated(void **state)
{
	struct error err = { 0 };
	struct bench b;

	bench_init(&b);
	add(&b);
	write_script(&b, "second", "echo oh >&2; exit 3");
	assert_int_equal(cni_del_all(&b.cni, &err), -EIO);
	assert_non_null(strstr(err.msg, "plugin second: DEL: ended with code 3: oh"));
	LOG(&b, "second DEL", "first DEL");
	write_script(&b, "second", "");
	assert_int_equal(cni_del_all(&b.cni, &err), 0);
	LOG(&b, "second DEL", "first DEL");
	bench_fini(&b);
}

/* The runtime is killed in the middle of an ADD whose plugin goes on. */
static void killed_in_the_middle(void **state)
{
	struct error err = { 0 };
	struct bench b;
	pid_t pid;

	bench_init(&b);
	write_script(&b, "second", "[ $CNI_COMMAND != ADD ] || { sleep 0.5; echo late >>${0%/*}/log; }");
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		struct cni_result *res;

		_exit(cni_add(&b.cni, b.net, &b.at, &res, &err) ? 1 : 0);
	}
	for (int i = 0; i < 500 && i >= 0; i++) {
		auto_free char *log = NULL;

		usleep(10000);
		if (!fd_read_file(b.t.fd, "log", 65536, &log, NULL) && strstr(log, "second ADD"))
			break;
	}
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_int_equal(cni_del_all(&b.cni, &err), 0);
	/* Only after the ADD had come to its end. */
	LOG(&b, "second ADD", "late", "second DEL", "\"prevResult\":{", "first DEL");
	bench_fini(&b);
}

static void misbehaving_plugins(void **state)
{
	static const char *const cases[][2] = {
		{ "[ $CNI_COMMAND != ADD ] || echo nonsense", "printed no JSON" },
		{ "true", "gave no result" },
		{ "[ $CNI_COMMAND != ADD ] || echo '[]'", "gave no result" },
		{ "[ $CNI_COMMAND != ADD ] || echo '{\"ips\": [{\"address\": \"x\"}]}'", "ips[0].address" },
		{ "[ $CNI_COMMAND != ADD ] || kill -9 $$", "code 137" },
		{ "[ $CNI_COMMAND != ADD ] || head -c 2000000 /dev/zero", "more than" },
		{ "[ $CNI_COMMAND != ADD ] || sleep 100", "did not end" },
	};
	struct bench b;

	bench_init(&b);
	b.cni.timeout_ms = 1000;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct cni_result *res = NULL;
		struct error err = { 0 };

		write_script(&b, "second", cases[i][0]);
		assert_true(cni_add(&b.cni, b.net, &b.at, &res, &err) < 0);
		if (!strstr(err.msg, cases[i][1]))
			fail_msg("no '%s' in '%s'", cases[i][1], err.msg);
		LOG(&b, "second ADD", "second DEL", "first DEL");
	}
	bench_fini(&b);
}

static void missing_plugin(void **state)
{
	struct cni_result *res = NULL;
	struct error err = { 0 };
	struct bench b;

	bench_init(&b);
	add(&b);
	free(take_log(&b));
	assert_int_equal(unlinkat(b.t.fd, "second", 0), 0);
	b.at.ifname = "eth1";
	assert_int_equal(cni_add(&b.cni, b.net, &b.at, &res, &err), -ENOENT);
	assert_non_null(strstr(err.msg, "no plugin 'second' in"));
	LOG(&b, "");
	/* DEL fails for the missing one: the attachment is kept, and can be forgotten. */
	assert_int_equal(cni_del_all(&b.cni, &err), -ENOENT);
	LOG(&b, "first DEL");
	assert_int_equal(cni_forget_all(&b.cni, &err), 0);
	assert_int_equal(cni_del_all(&b.cni, &err), 0);
	bench_fini(&b);
}

static void several_interfaces_last_first(void **state)
{
	struct error err = { 0 };
	struct bench b;

	bench_init(&b);
	b.at.ifname = "eth2";
	add(&b);
	b.at.ifname = "eth10";
	add(&b);
	free(take_log(&b));
	assert_int_equal(cni_del_all(&b.cni, &err), 0);
	LOG(&b, "second DEL c1 /proc/self/ns/net eth10", "first DEL", "second DEL c1 /proc/self/ns/net eth2");
	bench_fini(&b);
}

static void bad_attachments(void **state)
{
	static const char *const names[] = { "", "..", "a/b", "a b", "sixteen-letters-" };
	struct cni_result *res = NULL;
	struct error err = { 0 };
	struct bench b;

	bench_init(&b);
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		b.at.ifname = names[i];
		assert_int_equal(cni_add(&b.cni, b.net, &b.at, &res, &err), -EINVAL);
	}
	b.at.ifname = "eth0";
	b.at.container = "../x";
	assert_int_equal(cni_add(&b.cni, b.net, &b.at, &res, &err), -EINVAL);
	b.at.container = "c1";
	b.at.netns = "relative";
	assert_int_equal(cni_add(&b.cni, b.net, &b.at, &res, &err), -EINVAL);
	LOG(&b, "");
	bench_fini(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(whole_life),
		cmocka_unit_test(failed_add_is_taken_back),
		cmocka_unit_test(failing_del_can_be_repeated),
		cmocka_unit_test(killed_in_the_middle),
		cmocka_unit_test(misbehaving_plugins),
		cmocka_unit_test(missing_plugin),
		cmocka_unit_test(several_interfaces_last_first),
		cmocka_unit_test(bad_attachments),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

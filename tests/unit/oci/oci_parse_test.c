#include "../test.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "oci/oci.h"

#define MINIMAL "'ociVersion':'1.1.0','root':{'path':'rootfs'}"

/* ' stands for ". */
static char *quoted(const char *s)
{
	char *t = strdup(s);

	assert_non_null(t);
	for (char *p = t; *p; p++)
		if (*p == '\'')
			*p = '"';
	return t;
}

static int parse(const char *json, Grpc__Spec **ret, struct error *err)
{
	auto_free char *text = quoted(json);

	error_clear(err);
	return oci_spec_parse(text, strlen(text), ret, err);
}

static void refuses(const char *json, int code, const char *text)
{
	struct error err = { 0 };
	Grpc__Spec *s = NULL;
	int r = parse(json, &s, &err);

	if (r != code || !strstr(err.msg, text))
		fail_msg("%s: %d \"%s\"", json, r, err.msg);
	assert_null(s);
}

static void errors_name_the_member(void **state)
{
	refuses("{" MINIMAL ",'process':{'args':['a',7],'cwd':'/'}}", -EINVAL,
		"config.json: process.args[1]: expected a string, found an integer");
	refuses("{" MINIMAL ",'process':{'args':'sh','cwd':'/'}}", -EINVAL,
		"process.args: expected an array, found a string");
	refuses("{" MINIMAL ",'linux':{'resources':{'memory':{'limit':'1g'}}}}", -EINVAL,
		"linux.resources.memory.limit: expected an integer, found a string");
	refuses("{" MINIMAL ",'linux':{'resources':{'memory':{'limit':1.5}}}}", -EINVAL,
		"linux.resources.memory.limit: expected an integer, found a real number");
	refuses("{" MINIMAL ",'linux':{'sysctl':{'a.b':1}}}", -EINVAL,
		"linux.sysctl.a.b: expected a string");
	refuses("{" MINIMAL ",'process':{'user':{'uid':-1},'args':['a'],'cwd':'/'}}", -ERANGE,
		"process.user.uid: number out of range");
	refuses("{" MINIMAL ",'process':{'user':{'uid':4294967296},'args':['a'],'cwd':'/'}}",
		-ERANGE, "process.user.uid");
	refuses("{" MINIMAL ",'linux':{'namespaces':[{'type':'sea'}]}}", -EINVAL,
		"linux.namespaces[0].type: unknown type \"sea\"");
	refuses("{" MINIMAL ",'linux':{'namespaces':[{'type':'pid'},{'type':'pid'}]}}", -EINVAL,
		"linux.namespaces[1].type");
	refuses("{" MINIMAL ",'hooks':{'prestart':[{'path':'x'}]}}", -EINVAL,
		"hooks.prestart[0].path: \"x\" is not an absolute path");
	refuses("{" MINIMAL ",'hooks':{'poststop':[{'path':'/x','timeout':-1}]}}", -EINVAL,
		"hooks.poststop[0].timeout");
	refuses("{" MINIMAL ",'linux':{'timeOffsets':{'monotonic':{'secs':1}}}}", -EINVAL,
		"linux.timeOffsets");
	refuses("{'root':{'path':'x'}}", -EINVAL, "ociVersion: missing");
	refuses("{'ociVersion':'2.0.0','root':{'path':'x'}}", -EINVAL, "ociVersion");
	refuses("{'ociVersion':'1.0.2'}", -EINVAL, "root.path");
	refuses("[]", -EINVAL, "expected an object");
	refuses("{", -EINVAL, "line 1");
	refuses("", -EINVAL, "line");
	refuses("{" MINIMAL ",'process':{'args':['a'],'cwd':'rel'}}", -EINVAL, "process.cwd");
	refuses("{" MINIMAL ",'process':{'args':[],'cwd':'/'}}", -EINVAL, "process.args");
	refuses("{" MINIMAL ",'process':{'args':['a'],'cwd':'/','rlimits':[{'type':'RLIMIT_CORE',"
		"'soft':2,'hard':1}]}}", -EINVAL, "process.rlimits[0]: soft is above hard");
	refuses("{" MINIMAL ",'ociVersion':'1.0.0'}", -EINVAL, "duplicate");
}

static void reads_every_kind(void **state)
{
	struct error err = { 0 };
	Grpc__Spec *s = NULL;

	if (parse("{" MINIMAL ",'unknown':{'x':[1]},'hostname':'h','process':{'terminal':true,"
		  "'consoleSize':{'height':24,'width':80},'user':{'uid':1,'gid':2,'umask':18,"
		  "'additionalGids':[3,4]},'args':['sh','-c','x'],'cwd':'/','env':['A=1'],"
		  "'rlimits':[{'type':'RLIMIT_NOFILE','soft':1024,'hard':18446744073709551615}],"
		  "'oomScoreAdj':-5,'ioPriority':{'class':'IOPRIO_CLASS_RT','priority':3},"
		  "'execCPUAffinity':{'initial':'0-1'}},'annotations':{'k':'v','l':''},"
		  "'mounts':[{'destination':'/p','options':['ro','rbind'],'uidMappings':[{"
		  "'containerID':0,'hostID':1,'size':2}],'gidMappings':[{'containerID':0,"
		  "'hostID':1,'size':2}]}],'linux':{'cgroupsPath':'/a','seccomp':{'defaultAction':"
		  "'SCMP_ACT_ERRNO','defaultErrnoRet':0,'syscalls':[{'names':['a'],'action':"
		  "'SCMP_ACT_ALLOW','errnoRet':9,'args':[{'index':0,'value':18446744073709551614,"
		  "'op':'SCMP_CMP_EQ'}]}]},'timeOffsets':{'boottime':{'secs':-3,'nanosecs':4}},"
		  "'namespaces':[{'type':'time'}],'resources':{'devices':[{'allow':false},"
		  "{'allow':true,'type':'c','major':1,'minor':0}],'unified':{'memory.high':'1'},"
		  "'rdma':{'mlx':{'hcaHandles':3}},'cpu':{'burst':7,'idle':1},'hugepageLimits':[{"
		  "'pageSize':'2MB','limit':4}],'pids':{'limit':0}}}}", &s, &err) < 0)
		fail_msg("%s", err.msg);
	assert_string_equal(s->version, "1.1.0");
	assert_true(s->process->terminal);
	assert_int_equal(s->process->user->umask_case, GRPC__USER__UMASK_UMASK);
	assert_int_equal(s->process->user->umask, 18);
	assert_int_equal(s->process->user->n_additionalgids, 2);
	assert_int_equal(s->process->user->additionalgids[1], 4);
	assert_true(s->process->rlimits[0]->hard == UINT64_MAX);
	assert_int_equal(s->process->oomscoreadj, -5);
	assert_string_equal(s->process->iopriority->class_, "IOPRIO_CLASS_RT");
	assert_string_equal(s->process->execcpuaffinity->initial, "0-1");
	assert_string_equal(oci_annotation_get(s, "k"), "v");
	assert_null(oci_annotation_get(s, "z"));
	assert_int_equal(s->mounts[0]->n_uidmappings, 1);
	assert_int_equal(s->linux->seccomp->default_errno_case,
			 GRPC__LINUX_SECCOMP__DEFAULT_ERRNO_DEFAULT_ERRNO_RET);
	assert_int_equal(s->linux->seccomp->syscalls[0]->errnoret, 9);
	assert_true(s->linux->seccomp->syscalls[0]->args[0]->value == UINT64_MAX - 1);
	assert_int_equal(s->linux->timeoffsets[0]->value->secs, -3);
	assert_int_equal(s->linux->resources->devices[0]->major, -1);
	assert_int_equal(s->linux->resources->devices[1]->minor, 0);
	assert_string_equal(s->linux->resources->unified[0]->key, "memory.high");
	assert_int_equal(s->linux->resources->rdma[0]->value->hcahandles, 3);
	assert_int_equal(s->linux->resources->cpu->burst, 7);
	assert_string_equal(s->linux->resources->hugepagelimits[0]->pagesize, "2MB");
	assert_non_null(oci_namespace_find(s, "time"));

	/* Written, read and written again, it stays the same; and through protobuf too. */
	auto_free char *a = NULL, *b = NULL, *c = NULL;
	Grpc__Spec *again = NULL, *copy;

	assert_int_equal(oci_spec_format(s, &a, &err), 0);
	assert_non_null(strstr(a, "\"hard\": 18446744073709551615"));
	assert_non_null(strstr(a, "\"ociVersion\": \"1.1.0\""));
	assert_int_equal(oci_spec_parse(a, strlen(a), &again, &err), 0);
	assert_int_equal(oci_spec_format(again, &b, &err), 0);
	assert_string_equal(a, b);
	copy = oci_spec_copy(s);
	assert_non_null(copy);
	assert_int_equal(oci_spec_format(copy, &c, &err), 0);
	assert_string_equal(a, c);
	oci_spec_free(copy);
	oci_spec_free(again);
	oci_spec_free(s);
}

static void big_numbers_in_strings_stay(void **state)
{
	struct error err = { 0 };
	Grpc__Spec *s = NULL;

	assert_int_equal(parse("{" MINIMAL ",'hostname':'18446744073709551615 \\\\'}", &s, &err), 0);
	assert_string_equal(s->hostname, "18446744073709551615 \\");
	oci_spec_free(s);
	refuses("{" MINIMAL ",'hostname':18446744073709551615}", -EINVAL, "hostname: expected a "
		"string, found an integer");
	refuses("{" MINIMAL ",'linux':{'resources':{'pids':{'limit':18446744073709551615}}}}",
		-ERANGE, "linux.resources.pids.limit");
	refuses("{" MINIMAL ",'linux':{'resources':{'cpu':{'shares':99999999999999999999}}}}",
		-ERANGE, "linux.resources.cpu.shares");
}

static void default_is_dockers(void **state)
{
	struct error err = { 0 };
	Grpc__Spec *s = NULL;

	assert_int_equal(oci_spec_default(true, false, &s, &err), 0);
	assert_int_equal(s->process->n_args, 0);
	assert_true(s->process->terminal);
	assert_string_equal(oci_env_get(s->process->env, s->process->n_env, "TERM"), "xterm");
	assert_int_equal(s->process->capabilities->n_bounding, 14);
	assert_int_equal(s->process->capabilities->n_ambient, 0);
	assert_non_null(oci_namespace_find(s, "cgroup"));
	assert_null(oci_namespace_find(s, "user"));
	assert_true(s->linux->n_maskedpaths > 5);
	oci_spec_free(s);

	s = NULL;
	assert_int_equal(oci_spec_default(false, true, &s, &err), 0);
	assert_int_equal(s->process->capabilities->n_bounding, 41);
	assert_int_equal(s->linux->n_maskedpaths, 0);
	assert_true(s->linux->resources->devices[0]->allow);
	oci_spec_free(s);
}

static void building(void **state)
{
	const char *const args[] = { "a", "b" }, *const opts[] = { "ro", "bind", NULL };
	struct error err = { 0 };
	Grpc__Spec *s = NULL;
	size_t mounts;

	assert_int_equal(oci_spec_default(false, false, &s, &err), 0);
	assert_int_equal(oci_strv_set(&s->process->args, &s->process->n_args, args, 2), 0);
	assert_int_equal(oci_strv_append(&s->process->args, &s->process->n_args, "c"), 0);
	assert_string_equal(s->process->args[2], "c");
	assert_int_equal(oci_env_set(&s->process->env, &s->process->n_env, "PATH=/x"), 0);
	assert_int_equal(s->process->n_env, 1);
	assert_string_equal(s->process->env[0], "PATH=/x");
	assert_int_equal(oci_str_set(&s->hostname, "n"), 0);
	assert_int_equal(oci_str_set(&s->hostname, "m"), 0);
	mounts = s->n_mounts;
	assert_int_equal(oci_mount_add(s, "/data", "bind", "/src", opts), 0);
	assert_int_equal(s->n_mounts, mounts + 1);
	assert_int_equal(s->mounts[mounts]->n_options, 2);
	assert_int_equal(oci_annotation_set(s, "a", "1"), 0);
	assert_int_equal(oci_annotation_set(s, "a", "2"), 0);
	assert_string_equal(oci_annotation_get(s, "a"), "2");
	assert_int_equal(oci_limits_set(s, 1 << 20, 50000, 100000, 10), 0);
	assert_int_equal(oci_limits_set(s, 0, 0, 0, 20), 0);
	assert_int_equal(s->linux->resources->memory->limit, 1 << 20);
	assert_int_equal(s->linux->resources->pids->limit, 20);
	assert_int_equal(oci_spec_check(s, &err), 0);
	oci_spec_free(s);
	oci_spec_free(NULL);
}

static void process_and_resources(void **state)
{
	auto_free char *p = quoted("{'args':['x'],'cwd':'/','user':{'uid':1,'gid':0}}");
	auto_free char *q = quoted("{'memory':{'limit':-1},'cpu':{'quota':-1}}"), *out = NULL;
	struct error err = { 0 };
	Grpc__Process *process = NULL, *copy;
	Grpc__LinuxResources *res = NULL;

	assert_int_equal(oci_process_parse(p, strlen(p), &process, &err), 0);
	assert_int_equal(oci_process_format(process, &out, &err), 0);
	assert_non_null(strstr(out, "\"gid\": 0"));
	copy = oci_process_copy(process);
	assert_non_null(copy);
	oci_process_free(copy);
	oci_process_free(process);
	free(take_ptr(&out));
	assert_int_equal(oci_resources_parse(q, strlen(q), &res, &err), 0);
	assert_int_equal(res->memory->limit, -1);
	assert_int_equal(oci_resources_format(res, &out, &err), 0);
	oci_resources_free(res);
	assert_int_equal(oci_process_parse("{}", 2, &process, &err), -EINVAL);
	assert_int_equal(oci_spec_load(-1, "/no/such", NULL, &err), -ENOENT);
	assert_string_equal(err.msg, "read \"/no/such\": No such file or directory");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(errors_name_the_member),
		cmocka_unit_test(reads_every_kind),
		cmocka_unit_test(big_numbers_in_strings_stay),
		cmocka_unit_test(default_is_dockers),
		cmocka_unit_test(building),
		cmocka_unit_test(process_and_resources),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

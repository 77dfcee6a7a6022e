#include "cli/runlimits.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/units.h"

enum { CPU_PERIOD_US = 100000 };

/* Less than this and a guest process cannot even be started. */
static const int64_t MEMORY_MIN = 6 << 20;

static const char *const capabilities[] = {
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID",
	"CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE",
	"CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK",
	"CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
	"CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE",
	"CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
	"CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
	"CAP_CHECKPOINT_RESTORE",
};

const char *limits_capability(size_t i)
{
	return i < ARRAY_LEN(capabilities) ? capabilities[i] : NULL;
}

bool limits_known_capability(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(capabilities); i++) {
		if (!strcmp(capabilities[i], name))
			return true;
	}
	return false;
}

static int size_option(const char *name, const char *text, int64_t *ret, struct error *err)
{
	int r = text ? units_parse_size(text, ret) : 0;

	if (r < 0)
		return error_set(err, -EINVAL, "--%s takes a size such as 256m, not '%s'", name, text);
	return 0;
}

static int integer_option(const char *name, const char *text, int64_t min, int64_t *ret,
			  struct error *err)
{
	if (!text)
		return 0;
	if (str_parse_i64(text, ret) < 0 || *ret < min)
		return error_set(err, -EINVAL, "--%s takes a number of at least %lld, not '%s'", name,
				 (long long)min, text);
	return 0;
}

int limits_parse(const struct run_options *o, struct limits *ret, struct error *err)
{
	struct limits l = { 0 };
	int64_t shares = 0, score = 0;

	if (size_option("memory", o->memory, &l.memory, err) < 0 ||
	    size_option("shm-size", o->shm_size, &l.shm, err) < 0)
		return -EINVAL;
	if (o->memory && l.memory < MEMORY_MIN)
		return error_set(err, -EINVAL, "--memory '%s' is less than the minimum of 6m", o->memory);
	if (o->memory_swap && !strcmp(o->memory_swap, "-1"))
		l.swap = -1;
	else if (size_option("memory-swap", o->memory_swap, &l.swap, err) < 0)
		return -EINVAL;
	if (l.swap > 0 && l.swap < l.memory)
		return error_set(err, -EINVAL, "--memory-swap is less than --memory");
	if (o->cpus && (units_parse_milli(o->cpus, &l.milli_cpu) < 0 || l.milli_cpu < 10))
		return error_set(err, -EINVAL, "--cpus takes a number of at least 0.01, not '%s'",
				 o->cpus);
	if (integer_option("pids-limit", o->pids_limit, -1, &l.pids, err) < 0 ||
	    integer_option("cpu-shares", o->cpu_shares, 0, &shares, err) < 0 ||
	    integer_option("oom-score-adj", o->oom_score_adj, -1000, &score, err) < 0)
		return -EINVAL;
	l.shares = (uint64_t)shares;
	*ret = l;
	return 0;
}

/* "nofile=1024:2048": soft and hard; one number is both; -1 is no limit. */
static int add_ulimit(Grpc__Process *p, const char *word, struct error *err)
{
	static const char *const names[] = { "as", "core", "cpu", "data", "fsize", "locks", "memlock",
					     "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
					     "rttime", "sigpending", "stack" };
	auto_free char *copy = strdup(word);
	auto_free char *type = NULL;
	char *value = copy ? strchr(copy, '=') : NULL;
	Grpc__POSIXRlimit *limit, **v;
	int64_t soft, hard;
	char *colon;
	bool known = false;

	if (!copy)
		return error_set(err, -ENOMEM, "out of memory");
	if (value)
		*value++ = '\0';
	for (size_t i = 0; i < ARRAY_LEN(names); i++)
		known = known || !strcmp(copy, names[i]);
	if (!known || !value)
		return error_set(err, -EINVAL, "--ulimit takes NAME=SOFT[:HARD], not '%s'", word);
	colon = strchr(value, ':');
	if (colon)
		*colon++ = '\0';
	if (str_parse_i64(value, &soft) < 0 || soft < -1 ||
	    str_parse_i64(colon ? colon : value, &hard) < 0 || hard < -1)
		return error_set(err, -EINVAL, "--ulimit takes NAME=SOFT[:HARD], not '%s'", word);
	if (hard != -1 && (soft == -1 || soft > hard))
		return error_set(err, -EINVAL, "--ulimit '%s': the soft limit exceeds the hard one", word);
	type = cli_format("RLIMIT_%s", copy);
	v = reallocarray(p->rlimits, p->n_rlimits + 1, sizeof(*v));
	limit = v ? malloc(sizeof(*limit)) : NULL;
	if (v)
		p->rlimits = v;
	if (!type || !limit) {
		free(limit);
		return error_set(err, -ENOMEM, "out of memory");
	}
	for (char *c = type; *c; c++)
		*c = (char)toupper((unsigned char)*c);
	grpc__posixrlimit__init(limit);
	limit->type = take_ptr(&type);
	limit->soft = (uint64_t)soft;
	limit->hard = (uint64_t)hard;
	p->rlimits[p->n_rlimits++] = limit;
	return 0;
}

static int add_sysctl(Grpc__Spec *spec, const char *word, struct error *err)
{
	const char *eq = strchr(word, '=');
	Grpc__Linux__SysctlEntry *e, **v;

	if (!eq || eq == word)
		return error_set(err, -EINVAL, "--sysctl takes NAME=VALUE, not '%s'", word);
	v = reallocarray(spec->linux->sysctl, spec->linux->n_sysctl + 1, sizeof(*v));
	if (!v)
		return error_set(err, -ENOMEM, "out of memory");
	spec->linux->sysctl = v;
	e = malloc(sizeof(*e));
	if (!e)
		return error_set(err, -ENOMEM, "out of memory");
	grpc__linux__sysctl_entry__init(e);
	e->key = strndup(word, (size_t)(eq - word));
	e->value = strdup(eq + 1);
	spec->linux->sysctl[spec->linux->n_sysctl++] = e;
	return e->key && e->value ? 0 : error_set(err, -ENOMEM, "out of memory");
}

static int set_cpu(Grpc__LinuxResources *res, const struct run_options *o, const struct limits *l,
		   struct error *err)
{
	if (!res->cpu) {
		res->cpu = malloc(sizeof(*res->cpu));
		if (!res->cpu)
			return error_set(err, -ENOMEM, "out of memory");
		grpc__linux_cpu__init(res->cpu);
	}
	if (l->shares)
		res->cpu->shares = l->shares;
	if (o->cpuset_cpus && oci_str_set(&res->cpu->cpus, o->cpuset_cpus) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	return 0;
}

static int set_shm(Grpc__Spec *spec, int64_t bytes)
{
	for (size_t i = 0; i < spec->n_mounts; i++) {
		Grpc__Mount *m = spec->mounts[i];

		for (size_t k = 0; strcmp(m->destination, "/dev/shm") == 0 && k < m->n_options; k++) {
			char *text;

			if (strncmp(m->options[k], "size=", 5))
				continue;
			text = cli_format("size=%lld", (long long)bytes);
			if (!text)
				return -ENOMEM;
			free(m->options[k]);
			m->options[k] = text;
		}
	}
	return 0;
}

int limits_apply(Grpc__Spec *spec, const struct run_options *o, struct error *err)
{
	struct limits l;
	int64_t score = 0;
	int r = limits_parse(o, &l, err);

	if (r < 0)
		return r;
	if (oci_limits_set(spec, l.memory, l.milli_cpu * CPU_PERIOD_US / 1000,
			   l.milli_cpu ? CPU_PERIOD_US : 0, l.pids) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	if (l.swap && spec->linux->resources && spec->linux->resources->memory)
		spec->linux->resources->memory->swap = l.swap;
	if ((l.shares || o->cpuset_cpus) && spec->linux->resources) {
		r = set_cpu(spec->linux->resources, o, &l, err);
		if (r < 0)
			return r;
	}
	if (l.shm && set_shm(spec, l.shm) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	if (o->oom_score_adj && !str_parse_i64(o->oom_score_adj, &score))
		spec->process->oomscoreadj = score;
	for (size_t i = 0; i < o->ulimit.n && r == 0; i++)
		r = add_ulimit(spec->process, o->ulimit.v[i], err);
	for (size_t i = 0; i < o->sysctl.n && r == 0; i++)
		r = add_sysctl(spec, o->sysctl.v[i], err);
	return r;
}

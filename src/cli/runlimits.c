#include "cli/runlimits.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

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

/* ---- mounts ---- */

struct bind {
	char *source, *destination;
	bool read_only;
};

static void bind_fini(struct bind *b)
{
	free(b->source);
	free(b->destination);
}

/* "/host:/container[:ro|rw]" */
static int parse_volume(const char *word, struct bind *ret, struct error *err)
{
	auto_free char *copy = strdup(word);
	char *rest = copy, *source, *destination, *options;
	struct bind b = { 0 };

	if (!copy)
		return error_set(err, -ENOMEM, "out of memory");
	source = strsep(&rest, ":");
	destination = strsep(&rest, ":");
	options = rest;
	if (!destination || *source != '/')
		return error_set(err, -ENOTSUP,
				 "-v '%s': named and anonymous volumes are not supported yet; give an "
				 "absolute path as in /host/dir:/dir", word);
	if (*destination != '/')
		return error_set(err, -EINVAL, "-v '%s': '%s' is not an absolute path", word,
				 destination);
	for (char *o; (o = strsep(&options, ","));) {
		if (!strcmp(o, "ro"))
			b.read_only = true;
		else if (strcmp(o, "rw") && strcmp(o, "z") && strcmp(o, "Z"))
			return error_set(err, -EINVAL, "-v '%s': unknown option '%s'", word, o);
	}
	b.source = strdup(source);
	b.destination = strdup(destination);
	if (!b.source || !b.destination) {
		bind_fini(&b);
		return error_set(err, -ENOMEM, "out of memory");
	}
	*ret = b;
	return 0;
}

/* "type=bind,src=/host,dst=/dir[,readonly]"; type=tmpfs has no source. */
static int parse_mount(const char *word, struct bind *ret, bool *ret_tmpfs, struct error *err)
{
	auto_free char *copy = strdup(word);
	char *rest = copy;
	struct bind b = { 0 };
	bool tmpfs = false, is_bind = false;

	if (!copy)
		return error_set(err, -ENOMEM, "out of memory");
	for (char *key; (key = strsep(&rest, ","));) {
		char *value = strchr(key, '=');

		if (value)
			*value++ = '\0';
		if (!strcmp(key, "type") && value) {
			tmpfs = !strcmp(value, "tmpfs");
			is_bind = !strcmp(value, "bind");
		} else if ((!strcmp(key, "src") || !strcmp(key, "source")) && value) {
			free(b.source);
			b.source = strdup(value);
		} else if ((!strcmp(key, "dst") || !strcmp(key, "destination") ||
			    !strcmp(key, "target")) && value) {
			free(b.destination);
			b.destination = strdup(value);
		} else if (!strcmp(key, "ro") || !strcmp(key, "readonly")) {
			b.read_only = !value || strcmp(value, "false");
		} else {
			bind_fini(&b);
			return error_set(err, -EINVAL, "--mount '%s': unknown key '%s'", word, key);
		}
	}
	if ((!tmpfs && !is_bind) || !b.destination || *b.destination != '/' ||
	    (is_bind && (!b.source || *b.source != '/'))) {
		bind_fini(&b);
		return error_set(err, -EINVAL, "--mount takes type=bind,src=/DIR,dst=/DIR or "
				 "type=tmpfs,dst=/DIR, not '%s'", word);
	}
	*ret = b;
	*ret_tmpfs = tmpfs;
	return 0;
}

static int check_source(const struct bind *b, struct error *err)
{
	struct stat st;

	if (stat(b->source, &st) < 0)
		return error_errno(err, -errno, "cannot mount '%s'", b->source);
	return 0;
}

int limits_check_mounts(const struct run_options *o, struct error *err)
{
	struct bind b;
	bool tmpfs;
	int r;

	for (size_t i = 0; i < o->volume.n; i++) {
		r = parse_volume(o->volume.v[i], &b, err);
		if (r < 0)
			return r;
		r = check_source(&b, err);
		bind_fini(&b);
		if (r < 0)
			return r;
	}
	for (size_t i = 0; i < o->mount.n; i++) {
		r = parse_mount(o->mount.v[i], &b, &tmpfs, err);
		if (r < 0)
			return r;
		r = tmpfs ? 0 : check_source(&b, err);
		bind_fini(&b);
		if (r < 0)
			return r;
	}
	for (size_t i = 0; i < o->tmpfs.n; i++) {
		if (*o->tmpfs.v[i] != '/')
			return error_set(err, -EINVAL, "--tmpfs takes /DIR[:OPTIONS], not '%s'",
					 o->tmpfs.v[i]);
	}
	return 0;
}

static int add_bind(Grpc__Spec *spec, const struct bind *b, struct error *err)
{
	const char *options[] = { "rbind", "rprivate", b->read_only ? "ro" : "rw", NULL };

	if (oci_mount_add(spec, b->destination, "bind", b->source, options) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	return 0;
}

/* "/dir:size=64m,mode=1777" */
static int add_tmpfs(Grpc__Spec *spec, const char *word, struct error *err)
{
	auto_free char *copy = strdup(word);
	const char *options[24] = { "nosuid", "nodev", "noexec" };
	size_t n = 3;
	char *rest = copy, *destination;

	if (!copy)
		return error_set(err, -ENOMEM, "out of memory");
	destination = strsep(&rest, ":");
	for (char *o; (o = strsep(&rest, ","));) {
		if (n + 1 >= ARRAY_LEN(options))
			return error_set(err, -EINVAL, "--tmpfs '%s': too many options", word);
		if (*o)
			options[n++] = o;
	}
	if (oci_mount_add(spec, destination, "tmpfs", "tmpfs", options) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	return 0;
}

int limits_apply_mounts(Grpc__Spec *spec, const struct run_options *o, struct error *err)
{
	struct bind b;
	bool tmpfs;
	int r = 0;

	for (size_t i = 0; i < o->volume.n && r == 0; i++) {
		r = parse_volume(o->volume.v[i], &b, err);
		if (r < 0)
			return r;
		r = add_bind(spec, &b, err);
		bind_fini(&b);
	}
	for (size_t i = 0; i < o->mount.n && r == 0; i++) {
		r = parse_mount(o->mount.v[i], &b, &tmpfs, err);
		if (r < 0)
			return r;
		r = tmpfs ? add_tmpfs(spec, b.destination, err) : add_bind(spec, &b, err);
		bind_fini(&b);
	}
	for (size_t i = 0; i < o->tmpfs.n && r == 0; i++)
		r = add_tmpfs(spec, o->tmpfs.v[i], err);
	return r;
}

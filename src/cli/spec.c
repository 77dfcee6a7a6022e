#include "cli/spec.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/mounts.h"
#include "cli/netopts.h"
#include "cli/restart.h"
#include "cli/runlimits.h"
#include "cli/units.h"

enum { ENV_FILE_MAX = 4 << 20 };

static int oom(struct error *err)
{
	return error_set(err, -ENOMEM, "out of memory");
}

/* ---- environment ---- */

static int env_word(Grpc__Process *p, const char *word, const char *origin, struct error *err)
{
	auto_free char *assignment = NULL;
	const char *value;

	if (!*word || *word == '=')
		return error_set(err, -EINVAL, "%s: '%s' has no variable name", origin, word);
	if (strchr(word, '='))
		return oci_env_set(&p->env, &p->n_env, word) < 0 ? oom(err) : 0;
	value = getenv(word);
	if (!value)
		return 0;
	assignment = cli_format("%s=%s", word, value);
	if (!assignment || oci_env_set(&p->env, &p->n_env, assignment) < 0)
		return oom(err);
	return 0;
}

static int env_from_file(Grpc__Process *p, const char *path, struct error *err)
{
	auto_free char *text = NULL;
	char *line, *rest;
	int r = fd_read_file(AT_FDCWD, path, ENV_FILE_MAX, &text, NULL);

	if (r < 0)
		return error_errno(err, r, "--env-file '%s'", path);
	for (rest = text; (line = strsep(&rest, "\n"));) {
		line += strspn(line, " \t\r");
		line[strcspn(line, "\r")] = '\0';
		if (!*line || *line == '#')
			continue;
		r = env_word(p, line, path, err);
		if (r < 0)
			return r;
	}
	return 0;
}

int spec_apply_env(Grpc__Process *process, const struct strlist *env,
		   const struct strlist *env_file, struct error *err)
{
	int r;

	for (size_t i = 0; i < env_file->n; i++) {
		r = env_from_file(process, env_file->v[i], err);
		if (r < 0)
			return r;
	}
	for (size_t i = 0; i < env->n; i++) {
		r = env_word(process, env->v[i], "-e", err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int build_env(Grpc__Process *p, const struct run_options *o, const struct image *image,
		     const char *hostname, struct error *err)
{
	auto_free char *host = cli_format("HOSTNAME=%s", hostname);

	for (char **e = image->config.env; *e; e++) {
		if (**e && **e != '=' && oci_env_set(&p->env, &p->n_env, *e) < 0)
			return oom(err);
	}
	if (!host || oci_env_set(&p->env, &p->n_env, host) < 0)
		return oom(err);
	if (o->tty && !oci_env_get(p->env, p->n_env, "TERM") &&
	    oci_env_set(&p->env, &p->n_env, "TERM=xterm") < 0)
		return oom(err);
	return spec_apply_env(p, &o->env, &o->env_file, err);
}

/* ---- user ---- */

int spec_apply_user(Grpc__Process *process, const struct image *image, const char *user,
		    const struct strlist *group_add, struct error *err)
{
	struct image_user u = { 0 };
	auto_free char *home = NULL;
	uint32_t *groups = NULL;
	size_t extra = group_add ? group_add->n : 0;
	int r = image_resolve_user(image, user, &u, err);

	if (r < 0)
		return r;
	if (u.n_groups + extra) {
		groups = calloc(u.n_groups + extra, sizeof(*groups));
		if (!groups) {
			image_user_fini(&u);
			return oom(err);
		}
		if (u.n_groups)
			memcpy(groups, u.groups, u.n_groups * sizeof(*groups));
	}
	process->user->uid = u.uid;
	process->user->gid = u.gid;
	free(process->user->additionalgids);
	process->user->additionalgids = groups;
	process->user->n_additionalgids = u.n_groups;
	home = cli_format("HOME=%s", u.home && *u.home ? u.home : "/");
	image_user_fini(&u);
	for (size_t i = 0; i < extra; i++) {
		uint32_t gid;

		if (str_parse_u32(group_add->v[i], &gid) < 0)
			return error_set(err, -EINVAL, "--group-add takes a number, not '%s'",
					 group_add->v[i]);
		groups[process->user->n_additionalgids++] = gid;
	}
	if (oci_env_get(process->env, process->n_env, "HOME"))
		return 0;
	return home && !oci_env_set(&process->env, &process->n_env, home) ? 0 : oom(err);
}

/* ---- command ---- */

static int append_all(Grpc__Process *p, char *const *words, int n, struct error *err)
{
	for (int i = 0; n < 0 ? words[i] != NULL : i < n; i++) {
		if (oci_strv_append(&p->args, &p->n_args, words[i]) < 0)
			return oom(err);
	}
	return 0;
}

static int build_args(Grpc__Process *p, const struct run_options *o, const struct image *image,
		      int argc, char *const *argv, struct error *err)
{
	const struct image_config *c = &image->config;
	int r;

	if (o->entrypoint) {
		char *const one[] = { (char *)o->entrypoint, NULL };

		r = *o->entrypoint ? append_all(p, one, -1, err) : 0;
	} else {
		r = append_all(p, c->entrypoint, -1, err);
	}
	if (r < 0)
		return r;
	if (argc)
		r = append_all(p, argv, argc, err);
	else if (!o->entrypoint)
		r = append_all(p, c->cmd, -1, err);
	if (r < 0)
		return r;
	if (!p->n_args)
		return error_set(err, -EINVAL, "no command: image '%s' names none and none was given",
				 image->familiar);
	return 0;
}

/* ---- capabilities ---- */

static int cap_name(const char *word, char out[64], struct error *err)
{
	int n = snprintf(out, 64, "%s%s", strncasecmp(word, "CAP_", 4) ? "CAP_" : "", word);

	if (n < 5 || n >= 64)
		return error_set(err, -EINVAL, "'%s' is not a capability", word);
	for (char *p = out; *p; p++)
		*p = (char)toupper((unsigned char)*p);
	if (!limits_known_capability(out))
		return error_set(err, -EINVAL, "'%s' is not a capability", word);
	return 0;
}

static void strv_drop(char **v, size_t *n, const char *word)
{
	for (size_t i = 0; i < *n; i++) {
		if (strcmp(v[i], word))
			continue;
		free(v[i]);
		memmove(&v[i], &v[i + 1], (*n - i - 1) * sizeof(*v));
		(*n)--;
		return;
	}
}

static int strv_put(char ***v, size_t *n, const char *word)
{
	for (size_t i = 0; i < *n; i++) {
		if (!strcmp((*v)[i], word))
			return 0;
	}
	return oci_strv_append(v, n, word);
}

static int caps_edit(Grpc__LinuxCapabilities *c, const char *name, bool add)
{
	if (!add) {
		strv_drop(c->bounding, &c->n_bounding, name);
		strv_drop(c->effective, &c->n_effective, name);
		strv_drop(c->permitted, &c->n_permitted, name);
		strv_drop(c->inheritable, &c->n_inheritable, name);
		strv_drop(c->ambient, &c->n_ambient, name);
		return 0;
	}
	if (strv_put(&c->bounding, &c->n_bounding, name) < 0 ||
	    strv_put(&c->effective, &c->n_effective, name) < 0 ||
	    strv_put(&c->permitted, &c->n_permitted, name) < 0)
		return -ENOMEM;
	return 0;
}

/* "ALL" stands for every capability; it is applied before the others, as Docker does. */
static int caps_apply(Grpc__LinuxCapabilities *c, const struct strlist *words, bool add, bool all,
		      struct error *err)
{
	for (size_t i = 0; i < words->n; i++) {
		bool is_all = !strcasecmp(words->v[i], "all");
		char name[64];

		if (is_all != all)
			continue;
		if (is_all) {
			for (size_t k = 0; limits_capability(k); k++) {
				if (caps_edit(c, limits_capability(k), add) < 0)
					return oom(err);
			}
			continue;
		}
		if (cap_name(words->v[i], name, err) < 0)
			return -EINVAL;
		if (caps_edit(c, name, add) < 0)
			return oom(err);
	}
	return 0;
}

static int build_caps(Grpc__Process *p, const struct run_options *o, struct error *err)
{
	int r = 0;

	if (!p->capabilities)
		return 0;
	for (int pass = 0; pass < 2 && r == 0; pass++) {
		r = caps_apply(p->capabilities, &o->cap_drop, false, pass == 0, err);
		if (r == 0)
			r = caps_apply(p->capabilities, &o->cap_add, true, pass == 0, err);
	}
	return r;
}

/* The word's value behind "NAME=" or "NAME:", "" for the name alone; NULL: another word. */
static const char *security_value(const char *word, const char *name)
{
	size_t n = strlen(name);

	if (strncmp(word, name, n) != 0)
		return NULL;
	return word[n] == '=' || word[n] == ':' ? word + n + 1 : word[n] ? NULL : "";
}

static int unmask_system_paths(Grpc__Linux *l)
{
	return oci_strv_set(&l->maskedpaths, &l->n_maskedpaths, NULL, 0) < 0 ||
	       oci_strv_set(&l->readonlypaths, &l->n_readonlypaths, NULL, 0) < 0 ? -ENOMEM : 0;
}

/* @ret_profile: of system calls; "" the default one, "unconfined" none, otherwise a file. */
static int security_words(Grpc__Spec *spec, const struct strlist *words, const char **ret_profile,
			  struct error *err)
{
	for (size_t i = 0; i < words->n; i++) {
		const char *w = words->v[i], *v;

		if ((v = security_value(w, "no-new-privileges")) &&
		    (!*v || !strcmp(v, "true") || !strcmp(v, "false"))) {
			if (spec)
				spec->process->nonewprivileges = strcmp(v, "false") != 0;
		} else if ((v = security_value(w, "seccomp")) && *v) {
			*ret_profile = strcmp(v, "builtin") ? v : "";
		} else if ((v = security_value(w, "systempaths")) && !strcmp(v, "unconfined")) {
			if (spec && unmask_system_paths(spec->linux) < 0)
				return oom(err);
		} else if (((v = security_value(w, "apparmor")) && !strcmp(v, "unconfined")) ||
			   ((v = security_value(w, "label")) && !strcmp(v, "disable"))) {
			/* The guest's kernel has neither. */
		} else {
			return error_set(err, -ENOTSUP, "--security-opt '%s' is not supported; there are "
					 "seccomp=FILE, seccomp=unconfined, no-new-privileges and "
					 "systempaths=unconfined", w);
		}
	}
	return 0;
}

static int build_security(Grpc__Spec *spec, const struct run_options *o, struct error *err)
{
	const char *profile = o->privileged ? "unconfined" : "";
	int r = security_words(spec, &o->security_opt, &profile, err);

	if (r < 0 || !strcmp(profile, "unconfined"))
		return r;
	r = oci_seccomp_set(spec, *profile ? profile : NULL, err);
	return r < 0 ? error_prefix(err, r, "--security-opt seccomp") : 0;
}

/* ---- the whole ---- */

int spec_check_options(const struct run_options *o, struct error *err)
{
	const char *profile = "";
	struct limits ignored;
	struct netopts net;
	int sig;
	int64_t v;
	int r;

	if (o->detach && o->rm && o->attach.n)
		return error_set(err, -EINVAL, "-d and -a exclude each other");
	if (o->restart && restart_check(o->restart, err) < 0)
		return err->code;
	if (o->restart && o->rm && strcmp(o->restart, "no"))
		return error_set(err, -EINVAL, "--restart and --rm exclude each other");
	if (o->stop_signal && units_parse_signal(o->stop_signal, &sig) < 0)
		return error_set(err, -EINVAL, "--stop-signal: there is no signal '%s'", o->stop_signal);
	if (o->stop_timeout && units_parse_duration(o->stop_timeout, &v) < 0)
		return error_set(err, -EINVAL, "--stop-timeout takes seconds, not '%s'", o->stop_timeout);
	if (o->boot_timeout && units_parse_duration(o->boot_timeout, &v) < 0)
		return error_set(err, -EINVAL, "--boot-timeout takes a duration such as 30s, not '%s'",
				 o->boot_timeout);
	if (o->pull && strcmp(o->pull, "missing") && strcmp(o->pull, "always") &&
	    strcmp(o->pull, "never"))
		return error_set(err, -EINVAL, "--pull takes missing, always or never, not '%s'", o->pull);
	if (o->workdir && *o->workdir != '/')
		return error_set(err, -EINVAL, "the working directory '%s' is not an absolute path",
				 o->workdir);
	r = security_words(NULL, &o->security_opt, &profile, err);
	if (r < 0)
		return r;
	r = netopts_parse(o, NULL, &net, err);
	if (r < 0)
		return r;
	netopts_fini(&net);
	r = limits_parse(o, &ignored, err);
	if (r < 0)
		return r;
	return mounts_check(o, err);
}

static int build_annotations(Grpc__Spec *spec, const struct run_options *o, struct error *err)
{
	for (size_t i = 0; i < o->annotation.n; i++) {
		auto_free char *key = strdup(o->annotation.v[i]);
		char *eq = key ? strchr(key, '=') : NULL;

		if (!key)
			return oom(err);
		if (!eq || eq == key)
			return error_set(err, -EINVAL, "--annotation takes KEY=VALUE, not '%s'", key);
		*eq = '\0';
		if (oci_annotation_set(spec, key, eq + 1) < 0)
			return oom(err);
	}
	if (o->init && oci_annotation_set(spec, "io.caisson.init", "true") < 0)
		return oom(err);
	if (o->kernel) {
		auto_free char *path = realpath(o->kernel, NULL);

		if (!path)
			return error_errno(err, -errno, "--kernel '%s'", o->kernel);
		if (oci_annotation_set(spec, "io.caisson.kernel", path) < 0)
			return oom(err);
	}
	if (o->boot_timeout && oci_annotation_set(spec, "io.caisson.boot-timeout", o->boot_timeout) < 0)
		return oom(err);
	return 0;
}

static int build_process(Grpc__Spec *spec, const struct run_options *o, const struct image *image,
			 int argc, char *const *argv, const char *hostname, struct error *err)
{
	Grpc__Process *p = spec->process;
	const char *cwd = o->workdir ? o->workdir : image->config.workdir;
	int r = build_args(p, o, image, argc, argv, err);

	if (r == 0)
		r = build_env(p, o, image, hostname, err);
	if (r == 0)
		r = spec_apply_user(p, image, o->user, &o->group_add, err);
	if (r == 0)
		r = build_caps(p, o, err);
	if (r < 0)
		return r;
	if (cwd && *cwd && oci_str_set(&p->cwd, cwd) < 0)
		return oom(err);
	return 0;
}

int spec_build(const struct run_options *o, const struct image *image, int argc,
	       char *const *argv, const char *id, struct run_plan *ret, struct error *err)
{
	struct run_plan plan = { .stop_signal = 15, .stop_timeout_s = -1 };
	char short_id[13];
	const char *hostname = o->hostname;
	const char *stop = o->stop_signal ? o->stop_signal : image->config.stop_signal;
	int64_t ns;
	int r = oci_spec_default(o->tty, o->privileged, &plan.spec, err);

	if (r < 0)
		return r;
	if (!hostname) {
		snprintf(short_id, sizeof(short_id), "%.12s", id);
		hostname = short_id;
	}
	if (stop && *stop && units_parse_signal(stop, &plan.stop_signal) < 0)
		cli_warn("the image's stop signal '%s' is unknown; SIGTERM is used", stop);
	if (o->stop_timeout && !units_parse_duration(o->stop_timeout, &ns))
		plan.stop_timeout_s = (int)(ns / 1000000000);
	r = oci_str_set(&plan.spec->hostname, hostname) < 0 ? oom(err) : 0;
	if (r == 0 && o->domainname && oci_str_set(&plan.spec->domainname, o->domainname) < 0)
		r = oom(err);
	if (r == 0)
		r = build_process(plan.spec, o, image, argc, argv, hostname, err);
	if (r == 0)
		r = build_security(plan.spec, o, err);
	if (r == 0)
		r = limits_apply(plan.spec, o, err);
	if (r == 0)
		r = build_annotations(plan.spec, o, err);
	plan.spec->root->readonly = o->read_only;
	if (r < 0) {
		run_plan_fini(&plan);
		return r;
	}
	*ret = plan;
	return 0;
}

void run_plan_fini(struct run_plan *plan)
{
	oci_spec_free(plan->spec);
	plan->spec = NULL;
}

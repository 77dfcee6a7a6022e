/* From the words of `caisson run` and an image's configuration to an OCI runtime configuration. */
#pragma once

#include <stdbool.h>

#include "cli/args.h"
#include "image/image.h"
#include "oci/oci.h"

struct run_options {
	bool interactive, tty, detach, rm, read_only, privileged, quiet, no_healthcheck, init;
	bool publish_all;
	const char *name, *workdir, *user, *cpus, *memory, *hostname, *domainname;
	const char *ip, *ip6, *mac;
	const char *entrypoint, *kernel, *stop_signal, *stop_timeout, *pids_limit, *shm_size;
	const char *detach_keys, *pull, *platform, *cidfile, *boot_timeout, *memory_swap, *cpu_shares;
	const char *cpuset_cpus, *oom_score_adj, *umask, *restart, *image_volume;
	struct strlist env, env_file, volume, mount, cap_add, cap_drop, security_opt, ulimit, tmpfs;
	struct strlist label, annotation, sysctl, group_add, attach, device, storage_opt;
	struct strlist network, network_alias, publish, dns, dns_search, dns_option, add_host;
};

/* What a container gets, on top of what the spec says. */
struct run_plan {
	Grpc__Spec *spec;
	int stop_signal;
	int stop_timeout_s; /* -1: the default */
};

/*
 * Checks what can be checked without the image, so that a mistake costs no pull. -EINVAL and
 * -ENOTSUP with a text that names the option.
 */
int spec_check_options(const struct run_options *o, struct error *err);

/* @argv: the words after the image. @id: the container's. */
int spec_build(const struct run_options *o, const struct image *image, int argc,
	       char *const *argv, const char *id, struct run_plan *ret, struct error *err);
void run_plan_fini(struct run_plan *plan);

/* What exec shares with run: NAME or NAME=VALUE words, then the files of them. */
int spec_apply_env(Grpc__Process *process, const struct strlist *env,
		   const struct strlist *env_file, struct error *err);

/* Resolves @user (NULL: the image's) into the process, with HOME unless the environment has it. */
int spec_apply_user(Grpc__Process *process, const struct image *image, const char *user,
		    const struct strlist *group_add, struct error *err);

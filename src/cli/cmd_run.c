#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/fsutil.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/connect.h"
#include "cli/joined.h"
#include "cli/launch.h"
#include "cli/lifecycle.h"
#include "cli/mounts.h"
#include "cli/progress.h"
#include "cli/spec.h"
#include "cli/units.h"
#include "config/config.h"
#include "sandbox/sandbox.h"

#define AT(field) offsetof(struct run_options, field)

#define MAKE_OPTIONS                                                                              \
	{ 'i', "interactive", OPT_BOOL, AT(interactive), NULL,                                    \
	  "Pass standard input to the container", NULL },                                         \
	{ 't', "tty", OPT_BOOL, AT(tty), NULL, "Give the container a terminal", NULL },           \
	{ 0, "rm", OPT_BOOL, AT(rm), NULL, "Remove the container when it has ended", NULL },      \
	{ 0, "name", OPT_STRING, AT(name), "NAME", "Name the container", NULL },                  \
	{ 'e', "env", OPT_LIST, AT(env), "NAME[=VALUE]",                                          \
	  "Set an environment variable; without a value, pass on this shell's", NULL },           \
	{ 0, "env-file", OPT_LIST, AT(env_file), "FILE",                                          \
	  "Set the environment variables listed in a file, one a line", "file" },                 \
	{ 'v', "volume", OPT_LIST, AT(volume), "[/HOST|VOLUME:]/DIR[:ro]",                        \
	  "Mount a directory or file of the host, or a volume, in the container", "dir" },        \
	{ 0, "image-volume", OPT_STRING, AT(image_volume), "HOW",                                 \
	  "The image's VOLUMEs: anonymous volumes (the default), tmpfs, or ignore", NULL },       \
	{ 0, "mount", OPT_LIST, AT(mount), "type=TYPE,src=SOURCE,dst=/DIR[,readonly]",            \
	  "Mount something in the container; the types are bind, volume, tmpfs and block",        \
	  NULL },                                                                                 \
	{ 0, "tmpfs", OPT_LIST, AT(tmpfs), "/DIR[:OPTIONS]", "Mount a tmpfs", NULL },             \
	{ 'w', "workdir", OPT_STRING, AT(workdir), "/DIR", "Working directory of the command",    \
	  NULL },                                                                                 \
	{ 'u', "user", OPT_STRING, AT(user), "USER[:GROUP]",                                      \
	  "User (and group) of the command, by name or number", NULL },                           \
	{ 0, "group-add", OPT_LIST, AT(group_add), "GID", "Add a supplementary group", NULL },    \
	{ 0, "cpus", OPT_STRING, AT(cpus), "N", "CPUs the container may use, as in 1.5", NULL },  \
	{ 'm', "memory", OPT_STRING, AT(memory), "SIZE",                                          \
	  "Memory the container may use, as in 256m; its VM is sized after it", NULL },           \
	{ 0, "memory-swap", OPT_STRING, AT(memory_swap), "SIZE", "Memory and swap; -1: no limit", \
	  NULL },                                                                                 \
	{ 0, "cpu-shares", OPT_STRING, AT(cpu_shares), "N", "Relative weight of the CPU", NULL }, \
	{ 0, "cpuset-cpus", OPT_STRING, AT(cpuset_cpus), "LIST",                                  \
	  "CPUs of the VM the container may run on", NULL },                                      \
	{ 0, "pids-limit", OPT_STRING, AT(pids_limit), "N", "Number of processes; -1: no limit",  \
	  NULL },                                                                                 \
	{ 0, "shm-size", OPT_STRING, AT(shm_size), "SIZE", "Size of /dev/shm", NULL },            \
	{ 0, "ulimit", OPT_LIST, AT(ulimit), "NAME=SOFT[:HARD]",                                  \
	  "Resource limit, as in nofile=1024:2048", NULL },                                       \
	{ 0, "sysctl", OPT_LIST, AT(sysctl), "NAME=VALUE", "Kernel setting in the container",     \
	  NULL },                                                                                 \
	{ 0, "oom-score-adj", OPT_STRING, AT(oom_score_adj), "N",                                 \
	  "How readily the guest's kernel ends the container when memory is short", NULL },       \
	{ 0, "read-only", OPT_BOOL, AT(read_only), NULL,                                          \
	  "Mount the container's root file system read-only", NULL },                             \
	{ 0, "network", OPT_LIST, AT(network), "NETWORK",                                         \
	  "Network to join, several times for several; none, user, or container:NAME to share one's", \
	  "network" },                                                                            \
	{ 0, "network-alias", OPT_LIST, AT(network_alias), "NAME",                                \
	  "Another name that its networks' containers know it by", NULL },                        \
	{ 0, "ip", OPT_STRING, AT(ip), "ADDRESS", "IPv4 address on the (first) network", NULL },  \
	{ 0, "ip6", OPT_STRING, AT(ip6), "ADDRESS", "IPv6 address on the (first) network", NULL },\
	{ 0, "mac-address", OPT_STRING, AT(mac), "ADDRESS",                                       \
	  "Hardware address on the (first) network", NULL },                                      \
	{ 'p', "publish", OPT_LIST, AT(publish), "[ADDRESS:][HOSTPORT:]PORT[/PROTOCOL]",          \
	  "Connect a port of the host to one of the container; ports may be ranges as in 80-90",  \
	  NULL },                                                                                 \
	{ 'P', "publish-all", OPT_BOOL, AT(publish_all), NULL,                                    \
	  "Connect free ports of the host to all that the image exposes", NULL },                 \
	{ 0, "dns", OPT_LIST, AT(dns), "ADDRESS", "Name server", NULL },                          \
	{ 0, "dns-search", OPT_LIST, AT(dns_search), "DOMAIN",                                    \
	  "Domain in which short names are looked for; . for none", NULL },                       \
	{ 0, "dns-option", OPT_LIST, AT(dns_option), "OPTION", "Option of resolv.conf", NULL },   \
	{ 0, "add-host", OPT_LIST, AT(add_host), "NAME:ADDRESS",                                  \
	  "Line of /etc/hosts; the address host-gateway is the network's gateway", NULL },        \
	{ 0, "hostname", OPT_STRING, AT(hostname), "NAME", "Host name in the container", NULL },  \
	{ 0, "domainname", OPT_STRING, AT(domainname), "NAME", "NIS domain name in the container",\
	  NULL },                                                                                 \
	{ 0, "entrypoint", OPT_STRING, AT(entrypoint), "PROGRAM",                                 \
	  "Run this instead of the image's entry point", NULL },                                  \
	{ 0, "cap-add", OPT_LIST, AT(cap_add), "CAPABILITY", "Add a capability, or ALL", NULL },  \
	{ 0, "cap-drop", OPT_LIST, AT(cap_drop), "CAPABILITY", "Drop a capability, or ALL",       \
	  NULL },                                                                                 \
	{ 0, "privileged", OPT_BOOL, AT(privileged), NULL,                                        \
	  "All capabilities and devices of the VM, nothing hidden; the host's stay out of reach", \
	  NULL },                                                                                 \
	{ 0, "security-opt", OPT_LIST, AT(security_opt), "OPTION",                                \
	  "seccomp=FILE (a profile in Docker's form), seccomp=unconfined, no-new-privileges or "   \
	  "systempaths=unconfined", NULL },                                                       \
	{ 'l', "label", OPT_LIST, AT(label), "KEY[=VALUE]", "Note something with the container",  \
	  NULL },                                                                                 \
	{ 0, "annotation", OPT_LIST, AT(annotation), "KEY=VALUE",                                 \
	  "Annotate the OCI configuration, as in io.caisson.vcpus=2", NULL },                     \
	{ 0, "kernel", OPT_STRING, AT(kernel), "FILE", "Boot this guest kernel", "file" },        \
	{ 0, "boot-timeout", OPT_STRING, AT(boot_timeout), "TIME",                                \
	  "How long the guest may take to come up, as in 30s", NULL },                            \
	{ 0, "stop-signal", OPT_STRING, AT(stop_signal), "SIGNAL",                                \
	  "What 'caisson stop' sends first", "signal" },                                          \
	{ 0, "stop-timeout", OPT_STRING, AT(stop_timeout), "SECONDS",                             \
	  "How long 'caisson stop' waits before it kills", NULL },                                \
	{ 0, "pull", OPT_STRING, AT(pull), "WHEN", "Pull the image: missing, always or never",    \
	  NULL },                                                                                 \
	{ 0, "platform", OPT_STRING, AT(platform), "OS/ARCH",                                     \
	  "Choose this platform's image", NULL },                                                 \
	{ 'q', "quiet", OPT_BOOL, AT(quiet), NULL, "No progress of the pull", NULL },             \
	{ 0, "cidfile", OPT_STRING, AT(cidfile), "FILE", "Write the container's id to a file",    \
	  "file" },                                                                               \
	{ 0, "device", OPT_LIST, AT(device), "/HOST[:/DEV][:rwm]",                                \
	  "Give the container a block device of the host, or a character device that the "        \
	  "guest has too", "file" },                                                              \
	{ 0, "storage-opt", OPT_LIST, AT(storage_opt), "size=SIZE",                               \
	  "Room for what the container writes to its root file system", NULL },                   \
	{ 0, "gpus", OPT_UNSUPPORTED, 0, "GPUS",                                                  \
	  "devices of the host cannot be given to a VM yet", NULL },                              \
	{ 0, "volumes-from", OPT_UNSUPPORTED, 0, "CONTAINER",                                     \
	  "containers do not share volumes yet", NULL },                                          \
	{ 0, "restart", OPT_STRING, AT(restart), "POLICY",                                        \
	  "Start it again when it ends in the background, while the host runs: no, always, "      \
	  "unless-stopped or on-failure[:N]", NULL },                                             \
	{ 0, "init", OPT_BOOL, AT(init), NULL,                                                     \
	  "Run an init that starts the command, hands signals on and reaps processes", NULL }

static const struct opt run_opts[] = {
	MAKE_OPTIONS,
	{ 'd', "detach", OPT_BOOL, AT(detach), NULL, "Leave it in the background and print its id",
	  NULL },
	{ 0, "detach-keys", OPT_STRING, AT(detach_keys), "KEYS",
	  "Keys that leave the container running, as in ctrl-p,ctrl-q", NULL },
};

static const struct opt create_opts[] = { MAKE_OPTIONS };

struct making {
	struct run_options *o;
	struct container *c;
	int owner, guardian;
};

static int policy_of(const struct run_options *o)
{
	if (!o->pull)
		return IMAGE_PULL_MISSING;
	return !strcmp(o->pull, "always") ? IMAGE_PULL_ALWAYS :
	       !strcmp(o->pull, "never")  ? IMAGE_PULL_NEVER :
					    IMAGE_PULL_MISSING;
}

static int prepare_image(const struct run_options *o, const char *ref, struct image **ret,
			 struct error *err)
{
	struct image_store *store = NULL;
	struct progress progress;
	struct image_options io = { .platform = o->platform, .policy = policy_of(o),
				    .progress = progress_show, .progress_ctx = &progress };
	int r;

	progress_init(&progress, o->quiet || !isatty(STDERR_FILENO));
	progress.cancelled = launch_signalled();
	r = image_store_open(NULL, &store, err);
	if (r == 0)
		r = image_prepare(store, ref, &io, ret, err);
	progress_end(&progress);
	image_store_close(store);
	return r;
}

static void note_labels(struct container *c, const struct strlist *labels)
{
	json_t *o = json_object();

	for (size_t i = 0; i < labels->n; i++) {
		const char *eq = strchr(labels->v[i], '=');
		size_t len = eq ? (size_t)(eq - labels->v[i]) : strlen(labels->v[i]);

		(void)json_object_setn_new(o, labels->v[i], len, json_string(eq ? eq + 1 : ""));
	}
	(void)json_object_set_new(c->rec, "Labels", o);
}

static void note_plan(struct making *m, const struct image *image, const struct run_plan *plan)
{
	struct container *c = m->c;
	auto_free char *log = container_path(c, "log.json");
	json_t *command = json_array();

	for (size_t i = 0; i < plan->spec->process->n_args; i++)
		(void)json_array_append_new(command, json_string(plan->spec->process->args[i]));
	(void)json_object_set_new(c->rec, "Command", command);
	note_labels(c, &m->o->label);
	container_set_str(c, "Image", image->familiar);
	container_set_str(c, "ImageId", image->id);
	container_set_str(c, "Rootfs", image->rootfs);
	container_set_str(c, "Passwd", image->passwd);
	container_set_str(c, "Group", image->group);
	container_set_bool(c, "Tty", m->o->tty);
	container_set_bool(c, "OpenStdin", m->o->interactive);
	container_set_bool(c, "AutoRemove", m->o->rm);
	container_set_str(c, "RestartPolicy", m->o->restart ? m->o->restart : "");
	container_set_int(c, "StopSignal", plan->stop_signal);
	container_set_int(c, "StopTimeout", plan->stop_timeout_s);
	container_set_str(c, "LogPath", log ? log : "");
}

static int write_bundle(const struct container *c, const struct run_plan *plan, struct error *err)
{
	auto_free char *json = NULL;
	auto_free char *path = container_path(c, "config.json");
	auto_free char *rootfs = container_path(c, "rootfs");
	auto_close int fd = -1;
	int r = oci_spec_format(plan->spec, &json, err);

	if (r < 0)
		return r;
	if (!path || !rootfs)
		return error_set(err, -ENOMEM, "out of memory");
	if (mkdir(rootfs, 0700) < 0)
		return error_errno(err, -errno, "make '%s'", rootfs);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_errno(err, -errno, "make '%s'", path);
	r = fd_write_full(fd, json, strlen(json));
	return r < 0 ? error_errno(err, r, "write '%s'", path) : 0;
}

static int write_cidfile(const struct making *m, struct error *err)
{
	auto_close int fd = -1;

	if (!m->o->cidfile)
		return 0;
	fd = open(m->o->cidfile, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	if (fd < 0)
		return error_errno(err, -errno, "--cidfile '%s'", m->o->cidfile);
	return fd_write_full(fd, m->c->id, CONTAINER_ID_LEN) < 0 ?
		       error_errno(err, -EIO, "--cidfile '%s'", m->o->cidfile) :
		       0;
}

static int check_config(struct error *err)
{
	struct config cfg;
	int r = config_init(&cfg);

	if (r < 0)
		return error_errno(err, r, "configuration");
	r = config_load(&cfg, NULL, err);
	config_fini(&cfg);
	return r;
}

static int plan_network(struct making *m, const struct image *image, Grpc__Spec *spec,
			struct error *err)
{
	struct netopts net;
	int r = netopts_parse(m->o, image->config.exposed_ports, &net, err);

	if (r < 0)
		return r;
	/* Free ports are chosen now; they are looked at again when the container starts. */
	r = ports_settle(&net.ports, err);
	if (r == 0)
		r = connect_plan(m->c, &net, m->o, spec, err);
	netopts_fini(&net);
	return r;
}

/* What it writes to its root file system is kept until it is removed. */
static int plan_scratch(struct making *m, Grpc__Spec *spec, struct error *err)
{
	auto_free char *root = cli_root_dir();
	auto_free char *dir = root ? cli_format("%s/containers", root) : NULL;
	auto_free char *path = dir ? cli_format("%s/%s.ext4", dir, m->c->id) : NULL;
	int r;

	if (m->o->rm || joined_is(m->c))
		return 0;
	container_set_bool(m->c, "Restartable", true);
	if (spec->root->readonly)
		return 0;
	r = path ? fsutil_mkdir_p(dir, 0700) : -ENOMEM;
	if (r < 0)
		return error_errno(err, r, "make '%s'", dir ? dir : "");
	container_set_str(m->c, "Scratch", path);
	return oci_annotation_set(spec, SANDBOX_SCRATCH, path) < 0 ?
		       error_set(err, -ENOMEM, "out of memory") : 0;
}

static int build(struct making *m, int argc, char **argv, struct error *err)
{
	struct image *image = NULL;
	struct run_options o = *m->o;
	struct run_plan plan = { 0 };
	int r = prepare_image(m->o, argv[0], &image, err);

	if (r < 0)
		return r;
	r = joined_plan(m->o, m->c, err);
	if (joined_hostname(m->c))
		o.hostname = joined_hostname(m->c);
	if (r == 0)
		r = spec_build(&o, image, argc - 1, argv + 1, m->c->id, &plan, err);
	if (r == 0)
		r = mounts_resolve(m->o, image->config.volumes, m->c, err);
	if (r == 0)
		r = mounts_apply(plan.spec, m->o, json_object_get(m->c->rec, "Mounts"), err);
	if (r == 0)
		r = plan_network(m, image, plan.spec, err);
	if (r == 0)
		r = plan_scratch(m, plan.spec, err);
	if (r == 0)
		r = write_bundle(m->c, &plan, err);
	if (r == 0) {
		note_plan(m, image, &plan);
		r = container_save(m->c, err);
	}
	run_plan_fini(&plan);
	image_free(image);
	return r == 0 ? write_cidfile(m, err) : r;
}

/* Record, guardian, image, bundle. On failure it is reported, nothing is left, and 125 or so returned. */
static int make(struct making *m, int argc, char **argv)
{
	struct error err = { 0 };
	int code, r;

	m->owner = m->guardian = -1;
	launch_catch_signals();
	r = spec_check_options(m->o, &err);
	if (r == 0)
		r = check_config(&err);
	if (r == 0)
		r = container_new(m->o->name, &m->c, &m->owner, &err);
	if (r < 0)
		return cli_fail_err(EXIT_CAISSON, &err);
	m->guardian = lifecycle_guardian(m->c, m->owner);
	r = m->guardian < 0 ? error_errno(&err, m->guardian, "fork") : build(m, argc, argv, &err);
	if (r == 0)
		return 0;
	code = *launch_signalled() ? 128 + *launch_signalled() : cli_fail_err(EXIT_CAISSON, &err);
	if (container_forget(m->c, &err) == 0)
		lifecycle_guardian_release(&m->guardian);
	container_free(m->c);
	m->c = NULL;
	return code;
}

static void made(struct making *m)
{
	if (m->owner >= 0)
		close(m->owner);
	container_free(m->c);
}

static int do_run(void *options, int argc, char **argv)
{
	struct run_options *o = options;
	struct making m = { .o = o };
	int code;

	if (o->tty && o->interactive && !o->detach && !isatty(STDIN_FILENO))
		return cli_fail(EXIT_CAISSON, "standard input is not a terminal: leave out -t");
	code = make(&m, argc, argv);
	if (code)
		return code;
	struct launch l = { .c = m.c, .owner = take_fd(&m.owner), .guardian = take_fd(&m.guardian),
			    .attach = !o->detach, .interactive = o->interactive,
			    .detach_keys = o->detach_keys };
	code = launch_run(&l);
	if (l.owner >= 0)
		close(l.owner);
	if (code == 0 && o->detach)
		puts(m.c->id);
	made(&m);
	return code;
}

static int do_create(void *options, int argc, char **argv)
{
	struct run_options *o = options;
	struct making m = { .o = o };
	struct error err = { 0 };
	int code = make(&m, argc, argv);

	if (code)
		return code;
	container_set_str(m.c, "State", "created");
	if (container_save(m.c, &err) < 0) {
		code = cli_fail_err(EXIT_CAISSON, &err);
		(void)!container_forget(m.c, &err);
	} else {
		puts(m.c->id);
	}
	lifecycle_guardian_release(&m.guardian);
	made(&m);
	return code;
}

struct start_options {
	bool attach, interactive;
	const char *detach_keys;
};

static const struct opt start_opts[] = {
	{ 'a', "attach", OPT_BOOL, offsetof(struct start_options, attach), NULL,
	  "Stay in the foreground", NULL },
	{ 'i', "interactive", OPT_BOOL, offsetof(struct start_options, interactive), NULL,
	  "Pass standard input to the container", NULL },
	{ 0, "detach-keys", OPT_STRING, offsetof(struct start_options, detach_keys), "KEYS",
	  "Keys that leave the container running, as in ctrl-p,ctrl-q", NULL },
};

static int do_start(void *options, int argc, char **argv)
{
	struct start_options *o = options;
	struct container *c;
	struct error err = { 0 };
	int code, r = container_find(argv[0], &c, &err);

	if (r < 0)
		return cli_fail_err(1, &err);
	launch_catch_signals();
	struct launch l = { .attach = o->attach || o->interactive, .interactive = o->interactive,
			    .detach_keys = o->detach_keys };
	r = lifecycle_refresh(c, &err);
	if (r == 0 && !strcmp(container_str(c, "State"), "running")) {
		/* As Docker: there is nothing to do. */
		puts(container_str(c, "Name"));
		container_free(c);
		return 0;
	}
	if (r == 0)
		r = launch_again(c, &l, &err);
	code = r < 0 ? cli_fail_err(1, &err) : launch_run(&l);
	if (!code && !l.attach)
		puts(container_str(c, "Name"));
	container_free(c);
	return code;
}

#define IMAGE_TEXT                                                                             \
	"IMAGE is a name in a registry (nginx, ghcr.io/owner/name:tag, name@sha256:...), or "  \
	"oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:NAME]. It is pulled or "\
	"imported when the store does not have it. "

const struct command cmd_run = {
	.name = "run",
	.synopsis = "IMAGE [COMMAND [ARGUMENT...]]",
	.summary = "Run a command in a new container, in a VM of its own",
	.description = IMAGE_TEXT
		"\n\nWithout -d the container's output appears here, signals are passed on to it, and "
		"the exit status is the command's. A third SIGINT or SIGTERM kills it. With -t, the "
		"keys of --detach-keys leave it running.",
	.exit_status = "The command's; 125 when caisson failed, 126 when the command could not be "
		       "executed, 127 when it was not found, 128+n when signal n ended it",
	.examples = "caisson run --rm docker.io/library/busybox uname -r\n"
		    "caisson run -it --rm debian bash\n"
		    "caisson run -d --name web -m 256m nginx\n"
		    "caisson run --rm oci:./image:latest true",
	OPTS(run_opts),
	.opts_size = sizeof(struct run_options),
	.min_args = 1,
	.max_args = -1,
	.options_first = true,
	.complete = "image",
	.run = do_run,
};

const struct command cmd_create = {
	.name = "create",
	.synopsis = "IMAGE [COMMAND [ARGUMENT...]]",
	.summary = "Make a container without starting it",
	.description = IMAGE_TEXT "The container's id is printed; 'caisson start' starts it.",
	OPTS(create_opts),
	.opts_size = sizeof(struct run_options),
	.min_args = 1,
	.max_args = -1,
	.options_first = true,
	.complete = "image",
	.run = do_create,
};

const struct command cmd_start = {
	.name = "start",
	.synopsis = "CONTAINER",
	.summary = "Start a container that was made by create, or has exited",
	.description = "One that has exited runs in a new VM, with what it wrote to its root file system.",
	OPTS(start_opts),
	.opts_size = sizeof(struct start_options),
	.min_args = 1,
	.max_args = 1,
	.complete = "container",
	.run = do_start,
};

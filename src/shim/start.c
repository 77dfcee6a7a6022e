/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The "start" command: finds or makes the shim of a container and prints its address. containerd
 * takes stdout and stderr together, so nothing but the address may be printed on success.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"
#include "oci/oci.h"
#include "sandbox/record.h"
#include "shim/bootstrap.h"
#include "shim/shim.h"

#define STDIN_MAX ((size_t)1 << 20)

/* What this container is to its pod. */
struct grouping {
	bool is_pod;
	const char *member_of; /* id of the sandbox that exists already; NULL: a new one */
};

static struct grouping grouping_of(const Grpc__Spec *spec, const char *ns, const char *id)
{
	static const struct {
		const char *type, *sandbox, *is_sandbox, *is_container;
	} kinds[] = {
		{ "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id", "sandbox",
		  "container" },
		{ "io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID", "sandbox",
		  "container" },
		{ "io.kubernetes.docker.type", "io.kubernetes.sandbox.id", "podsandbox",
		  "container" },
	};
	struct grouping g = { 0 };

	/* Only the command line may say so: a pod's user could name a stranger's sandbox. */
	if (spec && str_eq(ns, SANDBOX_OWN_NAMESPACE))
		g.member_of = oci_annotation_get(spec, SANDBOX_JOIN);
	if (g.member_of)
		return g;
	for (size_t i = 0; spec && i < ARRAY_LEN(kinds); i++) {
		const char *type = oci_annotation_get(spec, kinds[i].type);
		const char *sandbox = oci_annotation_get(spec, kinds[i].sandbox);

		if (str_eq(type, kinds[i].is_sandbox)) {
			g.is_pod = true;
			return g;
		}
		if (str_eq(type, kinds[i].is_container) && sandbox && !str_eq(sandbox, id)) {
			g.is_pod = true;
			g.member_of = sandbox;
			return g;
		}
	}
	return g;
}

static int write_bundle_file(const char *bundle, const char *name, const char *text)
{
	auto_close int dfd = open(bundle, O_DIRECTORY | O_RDONLY | O_CLOEXEC);

	return dfd < 0 ? -errno : fsutil_write_volatile(dfd, name, text, strlen(text), 0600);
}

/*
 * A container that is to have the network namespace of a running one, as with Docker's "--network
 * container:NAME", runs in its machine. Gives the sandbox's id, or NULL.
 */
static int find_joined(const struct shim_flags *f, const Grpc__Spec *spec, char **ret_id,
		       struct error *err)
{
	const Grpc__LinuxNamespace *net = oci_namespace_find(spec, "network");
	auto_free char *ns = NULL, *id = NULL, *dir = NULL;
	int r = net && !str_empty(net->path) ? sandbox_of_netns(net->path, &ns, &id, err) : 0;

	if (r < 0 || !id || !str_eq(ns, f->ns) || str_eq(id, f->id))
		return r;
	r = sandbox_dir_path(ns, id, &dir, err);
	if (r == 0 && write_bundle_file(dir, SHIM_JOINED, f->id) < 0)
		r = error_set(err, -ESRCH, "sandbox '%s', whose network it was to have, has ended", id);
	if (r == 0)
		*ret_id = take_ptr(&id);
	return r;
}

static int read_bootstrap(const struct shim_flags *f, struct bootstrap *ret, struct error *err)
{
	auto_free uint8_t *data = NULL;
	struct stat st;
	ssize_t n;

	*ret = (struct bootstrap){ 0 };
	if (fstat(STDIN_FILENO, &st) < 0 || S_ISCHR(st.st_mode))
		return 0;
	data = malloc(STDIN_MAX);
	n = data ? fd_read_full(STDIN_FILENO, data, STDIN_MAX) : -ENOMEM;
	if (n < 0)
		return error_errno(err, (int)n, "read standard input");
	return bootstrap_parse(data, (size_t)n, f->id, f->ns, ret, err);
}

static int print_address(const char *address, const struct bootstrap *boot)
{
	auto_free uint8_t *data = NULL;
	size_t len;
	int r = bootstrap_answer(boot, address, &data, &len);

	return r < 0 ? r : fd_write_full(STDOUT_FILENO, data, len);
}

/* A socket path of its own for each shim: short whatever the ids' lengths. */
static int choose_socket(const char *dir, char **ret_path, struct error *err)
{
	uint8_t random[16];
	char hex[2 * sizeof(random) + 1];
	int r;

	if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random))
		return error_errno(err, -errno, "get random bytes");
	str_hex(hex, random, sizeof(random));
	r = fsutil_mkdir_p(dir, 0711);
	if (r < 0)
		return error_errno(err, r, "make '%s'", dir);
	*ret_path = str_printf("%s/%s", dir, hex);
	return *ret_path ? 0 : error_set(err, -ENOMEM, "out of memory");
}

static int socket_dir(const struct shim_flags *f, const struct bootstrap *boot, char **ret)
{
	if (boot->socket_dir)
		*ret = strdup(boot->socket_dir);
	else if (!str_empty(f->address))
		*ret = strdup("/run/containerd/s");
	else
		*ret = str_printf("%s/s", sandbox_run_root());
	return *ret ? 0 : -ENOMEM;
}

/*
 * Where containerd looks for a shim's address. A bundle that caisson-runtime is given may belong to another
 * shim, which keeps its own there.
 */
static void leave_address(const struct shim_flags *f, const char *bundle, const char *address)
{
	if (!str_eq(f->ns, SANDBOX_OCI_NAMESPACE))
		(void)!write_bundle_file(bundle, "address", address);
}

/* What is to be run when the container has ended waits in the bundle, see task_event(). */
static int keep_exit_command(const char *bundle, struct error *err)
{
	const char *command = getenv("CAISSON_EXIT_COMMAND");
	int r = str_empty(command) ? 0 : write_bundle_file(bundle, SHIM_EXIT_COMMAND, command);

	(void)unsetenv("CAISSON_EXIT_COMMAND");
	return r < 0 ? error_errno(err, r, "keep CAISSON_EXIT_COMMAND in '%s'", bundle) : 0;
}

/* The address of the pod that the container joins. */
static int join_pod(const struct shim_flags *f, const char *bundle, const char *pod,
		    const struct bootstrap *boot, struct error *err)
{
	auto_free char *dir = NULL, *address = NULL;
	struct sandbox_record rec = { 0 };
	int r;

	r = sandbox_dir_path(f->ns, pod, &dir, err);
	if (r == 0)
		r = sandbox_record_read(dir, &rec, err);
	if (r < 0)
		return error_prefix(err, r, "pod '%s'", pod);
	address = rec.socket ? str_printf("unix://%s", rec.socket) : NULL;
	sandbox_record_fini(&rec);
	if (!address)
		return error_set(err, -ENOENT, "pod '%s' has no shim", pod);
	leave_address(f, bundle, address);
	(void)!write_bundle_file(bundle, SHIM_JOINED, pod);
	r = print_address(address, boot);
	return r < 0 ? error_errno(err, r, "print the address") : 0;
}

int shim_annotate_config(struct config *cfg, const char *ns, const char *name, const char *value,
			 bool *denied, struct error *err)
{
	static char *everything[] = { (char *)"*" };
	struct config all = *cfg;
	int r;

	*denied = false;
	if (!str_eq(ns, SANDBOX_OWN_NAMESPACE))
		return config_annotate(cfg, name, value, denied, err);
	/* The command line's user owns the host: nothing is out of bounds. */
	all.annotations = everything;
	all.n_annotations = 1;
	r = config_annotate(&all, name, value, denied, err);
	all.annotations = cfg->annotations;
	all.n_annotations = cfg->n_annotations;
	*cfg = all;
	return r;
}

int shim_remember_annotation(char ***list, const char *name, const char *value)
{
	int r;

	if (!str_has_prefix(name, "io.caisson.") && !str_has_prefix(name, "io.katacontainers."))
		return 0;
	r = strv_append(list, name);
	return r < 0 ? r : strv_append(list, value);
}

int shim_load_config(struct config *cfg, const char *path, const char *body, struct error *err)
{
	int r = config_init(cfg);

	if (r < 0)
		return error_set(err, r, "out of memory");
	r = config_load(cfg, path, err);
	if (r == 0 && body)
		r = config_load_text(cfg, "the runtime's options", body, strlen(body), err);
	if (r < 0)
		config_fini(cfg);
	return r;
}

/* Settings: files first, then containerd's options, then what the pod may override. */
static int load_config(struct config *cfg, const struct shim_flags *f, const struct bootstrap *boot,
		       const Grpc__Spec *spec, char ***ret_annotations, struct error *err)
{
	bool denied;
	int r;

	r = shim_load_config(cfg, boot->config_path, boot->config_body, err);
	if (r < 0)
		return r;
	for (size_t i = 0; r == 0 && spec && i < spec->n_annotations; i++) {
		const Grpc__Spec__AnnotationsEntry *a = spec->annotations[i];

		r = shim_annotate_config(cfg, f->ns, a->key, a->value, &denied, err);
		if (r == 0 && shim_remember_annotation(ret_annotations, a->key, a->value) < 0)
			r = error_set(err, -ENOMEM, "out of memory");
	}
	if (r < 0)
		config_fini(cfg);
	return r;
}

static int scratch_path(const struct config *cfg, const char *dir, char **ret)
{
	const char *name = strrchr(dir, '/') + 1;

	*ret = cfg->scratch_dir ? str_printf("%s/%s", cfg->scratch_dir, name) :
				  str_printf("%s/scratch/%s", sandbox_state_root(), name);
	return *ret ? 0 : -ENOMEM;
}

/* Waits for the daemon's word: nothing, or what went wrong. */
static int await_daemon(int fd, pid_t pid, struct error *err)
{
	char message[ERROR_MSG_MAX];
	ssize_t n = fd_read_full(fd, message, sizeof(message) - 1);

	if (n == 1 && message[0] == '\n')
		return 0;
	(void)!child_wait(pid, &(int){ 0 });
	if (n <= 0)
		return error_set(err, -EIO, "the shim's daemon ended at once");
	message[n] = '\0';
	message[strcspn(message, "\n")] = '\0';
	return error_set(err, -EIO, "%s", message);
}

static int launch(const struct shim_flags *f, struct shim_setup *setup, struct error *err)
{
	char pid_text[16];
	int report[2];
	pid_t pid;
	int r;

	if (pipe2(report, O_CLOEXEC) < 0)
		return error_errno(err, -errno, "make a pipe");
	pid = fork();
	if (pid < 0) {
		r = error_errno(err, -errno, "fork");
		(void)close(report[0]);
		(void)close(report[1]);
		return r;
	}
	if (pid == 0) {
		(void)close(report[0]);
		_exit(shim_daemon(setup, report[1]));
	}
	(void)close(report[1]);
	r = await_daemon(report[0], pid, err);
	(void)close(report[0]);
	if (r < 0)
		return r;
	(void)snprintf(pid_text, sizeof(pid_text), "%d", (int)pid);
	(void)!write_bundle_file(setup->bundle, "shim.pid", pid_text);
	leave_address(f, setup->bundle, setup->address);
	return 0;
}

static int start_new(const struct shim_flags *f, const char *bundle, const Grpc__Spec *spec,
		     const struct bootstrap *boot, bool is_pod, struct error *err)
{
	auto_free char *dir = NULL, *sockets = NULL, *socket = NULL, *address = NULL;
	auto_strv char **annotations = NULL;
	auto_free char *scratch = NULL;
	struct shim_setup setup = { .flags = f, .boot = boot, .bundle = bundle, .is_pod = is_pod,
				    .spec = spec };
	struct config cfg = { 0 };
	auto_close int fd = -1;
	int r;

	r = load_config(&cfg, f, boot, spec, &annotations, err);
	if (r < 0)
		return r;
	r = sandbox_dir_path(f->ns, f->id, &dir, err);
	if (r == 0 && (socket_dir(f, boot, &sockets) < 0 || scratch_path(&cfg, dir, &scratch) < 0))
		r = error_set(err, -ENOMEM, "out of memory");
	if (r == 0)
		r = choose_socket(sockets, &socket, err);
	if (r == 0) {
		address = str_printf("unix://%s", socket);
		r = address ? 0 : error_set(err, -ENOMEM, "out of memory");
	}
	if (r == 0)
		r = sandbox_claim(dir, f->ns, f->id, bundle, socket, scratch, err);
	if (r < 0) {
		config_fini(&cfg);
		return r;
	}

	fd = fd_unix_listen(socket, 64);
	if (fd >= 0)
		(void)chmod(socket, 0600);
	if (fd < 0) {
		r = error_errno(err, fd, "listen on '%s'", socket);
	} else {
		setup.dir = dir;
		setup.address = address;
		setup.listen_fd = fd;
		setup.config = &cfg;
		setup.annotations = annotations;
		setup.events_address = boot->events ? boot->events : getenv("TTRPC_ADDRESS");
		r = launch(f, &setup, err);
	}
	config_fini(&cfg);
	if (r == 0 && print_address(address, boot) < 0)
		r = error_set(err, -EIO, "print the address");
	if (r < 0)
		(void)!sandbox_reclaim(dir, NULL);
	return r;
}

/* None for a pod of containerd's Sandbox service, which tells later what it is. */
static int load_spec(const struct shim_flags *f, const char *bundle, Grpc__Spec **ret,
		     struct error *err)
{
	auto_free char *path = str_join_path(bundle, "config.json");

	if (!path)
		return error_set(err, -ENOMEM, "out of memory");
	if (access(path, F_OK) == 0)
		return oci_spec_load(AT_FDCWD, path, ret, err);
	if (str_eq(f->ns, SANDBOX_OWN_NAMESPACE))
		return error_set(err, -ENOENT, "no config.json in '%s'", bundle);
	return 0;
}

int shim_start(const struct shim_flags *f)
{
	auto_free char *bundle = NULL, *joined = NULL;
	struct bootstrap boot = { 0 };
	struct error err = { 0 };
	struct grouping g = { .is_pod = true };
	Grpc__Spec *spec = NULL;
	int r;

	(void)umask(0077);
	log_init("shim", STDERR_FILENO, LOG_ERROR);
	bundle = str_empty(f->bundle) ? getcwd(NULL, 0) : realpath(f->bundle, NULL);
	if (!bundle) {
		(void)fprintf(stderr, "bundle '%s': %s\n", f->bundle, strerror(errno));
		return 1;
	}
	r = read_bootstrap(f, &boot, &err);
	if (r == 0)
		r = load_spec(f, bundle, &spec, &err);
	if (r == 0)
		r = keep_exit_command(bundle, &err);
	if (r == 0 && spec) {
		g = grouping_of(spec, f->ns, f->id);
		if (!g.is_pod && !g.member_of)
			r = find_joined(f, spec, &joined, &err);
		if (joined)
			g.member_of = joined;
	}
	if (r == 0) {
		r = g.member_of ? join_pod(f, bundle, g.member_of, &boot, &err) :
				  start_new(f, bundle, spec, &boot, g.is_pod, &err);
	}
	oci_spec_free(spec);
	bootstrap_fini(&boot);
	if (r < 0) {
		(void)fprintf(stderr, "%s\n", error_text(&err));
		return 1;
	}
	return 0;
}

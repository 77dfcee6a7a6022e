#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fsutil.h"
#include "oci/oci.h"

#define CGROUP2_MAGIC 0x63677270
#define WORK "/mnt"
#define ROOTFS WORK "/rootfs"

struct container_sandbox harness_sandbox;

/* The leak checker traces its own process, which pid 1 of a namespace does not allow. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "detect_leaks=0";
}

static const char *const applets[] = {
	"sh", "cat", "ls", "id", "echo", "true", "false", "sleep", "env", "stat", "readlink",
	"mount", "grep", "hostname", "touch", "mkdir", "wc", "head", "kill", "ps", "ip", "tty",
	"stty", "dd", "test", "uname", "nproc", "seq", "sort", "umount", "mknod", "dmesg", "pwd",
	"cut", "tr", "date", "rm", "chmod", "chown", "ln", "awk", "sed", "expr", "printf", "ulimit",
};

static const char *find_cgroup2(void)
{
	static const char *const places[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" };
	struct statfs fs;

	for (size_t i = 0; i < ARRAY_LEN(places); i++)
		if (statfs(places[i], &fs) == 0 && fs.f_type == CGROUP2_MAGIC)
			return places[i];
	return NULL;
}

static int make_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "we");

	if (!f)
		return -errno;
	(void)fputs(text, f);
	return fclose(f);
}

static int make_rootfs(void)
{
	static const char *const dirs[] = { "bin", "dev", "proc", "sys", "etc", "tmp", "root",
					    "home", "locked" };
	char cmd[256];

	if (mount("work", WORK, "tmpfs", 0, "mode=0755") < 0 || mkdir(ROOTFS, 0755) < 0)
		return -errno;
	for (size_t i = 0; i < ARRAY_LEN(dirs); i++) {
		(void)snprintf(cmd, sizeof(cmd), ROOTFS "/%s", dirs[i]);
		if (mkdir(cmd, 0755) < 0)
			return -errno;
	}
	if (chmod(ROOTFS "/tmp", 01777) < 0)
		return -errno;
	if (system("cp /bin/busybox " ROOTFS "/bin/busybox") != 0)
		return -ENOENT;
	for (size_t i = 0; i < ARRAY_LEN(applets); i++) {
		(void)snprintf(cmd, sizeof(cmd), ROOTFS "/bin/%s", applets[i]);
		if (symlink("busybox", cmd) < 0)
			return -errno;
	}
	if (make_file(ROOTFS "/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"
		      "www:x:33:34:www:/home/www:/bin/sh\nbad:line\n") < 0 ||
	    make_file(ROOTFS "/etc/group", "root:x:0:\nwww:x:34:\naudio:x:29:www,other\n"
		      "disk:x:6:other\n") < 0 ||
	    make_file(ROOTFS "/etc/noexec", "not a program\n") < 0 ||
	    make_file(ROOTFS "/etc/garbage", "\1\2\3 no format\n") < 0 ||
	    chmod(ROOTFS "/etc/garbage", 0755) < 0)
		return -EIO;
	return 0;
}

static int isolated(int (*tests)(void), const char *cgroup)
{
	struct error err = { 0 };
	int r;

	/* The proof that nothing of the machine's is in reach, before anything is done. */
	if (getpid() != 1)
		return 77;
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("proc", "/proc", "proc", 0, NULL) < 0)
		return 77;
	r = make_rootfs();
	if (r < 0) {
		(void)fprintf(stderr, "rootfs: %s\n", strerror(-r));
		return 77;
	}
	if (container_sandbox_init(&harness_sandbox, cgroup, &err) < 0)
		return 1;
	r = tests();
	container_sandbox_fini(&harness_sandbox);
	return r;
}

/* As the first process of a virtual machine: all of it is ours. Never returns. */
static _Noreturn void in_guest(int (*tests)(void))
{
	struct error err = { 0 };
	int r = 1;

	(void)mkdir("/proc", 0755);
	(void)mkdir("/sys", 0755);
	(void)mkdir("/dev", 0755);
	(void)mkdir(WORK, 0755);
	if (mount("proc", "/proc", "proc", 0, NULL) == 0 &&
	    mount("sysfs", "/sys", "sysfs", 0, NULL) == 0 &&
	    (mount("dev", "/dev", "devtmpfs", 0, NULL) == 0 || errno == EBUSY) &&
	    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, "nsdelegate") == 0 && make_rootfs() == 0 &&
	    container_sandbox_init(&harness_sandbox, NULL, &err) == 0) {
		r = tests();
		container_sandbox_fini(&harness_sandbox);
	} else {
		perror("guest set-up");
	}
	(void)printf("RESULT %d\n", r);
	(void)fflush(NULL);
	(void)reboot(RB_AUTOBOOT);
	for (;;)
		(void)pause();
}

int harness_run(int (*tests)(void))
{
	const char *cgroup2 = find_cgroup2();
	char cgroup[128];
	int status = 0;
	pid_t pid;

	if (getpid() == 1)
		in_guest(tests);
	if (geteuid() != 0 || access("/bin/busybox", X_OK) < 0 || !cgroup2)
		return 77;
	(void)snprintf(cgroup, sizeof(cgroup), "%s/caisson-test-%d", cgroup2, (int)getpid());
	if (mkdir(cgroup, 0755) < 0)
		return 77;
	if (unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET) < 0) {
		(void)rmdir(cgroup);
		return 77;
	}
	pid = fork();
	if (pid == 0) {
		int r = isolated(tests, cgroup);

		(void)fflush(NULL);
		exit(r);
	}
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (rmdir(cgroup) < 0) {
		(void)fprintf(stderr, "cgroup %s is left: %s\n", cgroup, strerror(errno));
		return 1;
	}
	return pid > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

static json_t *patch_json(const char *patch)
{
	auto_free char *text = strdup(patch);
	json_error_t je;
	json_t *j;

	for (char *s = text; *s; s++)
		if (*s == '\'')
			*s = '"';
	j = json_loads(text, 0, &je);
	if (!j)
		(void)fprintf(stderr, "patch: %s in %s\n", je.text, text);
	return j;
}

Grpc__Spec *harness_spec(const char *patch, struct error *err)
{
	Grpc__Spec *base = NULL, *spec = NULL;
	auto_free char *text = NULL;
	json_t *j, *p;

	if (oci_spec_default(false, false, &base, err) < 0)
		return NULL;
	if (oci_spec_format(base, &text, err) < 0) {
		oci_spec_free(base);
		return NULL;
	}
	oci_spec_free(base);
	j = json_loads(text, 0, NULL);
	p = patch_json("{'root':{'path':'" ROOTFS "'},'process':{'args':['true']}}");
	(void)json_object_update_recursive(j, p);
	json_decref(p);
	p = patch_json(patch);
	(void)json_object_update_recursive(j, p);
	json_decref(p);
	free(take_ptr(&text));
	text = json_dumps(j, 0);
	json_decref(j);
	if (oci_spec_parse(text, strlen(text), &spec, err) < 0)
		return NULL;
	return spec;
}

int harness_wait(struct container *c, const char *exec_id)
{
	for (;;) {
		struct container_exit e;
		int status;
		pid_t pid = waitpid(-1, &status, 0);

		if (pid < 0)
			return -1;
		if (container_reap(&harness_sandbox, pid, status, &e) == 0 && e.container == c &&
		    strcmp(e.exec_id, exec_id) == 0)
			return e.exit_code;
	}
}

/* Reads both pipes to their ends. */
static void collect(int out, int err, struct result *ret)
{
	size_t n_out = 0, n_err = 0;
	struct pollfd p[2] = { { .fd = out, .events = POLLIN }, { .fd = err, .events = POLLIN } };

	while (p[0].fd >= 0 || p[1].fd >= 0) {
		if (poll(p, 2, 20000) <= 0)
			break;
		for (int i = 0; i < 2; i++) {
			char *buf = i ? ret->err : ret->out;
			size_t *n = i ? &n_err : &n_out;
			size_t size = i ? sizeof(ret->err) : sizeof(ret->out);
			ssize_t k;

			if (p[i].fd < 0 || !p[i].revents)
				continue;
			k = read(p[i].fd, buf + *n, size - 1 - *n);
			/* EIO: the last user of a terminal is gone. */
			if (k <= 0 && !(k < 0 && errno == EAGAIN))
				p[i].fd = -1;
			else if (k > 0)
				*n += (size_t)k;
		}
	}
	ret->out[n_out] = '\0';
	ret->err[n_err] = '\0';
}

static void pipes(int out[2], int err[2])
{
	if (pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0)
		abort();
}

void harness_container(const char *patch, unsigned share, struct result *ret)
{
	struct container *c = NULL;
	struct container_io io;
	int out[2], err[2];
	Grpc__Spec *spec;

	memset(ret, 0, sizeof(*ret));
	ret->code = -1;
	spec = harness_spec(patch, &ret->error);
	if (!spec) {
		ret->create = ret->error.code;
		return;
	}
	pipes(out, err);
	io = (struct container_io){ .in = -1, .out = out[1], .err = err[1], .ptmx = -1 };
	ret->create = container_create(&harness_sandbox, "test", spec, share, &io, NULL, &c,
				       &ret->error);
	oci_spec_free(spec);
	(void)close(out[1]);
	(void)close(err[1]);
	if (ret->create == 0) {
		ret->start = container_start(c, &ret->error);
		collect(io.ptmx >= 0 ? io.ptmx : out[0], err[0], ret);
		ret->code = harness_wait(c, "");
		if (io.ptmx >= 0)
			(void)close(io.ptmx);
		harness_end(c);
	}
	(void)close(out[0]);
	(void)close(err[0]);
}

struct container *harness_start(const char *id, const char *patch, unsigned share,
				struct error *err)
{
	struct container_io io = { .in = -1, .out = -1, .err = -1 };
	struct container *c = NULL;
	Grpc__Spec *spec = harness_spec(patch, err);
	int r;

	if (!spec)
		return NULL;
	r = container_create(&harness_sandbox, id, spec, share, &io, NULL, &c, err);
	oci_spec_free(spec);
	if (r < 0)
		return NULL;
	if (container_start(c, err) < 0) {
		harness_end(c);
		return NULL;
	}
	return c;
}

void harness_end(struct container *c)
{
	struct error err = { 0 };

	if (container_delete(c, true, &err) < 0)
		(void)fprintf(stderr, "delete: %s\n", error_text(&err));
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

void harness_exec(struct container *c, const char *patch, struct result *ret)
{
	json_t *j = patch_json("{'cwd':'/','user':{'uid':0,'gid':0},"
			       "'env':['PATH=/bin']}"), *p = patch_json(patch);
	Grpc__Process *process = NULL;
	auto_free char *text = NULL;
	struct container_io io;
	int out[2], err[2];

	memset(ret, 0, sizeof(*ret));
	ret->code = -1;
	(void)json_object_update_recursive(j, p);
	text = json_dumps(j, 0);
	json_decref(j);
	json_decref(p);
	ret->create = oci_process_parse(text, strlen(text), &process, &ret->error);
	if (ret->create < 0)
		return;
	pipes(out, err);
	io = (struct container_io){ .in = -1, .out = out[1], .err = err[1] };
	ret->create = container_exec(c, "e", process, &io, NULL, &ret->error);
	oci_process_free(process);
	(void)close(out[1]);
	(void)close(err[1]);
	if (ret->create == 0) {
		collect(io.ptmx >= 0 ? io.ptmx : out[0], err[0], ret);
		ret->code = harness_wait(c, "e");
		container_forget_exec(c, "e");
		if (io.ptmx >= 0)
			(void)close(io.ptmx);
	}
	(void)close(out[0]);
	(void)close(err[0]);
}

/*
 * Stands in for QEMU in test_jail.py: tries what a QEMU that was taken over would, and says in one line
 * on standard error what came of it: "name=0" or "name=ERRNO", numbers, and user ids.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static char line[2048];

static void say(const char *name, long value)
{
	snprintf(line + strlen(line), sizeof(line) - strlen(line), "%s=%ld ", name, value);
}

static void open_it(const char *name, const char *path, int flags)
{
	int fd = open(path, flags, 0600);

	say(name, fd < 0 ? errno : 0);
	if (fd >= 0)
		close(fd);
}

static void connect_it(const char *name, const void *addr, socklen_t len, int family)
{
	int fd = socket(family, SOCK_STREAM, 0);

	say(name, connect(fd, addr, len) < 0 ? errno : 0);
	close(fd);
}

static void limit(const char *name, int what)
{
	struct rlimit l;

	getrlimit((__rlimit_resource_t)what, &l);
	say(name, l.rlim_cur == RLIM_INFINITY ? -1 : (long)l.rlim_cur);
}

int main(void)
{
	struct sockaddr_in port = { .sin_family = AF_INET, .sin_port = htons(1) };
	struct sockaddr_un hello = { .sun_family = AF_UNIX, .sun_path = "/vm/vsock.sock_1030" };
	struct sockaddr_un control = { .sun_family = AF_UNIX, .sun_path = "/vm/vmm.sock" };
	char byte = 0;
	int fd;

	port.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	say("uid", getuid());
	say("gid", getgid());
	say("groups", getgroups(0, NULL));
	open_it("kernel", "/kernel", O_RDONLY);
	open_it("kernel-write", "/kernel", O_RDWR);
	open_it("memory", "/ram/memory", O_RDWR);
	open_it("memory-new", "/ram/new", O_RDWR | O_CREAT);
	open_it("vm", "/vm", O_RDONLY | O_DIRECTORY);
	open_it("vm-new", "/vm/new", O_RDWR | O_CREAT);
	open_it("root", "/", O_RDONLY | O_DIRECTORY);
	open_it("library", "/usr/lib", O_RDONLY | O_DIRECTORY);
	open_it("null", "/dev/null", O_RDWR);
	open_it("kvm", "/dev/kvm", O_RDWR);
	connect_it("tcp", &port, sizeof(port), AF_INET);
	connect_it("hello", &hello, sizeof(hello), AF_UNIX);
	connect_it("control", &control, sizeof(control), AF_UNIX);
	say("mount", mount("x", "/ram", "tmpfs", 0, NULL) < 0 ? errno : 0);
	say("kill", kill(1, 0) < 0 ? errno : 0);
	limit("fds", RLIMIT_NOFILE);
	limit("core", RLIMIT_CORE);
	limit("threads", RLIMIT_NPROC);
	limit("file", RLIMIT_FSIZE);
	/* Beyond the end of all it may write. */
	signal(SIGXFSZ, SIG_IGN);
	fd = open("/ram/memory", O_RDWR);
	say("beyond", pwrite(fd, &byte, 1, (off_t)1 << 40) < 0 ? errno : 0);
	fprintf(stderr, "%s\n", line);
	return 1;
}

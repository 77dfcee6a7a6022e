/*
 * PID 1 of bench/fs.py's guests: connects to the host's port 1030. Each line is run
 * by sh and answered with its exit code, its time in the guest's microseconds, and the interrupts that the
 * virtio-fs device raised meanwhile; the command's output goes to the console. "append N SIZE FILE"
 * is done here: N writes at the end of a file.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000LL + ts.tv_nsec / 1000;
}

/* Of all virtio devices: the others are silent while a command runs. */
static long interrupts(void)
{
	FILE *f = fopen("/proc/interrupts", "r");
	char line[512];
	long sum = 0;

	while (f && fgets(line, sizeof(line), f)) {
		char *colon = strchr(line, ':');

		if (colon && strstr(line, "virtio"))
			sum += strtol(colon + 1, NULL, 10);
	}
	if (f)
		fclose(f);
	return sum;
}

static int append(const char *line)
{
	char file[200], data[65536];
	int n, size, fd;

	if (sscanf(line, "append %d %d %199s", &n, &size, file) != 3 || size > (int)sizeof(data))
		return 2;
	memset(data, 'x', sizeof(data));
	fd = open(file, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0644);
	for (int i = 0; i < n; i++) {
		if (write(fd, data, (size_t)size) != size)
			return 1;
	}
	return close(fd);
}

/* What the command itself says it took, "READ;WRITE" milliseconds, if it does. */
static long long own_time_us(void)
{
	long long a = 0, b = 0;
	FILE *f = fopen("/tmp/ms", "r");
	int n = f ? fscanf(f, "%lld;%lld", &a, &b) : 0;

	if (f)
		fclose(f);
	unlink("/tmp/ms");
	return n == 2 ? (a + b) * 1000 : 0;
}

static int run(const char *line)
{
	pid_t pid;
	int status = -1;

	if (strncmp(line, "append ", 7) == 0)
		return append(line);
	pid = fork();
	if (pid == 0) {
		execl("/bin/sh", "sh", "-c", line, (char *)NULL);
		_exit(127);
	}
	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(void)
{
	struct sockaddr_vm sa = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST,
				  .svm_port = 1030 };
	static const char *const dirs[] = { "/proc", "/sys", "/dev", "/tmp", "/share" };
	static char line[4096];
	FILE *in, *out;
	int fd;

	for (size_t i = 0; i < sizeof(dirs) / sizeof(dirs[0]); i++)
		mkdir(dirs[i], 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	mount("tmp", "/tmp", "tmpfs", 0, NULL);
	mount("share", "/share", "virtiofs", 0, NULL);
	setenv("PATH", "/bin:/usr/bin", 1);
	setenv("HOME", "/tmp", 1);
	fd = socket(AF_VSOCK, SOCK_STREAM, 0);
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0) {
		in = fdopen(fd, "r");
		out = fdopen(dup(fd), "w");
		fprintf(out, "hello\n");
		fflush(out);
		while (fgets(line, sizeof(line), in)) {
			long irqs = interrupts();
			long long start = now_us(), took, own;
			int code;

			line[strcspn(line, "\n")] = '\0';
			code = run(line);
			took = now_us() - start;
			own = own_time_us();
			fprintf(out, "%d %lld %ld\n", code, own ? own : took, interrupts() - irqs);
			fflush(out);
		}
	}
	reboot(RB_AUTOBOOT);
	return 0;
}

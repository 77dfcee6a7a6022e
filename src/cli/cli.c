#include "cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/cleanup.h"

/* Texts may quote what a guest or a registry said: keep them on one line and printable. */
static void print_line(const char *prefix, const char *text)
{
	size_t len = strlen(text);

	flockfile(stderr);
	fputs(prefix, stderr);
	while (len && (text[len - 1] == '\n' || text[len - 1] == ' '))
		len--;
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)text[i];

		fputc(c < 0x20 || c == 0x7f ? ' ' : c, stderr);
	}
	fputc('\n', stderr);
	funlockfile(stderr);
}

int cli_fail(int exit_code, const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	print_line("caisson: ", text);
	return exit_code;
}

int cli_fail_err(int exit_code, const struct error *err)
{
	if (err->msg[0])
		return cli_fail(exit_code, "%s", err->msg);
	return cli_fail(exit_code, "%s", strerror(err->code < 0 ? -err->code : err->code));
}

void cli_warn(const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	print_line("caisson: warning: ", text);
}

char *cli_format(const char *fmt, ...)
{
	char *text = NULL;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&text, fmt, ap);
	va_end(ap);
	return n < 0 ? NULL : text;
}

static char *from_env(const char *name, const char *fallback)
{
	const char *v = getenv(name);

	return strdup(v && *v ? v : fallback);
}

char *cli_root_dir(void)
{
	return from_env("CAISSON_ROOT", "/var/lib/caisson");
}

char *cli_run_dir(void)
{
	return from_env("CAISSON_RUN", "/run/caisson");
}

int cli_lock(const char *name, struct error *err)
{
	auto_free char *run = cli_run_dir();
	auto_free char *path = run ? cli_format("%s/%s", run, name) : NULL;
	auto_close int fd = -1;

	if (!path)
		return error_set(err, -ENOMEM, "out of memory");
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return error_errno(err, -errno, "open '%s'", path);
	while (flock(fd, LOCK_EX) < 0) {
		if (errno != EINTR)
			return error_errno(err, -errno, "lock '%s'", path);
	}
	return take_fd(&fd);
}

static char *own_dir(void)
{
	char path[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
	char *slash;

	if (n < 0)
		return NULL;
	path[n] = '\0';
	slash = strrchr(path, '/');
	if (!slash)
		return NULL;
	*slash = '\0';
	return strdup(path);
}

char *cli_lib_dir(void)
{
	const char *v = getenv("CAISSON_LIBDIR");
	auto_free char *dir = NULL;

	if (v && *v)
		return strdup(v);
	dir = own_dir();
	return dir ? cli_format("%s/../lib/caisson", dir) : NULL;
}

char *cli_program(const char *name)
{
	auto_free char *dir = own_dir();

	return dir ? cli_format("%s/%s", dir, name) : NULL;
}

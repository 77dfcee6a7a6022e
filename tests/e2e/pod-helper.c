/* SPDX-License-Identifier: Apache-2.0 */
/* What containers of the pod tests run where a shell is not enough: pod-helper serve|call|watch PATH */
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int fail(const char *what)
{
	perror(what);
	return 1;
}

/* Answers one connection with what it said, backwards. */
static int serve(int fd, const struct sockaddr_un *sa)
{
	char text[64], back[64];
	ssize_t n;

	if (bind(fd, (const struct sockaddr *)sa, sizeof(*sa)) < 0 || listen(fd, 1) < 0)
		return fail("listen");
	fd = accept(fd, NULL, NULL);
	n = read(fd, text, sizeof(text));
	if (n < 0)
		return fail("read");
	for (ssize_t i = 0; i < n; i++)
		back[i] = text[n - 1 - i];
	return write(fd, back, (size_t)n) == n ? 0 : fail("write");
}

static int call(int fd, const struct sockaddr_un *sa)
{
	char text[64] = "";

	if (connect(fd, (const struct sockaddr *)sa, sizeof(*sa)) < 0 || write(fd, "hello", 5) != 5 ||
	    read(fd, text, sizeof(text) - 1) < 0)
		return fail("call");
	return puts(text) < 0;
}

static int watch(const char *path)
{
	char data[4096];
	int fd = inotify_init1(0);

	if (inotify_add_watch(fd, path, IN_MOVED_TO | IN_CREATE | IN_DELETE) < 0)
		return fail(path);
	(void)puts("watching");
	(void)fflush(stdout);
	return read(fd, data, sizeof(data)) > 0 ? puts("woken") < 0 : fail("read");
}

int main(int argc, char **argv)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd;

	if (argc != 3 || strlen(argv[2]) >= sizeof(sa.sun_path))
		return 2;
	if (strcmp(argv[1], "watch") == 0)
		return watch(argv[2]);
	memcpy(sa.sun_path, argv[2], strlen(argv[2]));
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	return strcmp(argv[1], "serve") == 0 ? serve(fd, &sa) : call(fd, &sa);
}

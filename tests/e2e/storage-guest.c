/*
 * In the containers of test_storage.py.
 *   watch DIR NAME   says "ready", then "moved" when something takes the name NAME in DIR
 *   listen PATH      answers one connection to the Unix socket at PATH with "hello"
 *   talk PATH        connects to it, prints what it says
 */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int watch(const char *dir, const char *name)
{
	char room[4096] __attribute__((aligned(8)));
	int fd = inotify_init1(IN_CLOEXEC);

	if (fd < 0 || inotify_add_watch(fd, dir, IN_MOVED_TO) < 0)
		return 1;
	puts("ready");
	fflush(stdout);
	for (;;) {
		ssize_t n = read(fd, room, sizeof(room));

		for (ssize_t i = 0; i < n;) {
			const struct inotify_event *e = (const void *)(room + i);

			if (strcmp(e->name, name) == 0) {
				puts("moved");
				return 0;
			}
			i += (ssize_t)(sizeof(*e) + e->len);
		}
		if (n <= 0)
			return 1;
	}
}

static int unix_socket(const char *path, int server)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), peer = fd;
	char text[64];
	ssize_t n;

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
	if (server) {
		if (bind(fd, (const void *)&sa, sizeof(sa)) < 0 || listen(fd, 1) < 0)
			return 1;
		peer = accept(fd, NULL, NULL);
		return write(peer, "hello\n", 6) != 6;
	}
	if (connect(fd, (const void *)&sa, sizeof(sa)) < 0)
		return 1;
	n = read(fd, text, sizeof(text));
	return n <= 0 || write(1, text, (size_t)n) != n;
}

int main(int argc, char **argv)
{
	if (argc == 4 && strcmp(argv[1], "watch") == 0)
		return watch(argv[2], argv[3]);
	if (argc == 3 && strcmp(argv[1], "listen") == 0)
		return unix_socket(argv[2], 1);
	if (argc == 3 && strcmp(argv[1], "talk") == 0)
		return unix_socket(argv[2], 0);
	return 2;
}

#include "agent/netdev.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/str.h"

#define NET_CLASS "/sys/class/net"

int netdev_each(int (*cb)(const char *name, const uint64_t *counters, void *arg), void *arg)
{
	auto_free char *text = NULL;
	char *save = NULL, *line;
	int r = fd_read_file(AT_FDCWD, "/proc/net/dev", 65536, &text, NULL);

	if (r < 0)
		return r;
	for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		uint64_t c[NETDEV_COUNTERS] = { 0 };
		char *colon = strchr(line, ':');
		char *p = colon ? colon + 1 : NULL;

		/* Two heading lines have no colon. */
		if (!p)
			continue;
		*colon = '\0';
		for (unsigned i = 0; i < NETDEV_COUNTERS; i++)
			c[i] = strtoull(p, &p, 10);
		r = cb(line + strspn(line, " "), c, arg);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Whether a path of /sys, which it takes apart, leads over the slots of @place and no others. */
static bool leads_to(char *path, const char *place)
{
	char *save = NULL;
	unsigned slot;
	int end;

	for (char *p = strtok_r(path, "/", &save); p; p = strtok_r(NULL, "/", &save)) {
		end = 0;
		if (sscanf(p, "%*4x:%*2x:%2x.%*1x%n", &slot, &end) != 1 || !end || p[end])
			continue;
		if (strtoul(place, NULL, 16) != slot || strspn(place, "0123456789abcdef") != 2)
			return false;
		place += 2;
		place += *place == '/';
	}
	return !*place;
}

int netdev_at(const char *place, char ret_name[static IFNAMSIZ])
{
	const struct dirent *e;
	DIR *dir = opendir(NET_CLASS);
	int r = dir ? -ENOENT : -errno;

	while (dir && r == -ENOENT && (e = readdir(dir))) {
		char path[PATH_MAX], real[PATH_MAX];

		if (str_format(path, sizeof(path), NET_CLASS "/%s/device", e->d_name) == 0 &&
		    realpath(path, real) && leads_to(real, place))
			r = str_format(ret_name, IFNAMSIZ, "%s", e->d_name);
	}
	if (dir)
		(void)closedir(dir);
	return r;
}

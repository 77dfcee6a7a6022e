#include "agent/netdev.h"

#include <fcntl.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fd.h"

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

#include "agent/mountopt.h"

#include <stdbool.h>
#include <string.h>
#include <sys/mount.h>

#include "base/buf.h"
#include "base/cleanup.h"

#define MOUNT_DATA_MAX 4095 /* the kernel copies one page */

static const struct {
	const char *name;
	unsigned long set, clear;
} table[] = {
	{ "ro", MS_RDONLY, 0 },
	{ "rw", 0, MS_RDONLY },
	{ "nosuid", MS_NOSUID, 0 },
	{ "suid", 0, MS_NOSUID },
	{ "nodev", MS_NODEV, 0 },
	{ "dev", 0, MS_NODEV },
	{ "noexec", MS_NOEXEC, 0 },
	{ "exec", 0, MS_NOEXEC },
	{ "sync", MS_SYNCHRONOUS, 0 },
	{ "async", 0, MS_SYNCHRONOUS },
	{ "dirsync", MS_DIRSYNC, 0 },
	{ "mand", MS_MANDLOCK, 0 },
	{ "nomand", 0, MS_MANDLOCK },
	{ "noatime", MS_NOATIME, 0 },
	{ "atime", 0, MS_NOATIME },
	{ "nodiratime", MS_NODIRATIME, 0 },
	{ "diratime", 0, MS_NODIRATIME },
	{ "relatime", MS_RELATIME, 0 },
	{ "norelatime", 0, MS_RELATIME },
	{ "strictatime", MS_STRICTATIME, 0 },
	{ "nostrictatime", 0, MS_STRICTATIME },
	{ "lazytime", MS_LAZYTIME, 0 },
	{ "nolazytime", 0, MS_LAZYTIME },
	{ "silent", MS_SILENT, 0 },
	{ "nosymfollow", 256 /* MS_NOSYMFOLLOW */, 0 },
	{ "bind", MS_BIND, 0 },
	{ "rbind", MS_BIND | MS_REC, 0 },
	{ "defaults", 0, 0 },
};

int mountopt_parse(char *const *options, size_t n, unsigned long *ret_flags, char **ret_data,
		   struct error *err)
{
	struct buf data = BUF_INIT(MOUNT_DATA_MAX);
	unsigned long flags = 0;
	char *text = NULL;
	int r = 0;

	for (size_t i = 0; i < n && r == 0; i++) {
		bool known = false;

		for (size_t k = 0; k < ARRAY_LEN(table); k++) {
			if (strcmp(options[i], table[k].name) != 0)
				continue;
			flags = (flags & ~table[k].clear) | table[k].set;
			known = true;
			break;
		}
		if (known || !*options[i])
			continue;
		r = data.len ? buf_append_str(&data, ",") : 0;
		if (r == 0)
			r = buf_append_str(&data, options[i]);
	}
	if (r == 0 && data.len)
		r = buf_take_str(&data, &text);
	buf_fini(&data);
	if (r == -ENOBUFS)
		return error_set(err, -E2BIG, "mount options of more than %d bytes",
				 MOUNT_DATA_MAX);
	if (r < 0)
		return error_errno(err, r, "mount options");
	*ret_flags = flags;
	*ret_data = text;
	return 0;
}

/* The option strings of a mount, sorted into what each goes to. Pure: no system calls. */
#include <linux/mount.h>
#include <string.h>

#include "agent/container/internal.h"

#ifndef MS_UNBINDABLE
#define MS_UNBINDABLE (1 << 17)
#define MS_PRIVATE (1 << 18)
#define MS_SLAVE (1 << 19)
#define MS_SHARED (1 << 20)
#endif

#define OPTIONS_MAX 1024

static const struct {
	const char *name;
	uint64_t set, clr;
} attr_options[] = {
	{ "ro", MOUNT_ATTR_RDONLY, 0 },
	{ "rw", 0, MOUNT_ATTR_RDONLY },
	{ "nosuid", MOUNT_ATTR_NOSUID, 0 },
	{ "suid", 0, MOUNT_ATTR_NOSUID },
	{ "nodev", MOUNT_ATTR_NODEV, 0 },
	{ "dev", 0, MOUNT_ATTR_NODEV },
	{ "noexec", MOUNT_ATTR_NOEXEC, 0 },
	{ "exec", 0, MOUNT_ATTR_NOEXEC },
	{ "nodiratime", MOUNT_ATTR_NODIRATIME, 0 },
	{ "diratime", 0, MOUNT_ATTR_NODIRATIME },
	{ "noatime", MOUNT_ATTR_NOATIME, MOUNT_ATTR__ATIME },
	{ "atime", MOUNT_ATTR_RELATIME, MOUNT_ATTR__ATIME },
	{ "relatime", MOUNT_ATTR_RELATIME, MOUNT_ATTR__ATIME },
	{ "norelatime", MOUNT_ATTR_STRICTATIME, MOUNT_ATTR__ATIME },
	{ "strictatime", MOUNT_ATTR_STRICTATIME, MOUNT_ATTR__ATIME },
	{ "nostrictatime", MOUNT_ATTR_RELATIME, MOUNT_ATTR__ATIME },
	{ "nosymfollow", MOUNT_ATTR_NOSYMFOLLOW, 0 },
	{ "symfollow", 0, MOUNT_ATTR_NOSYMFOLLOW },
};

static const struct {
	const char *name;
	unsigned long flag;
} propagations[] = {
	{ "private", MS_PRIVATE }, { "shared", MS_SHARED },
	{ "slave", MS_SLAVE }, { "unbindable", MS_UNBINDABLE },
};

/* Flags of the mount command that mean nothing to a file system. */
static const char *const no_data[] = { "defaults", "silent", "loud", "iversion", "noiversion",
				       "user", "nouser", "users", "owner", "group", "auto",
				       "noauto", "nofail", "_netdev" };

static void mountopt_attr(uint64_t *set, uint64_t *clr, uint64_t s, uint64_t c)
{
	/* The later option wins; the access time field is one value. */
	*set &= ~(c | (s & ~(uint64_t)MOUNT_ATTR__ATIME));
	*clr &= ~(s & ~(uint64_t)MOUNT_ATTR__ATIME);
	*set |= s;
	*clr |= c;
}

static bool mountopt_known(const char *o, struct ctr_mountopt *ret)
{
	for (size_t i = 0; i < ARRAY_LEN(attr_options); i++) {
		if (strcmp(o, attr_options[i].name) == 0) {
			mountopt_attr(&ret->attr_set, &ret->attr_clr, attr_options[i].set,
				      attr_options[i].clr);
			return true;
		}
		if (o[0] == 'r' && strcmp(o + 1, attr_options[i].name) == 0) {
			mountopt_attr(&ret->rec_set, &ret->rec_clr, attr_options[i].set,
				      attr_options[i].clr);
			return true;
		}
	}
	for (size_t i = 0; i < ARRAY_LEN(propagations); i++) {
		bool rec = o[0] == 'r' && strcmp(o + 1, propagations[i].name) == 0;

		if (rec || strcmp(o, propagations[i].name) == 0) {
			ret->propagation = propagations[i].flag;
			ret->propagation_rec = rec;
			return true;
		}
	}
	for (size_t i = 0; i < ARRAY_LEN(no_data); i++)
		if (strcmp(o, no_data[i]) == 0)
			return true;

	if (strcmp(o, "bind") == 0)
		ret->bind = true;
	else if (strcmp(o, "rbind") == 0)
		ret->bind = ret->rbind = true;
	else if (strcmp(o, "remount") == 0)
		ret->remount = true;
	else if (strcmp(o, "idmap") == 0)
		ret->idmap = true;
	else if (strcmp(o, "ridmap") == 0)
		ret->idmap = ret->ridmap = true;
	else if (strcmp(o, "tmpcopyup") == 0)
		ret->copy_up = true;
	else
		return false;
	return true;
}

int ctr_mountopt_parse(char *const *options, size_t n, struct ctr_mountopt *ret, struct error *err)
{
	struct ctr_mountopt out = { 0 };

	if (n > OPTIONS_MAX)
		return error_set(err, -E2BIG, "more than %d options", OPTIONS_MAX);
	out.data = calloc(n + 1, sizeof(*out.data));
	if (!out.data)
		return error_set(err, -ENOMEM, "out of memory");

	for (size_t i = 0; i < n; i++) {
		if (ctr_empty(options[i]) || mountopt_known(options[i], &out))
			continue;
		out.data[out.n_data] = strdup(options[i]);
		if (!out.data[out.n_data]) {
			ctr_mountopt_fini(&out);
			return error_set(err, -ENOMEM, "out of memory");
		}
		out.n_data++;
	}
	*ret = out;
	return 0;
}

void ctr_mountopt_fini(struct ctr_mountopt *o)
{
	for (size_t i = 0; i < o->n_data; i++)
		free(o->data[i]);
	free(o->data);
	memset(o, 0, sizeof(*o));
}

int ctr_propagation_parse(const char *name, uint64_t *ret_flag, bool *ret_rec)
{
	for (size_t i = 0; i < ARRAY_LEN(propagations); i++) {
		bool rec = name[0] == 'r' && strcmp(name + 1, propagations[i].name) == 0;

		if (rec || strcmp(name, propagations[i].name) == 0) {
			*ret_flag = propagations[i].flag;
			*ret_rec = rec;
			return 0;
		}
	}
	return -EINVAL;
}

/*
 * Who a process runs as. Names are looked up in the container's own /etc/passwd and /etc/group,
 * which are hostile: read beneath the root, regular files only, with a size cap.
 */
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/container/internal.h"

#define USER_DB_MAX  (4u << 20)
#define USER_GIDS_MAX 65536

void ctr_user_fini(struct ctr_user *u)
{
	free(u->gids);
	free(u->home);
	memset(u, 0, sizeof(*u));
}

static bool user_number(const char *s, uint32_t *ret)
{
	uint64_t v = 0;

	if (!*s)
		return false;
	for (; *s; s++) {
		if (*s < '0' || *s > '9')
			return false;
		v = v * 10 + (unsigned)(*s - '0');
		if (v > UINT32_MAX - 1)
			return false;
	}
	*ret = (uint32_t)v;
	return true;
}

static int user_slurp(int root, const char *path, char **ret)
{
	/* Not to be held up by a fifo. */
	auto_close int fd = beneath_open(root, path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0,
					 BENEATH_IN_ROOT);

	return fd < 0 ? fd : ctr_slurp_fd(fd, USER_DB_MAX, ret);
}

/* Cuts the next line of *text into at most @max fields at ':'; the count, 0 at the end. */
static size_t user_fields(char **text, char **field, size_t max)
{
	for (;;) {
		char *line = *text, *nl;
		size_t n = 0;

		if (!line || !*line)
			return 0;
		nl = strchr(line, '\n');
		if (nl)
			*nl = '\0';
		*text = nl ? nl + 1 : line + strlen(line);
		if (!*line || *line == '#')
			continue;
		while (n < max) {
			field[n++] = line;
			line = strchr(line, ':');
			if (!line || n == max)
				break;
			*line++ = '\0';
		}
		if (n >= 3)
			return n;
	}
}

static int user_add_gid(struct ctr_user *u, uint32_t gid)
{
	uint32_t *p;

	for (size_t i = 0; i < u->n_gids; i++)
		if (u->gids[i] == gid)
			return 0;
	if (u->n_gids >= USER_GIDS_MAX)
		return -E2BIG;
	p = realloc(u->gids, (u->n_gids + 1) * sizeof(*p));
	if (!p)
		return -ENOMEM;
	p[u->n_gids++] = gid;
	u->gids = p;
	return 0;
}

static bool user_in_list(const char *list, const char *name)
{
	size_t len = strlen(name);

	while (*list) {
		size_t n = strcspn(list, ",");

		if (n == len && strncmp(list, name, n) == 0)
			return true;
		list += n + (list[n] == ',');
	}
	return false;
}

/* Finds @want (a name, or a uid in digits) in passwd. *ret_name is malloc'ed. */
static int user_passwd(int root, const char *want, uint32_t uid, struct ctr_user *u, char **ret_name)
{
	auto_free char *text = NULL;
	char *at, *f[7];
	size_t n;
	int r;

	r = user_slurp(root, "etc/passwd", &text);
	if (r < 0)
		return r == -ENOMEM ? r : -ENOENT;
	at = text;
	while ((n = user_fields(&at, f, ARRAY_LEN(f))) != 0) {
		uint32_t id, gid;

		if (n < 4 || !user_number(f[2], &id) || !user_number(f[3], &gid))
			continue;
		if (want ? strcmp(f[0], want) != 0 : id != uid)
			continue;
		u->uid = id;
		u->gid = gid;
		if (n >= 6 && f[5][0] == '/') {
			f[5][strcspn(f[5], ":")] = '\0';
			u->home = strdup(f[5]);
			if (!u->home)
				return -ENOMEM;
		}
		*ret_name = strdup(f[0]);
		return *ret_name ? 0 : -ENOMEM;
	}
	return -ENOENT;
}

/* With @want: its gid. With @member: all groups that list it. */
static int user_group(int root, const char *want, const char *member, struct ctr_user *u)
{
	auto_free char *text = NULL;
	char *at, *f[4];
	size_t n;
	int r;

	r = user_slurp(root, "etc/group", &text);
	if (r < 0)
		return r == -ENOMEM ? r : -ENOENT;
	at = text;
	while ((n = user_fields(&at, f, ARRAY_LEN(f))) != 0) {
		uint32_t gid;

		if (!user_number(f[2], &gid))
			continue;
		if (want && strcmp(f[0], want) == 0) {
			u->gid = gid;
			return 0;
		}
		if (member && n == 4 && user_in_list(f[3], member)) {
			r = user_add_gid(u, gid);
			if (r < 0)
				return r;
		}
	}
	return want ? -ENOENT : 0;
}

static int user_by_name(const char *spec, int root, bool want_groups, struct ctr_user *u,
			struct error *err)
{
	auto_free char *copy = strdup(spec), *name = NULL;
	char *group;
	int r;

	if (!copy)
		return error_set(err, -ENOMEM, "user \"%s\": out of memory", spec);
	group = strchr(copy, ':');
	if (group)
		*group++ = '\0';

	if (*copy) {
		uint32_t uid;

		r = user_passwd(root, copy, 0, u, &name);
		if (r == -ENOENT && user_number(copy, &uid)) {
			u->uid = uid;
			u->gid = 0;
			r = user_passwd(root, NULL, uid, u, &name);
			if (r == -ENOENT)
				r = 0;
		}
		if (r == -ENOENT)
			return error_set(err, -EINVAL, "unable to find user %s: no matching "
					 "entries in passwd file", copy);
		if (r < 0)
			return error_errno(err, r, "user \"%s\"", spec);
	}
	if (name && want_groups && !(group && *group)) {
		r = user_group(root, NULL, name, u);
		if (r < 0 && r != -ENOENT)
			return error_errno(err, r, "groups of user \"%s\"", spec);
	}
	if (group && *group) {
		r = user_group(root, group, NULL, u);
		if (r == -ENOENT && user_number(group, &u->gid))
			r = 0;
		if (r == -ENOENT)
			return error_set(err, -EINVAL, "unable to find group %s: no matching "
					 "entries in group file", group);
		if (r < 0)
			return error_errno(err, r, "group \"%s\"", group);
	}
	return 0;
}

int ctr_user_resolve(const Grpc__User *u, int root, struct ctr_user *ret, struct error *err)
{
	struct ctr_user out = { 0 };
	auto_free char *name = NULL;
	int r = 0;

	if (u) {
		out.uid = u->uid;
		out.gid = u->gid;
		for (size_t i = 0; i < u->n_additionalgids && r == 0; i++)
			r = user_add_gid(&out, u->additionalgids[i]);
		if (r < 0)
			(void)error_errno(err, r, "process.user.additionalGids");
	}
	if (r == 0 && u && !ctr_empty(u->username)) {
		r = user_by_name(u->username, root, out.n_gids == 0, &out, err);
	} else if (r == 0) {
		struct ctr_user seen = { 0 };

		/* Only for $HOME. */
		if (user_passwd(root, NULL, out.uid, &seen, &name) == 0)
			out.home = take_ptr(&seen.home);
		ctr_user_fini(&seen);
	}
	if (r < 0) {
		ctr_user_fini(&out);
		return r;
	}
	*ret = out;
	return 0;
}

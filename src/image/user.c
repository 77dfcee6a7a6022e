/* User and group names to numbers, by the image's own /etc/passwd and /etc/group. */
#include "image/internal.h"

#include <fcntl.h>
#include <string.h>

#define ACCOUNTS_MAX (16u << 20)
#define GROUPS_MAX   65536u

struct accounts {
	char *passwd;
	char *group;
};

static int read_accounts(const char *path, char **ret, struct error *err)
{
	int r = fd_read_file(AT_FDCWD, path, ACCOUNTS_MAX, ret, NULL);

	if (r == -ENOENT) {
		*ret = strdup("");
		r = *ret ? 0 : -ENOMEM;
	}
	return r < 0 ? error_errno(err, r, "read '%s'", path) : 0;
}

/* The next line of *@text cut at colons into up to @max fields; the rest of them are "". */
static bool next_line(char **text, char *fields[], size_t max)
{
	char *line = strsep(text, "\n");

	if (!line)
		return false;
	for (size_t i = 0; i < max; i++) {
		char *field = line ? strsep(&line, ":") : NULL;

		fields[i] = field ? field : (char *)"";
	}
	return true;
}

/* By name, or (@by_id) by number, as the user wrote it; a name wins over a number. */
static int find_user(const char *passwd, const char *name, bool by_id, uint32_t id,
		     struct image_user *u, char **ret_name, struct error *err)
{
	auto_free char *copy = strdup(passwd);
	char *text = copy, *f[7];
	uint32_t uid, gid;

	if (!copy)
		return error_set(err, -ENOMEM, "out of memory");
	while (next_line(&text, f, ARRAY_LEN(f))) {
		if (str_parse_u32(f[2], &uid) < 0 || str_parse_u32(f[3], &gid) < 0)
			continue;
		if (by_id ? uid != id : !str_eq(f[0], name))
			continue;
		free(u->home);
		u->uid = uid;
		u->gid = gid;
		u->home = strdup(*f[5] ? f[5] : "/");
		*ret_name = strdup(f[0]);
		return u->home && *ret_name ? 0 : error_set(err, -ENOMEM, "out of memory");
	}
	return -ENOENT;
}

static int find_group(const char *group, const char *name, uint32_t *ret_gid, struct error *err)
{
	auto_free char *copy = strdup(group);
	char *text = copy, *f[4];
	uint32_t gid;

	if (!copy)
		return error_set(err, -ENOMEM, "out of memory");
	while (next_line(&text, f, ARRAY_LEN(f))) {
		if (!str_eq(f[0], name) || str_parse_u32(f[2], &gid) < 0)
			continue;
		*ret_gid = gid;
		return 0;
	}
	return -ENOENT;
}

static bool lists_member(char *members, const char *name)
{
	char *member;

	while ((member = strsep(&members, ",")))
		if (str_eq(member, name))
			return true;
	return false;
}

static int find_memberships(const char *group, const char *name, struct image_user *u,
			    struct error *err)
{
	auto_free char *copy = strdup(group);
	char *text = copy, *f[4];
	uint32_t gid, *v;

	if (!copy)
		return error_set(err, -ENOMEM, "out of memory");
	while (next_line(&text, f, ARRAY_LEN(f))) {
		if (str_parse_u32(f[2], &gid) < 0 || !lists_member(f[3], name))
			continue;
		if (u->n_groups == GROUPS_MAX)
			break;
		v = reallocarray(u->groups, u->n_groups + 1, sizeof(*v));
		if (!v)
			return error_set(err, -ENOMEM, "out of memory");
		u->groups = v;
		u->groups[u->n_groups++] = gid;
	}
	return 0;
}

static int resolve(const struct image *image, const struct accounts *a, const char *user,
		   const char *group, struct image_user *u, struct error *err)
{
	auto_free char *name = NULL;
	uint32_t id;
	int r;

	r = find_user(a->passwd, *user ? user : "root", false, 0, u, &name, err);
	if (r == -ENOENT && (!*user || str_parse_u32(user, &id) == 0)) {
		u->uid = *user ? id : 0;
		r = find_user(a->passwd, user, true, u->uid, u, &name, err);
		if (r == -ENOENT)
			r = 0; /* a number needs no entry */
	}
	if (r == -ENOENT)
		return error_set(err, r, "no user '%s' in image '%s'", user, image->familiar);
	if (r < 0)
		return r;
	if (u->uid > INT32_MAX)
		return error_set(err, -EINVAL, "user id %s is out of range", user);
	if (group) {
		r = find_group(a->group, group, &u->gid, err);
		if (r == -ENOENT && str_parse_u32(group, &u->gid) < 0)
			return error_set(err, r, "no group '%s' in image '%s'", group,
					 image->familiar);
		if (r < 0 && r != -ENOENT)
			return r;
		if (u->gid > INT32_MAX)
			return error_set(err, -EINVAL, "group id %s is out of range", group);
		return 0; /* an explicit group stands alone, as Docker has it */
	}
	return name ? find_memberships(a->group, name, u, err) : 0;
}

int image_resolve_user(const struct image *image, const char *text, struct image_user *ret,
		       struct error *err)
{
	struct accounts a = { 0 };
	struct image_user u = { 0 };
	auto_free char *user = strdup(str_empty(text) ? image->config.user : text);
	char *group;
	int r;

	if (!user)
		return error_set(err, -ENOMEM, "out of memory");
	group = strchr(user, ':');
	if (group)
		*group++ = '\0';
	if (group && !*group)
		group = NULL;
	u.home = strdup("/");
	r = u.home ? read_accounts(image->passwd, &a.passwd, err)
		   : error_set(err, -ENOMEM, "out of memory");
	if (r == 0)
		r = read_accounts(image->group, &a.group, err);
	if (r == 0)
		r = resolve(image, &a, user, group, &u, err);
	free(a.passwd);
	free(a.group);
	if (r < 0) {
		image_user_fini(&u);
		return r;
	}
	*ret = u;
	return 0;
}

void image_user_fini(struct image_user *user)
{
	free(user->groups);
	free(user->home);
	*user = (struct image_user){ 0 };
}

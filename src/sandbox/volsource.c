/* SPDX-License-Identifier: Apache-2.0 */
/* See volsource.h. */
#include "sandbox/volsource.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/base.h"
#include "sandbox/mirror.h"

#define KUBELET     "/volumes/kubernetes.io~"
#define EMPTY_DIR   KUBELET "empty-dir/"
#define SUBPATHS    "/volume-subpaths/"
#define DIRECT_ROOT "/run/kata-containers/shared/direct-volumes"
#define INFO_MAX    (64u << 10)

static int oom(struct error *err)
{
	return error_set(err, -ENOMEM, "out of memory");
}

void volsource_fini(struct volsource *src)
{
	free(src->source);
	free(src->subpath);
	free(src->device);
	free(src->fstype);
	strv_free(src->options);
	*src = (struct volsource){ 0 };
}

static bool has_option(const Grpc__Mount *m, const char *option)
{
	for (size_t i = 0; i < m->n_options; i++)
		if (str_eq(m->options[i], option))
			return true;
	return false;
}

static bool is_bind(const Grpc__Mount *m)
{
	return str_eq(m->type, "bind") || str_eq(m->type, "rbind") || has_option(m, "bind") ||
	       has_option(m, "rbind");
}

static bool is_read_only(const Grpc__Mount *m)
{
	return has_option(m, "ro") || has_option(m, "rro");
}

static int set_source(struct volsource *src, enum volsource_kind kind, const char *source,
		      struct error *err)
{
	src->kind = kind;
	src->source = strdup(source);
	return src->source ? 0 : oom(err);
}

/* --- disks and network file systems: told by the mount's type --- */

/* Options that are for the file system, not for the bind mount in the container. */
static int copy_options(struct volsource *src, const Grpc__Mount *m, struct error *err)
{
	static const char *const ours[] = { "ro",      "rw",	"rro",	   "loop",   "private", "rprivate",
					    "slave",   "rslave", "shared", "rshared", "nosuid",  "nodev",
					    "noexec" };

	for (size_t i = 0; i < m->n_options; i++) {
		bool skip = false;

		for (size_t k = 0; k < ARRAY_LEN(ours); k++)
			skip = skip || str_eq(m->options[i], ours[k]);
		if (!skip && strv_append(&src->options, m->options[i]) < 0)
			return oom(err);
	}
	return 0;
}

static int classify_disk(const Grpc__Mount *m, struct volsource *src, struct error *err)
{
	if (stat(m->source, &src->st) < 0)
		return error_errno(err, -errno, "mount '%s' at '%s'", m->source, m->destination);
	if (!S_ISREG(src->st.st_mode) && !S_ISBLK(src->st.st_mode))
		return error_set(err, -EINVAL,
				 "mount '%s' at '%s': %s needs a file or a block device", m->source,
				 m->destination, m->type);
	/* Owner and mode of the file say nothing about the file system in it. */
	src->st = (struct stat){ 0 };
	src->device = strdup(m->source);
	src->fstype = strdup(m->type);
	if (!src->device || !src->fstype)
		return oom(err);
	src->read_only = is_read_only(m) || str_eq(m->type, "erofs");
	if (set_source(src, VOLSOURCE_DISK, m->source, err) < 0)
		return -ENOMEM;
	return copy_options(src, m, err);
}

static bool is_nfs(const char *fstype)
{
	return str_eq(fstype, "nfs") || str_eq(fstype, "nfs4");
}

/*
 * The guest's kernel wants the server's address beside "server:path": taken from there if it is one. And no
 * locks of NFS 3 with the server, for which the guest would need a daemon of its own.
 */
static int complete_nfs(struct volsource *src, const char *device, struct error *err)
{
	const char *end = *device == '[' ? strstr(device, "]:/") : strstr(device, ":/");
	auto_free char *host = NULL, *option = NULL;
	uint8_t raw[16];

	if (!end || end == device)
		return error_set(err, -EINVAL, "mount '%s': %s needs SERVER:/PATH", device, src->fstype);
	if (src->read_only && strv_append(&src->options, "ro") < 0)
		return oom(err);
	if (str_eq(src->fstype, "nfs") && strv_append(&src->options, "nolock") < 0)
		return oom(err);
	for (size_t i = 0; src->options && src->options[i]; i++)
		if (str_has_prefix(src->options[i], "addr="))
			return 0;
	device += *device == '[';
	host = strndup(device, (size_t)(end - device));
	option = host ? str_printf("addr=%s", host) : NULL;
	if (!option)
		return oom(err);
	if (inet_pton(AF_INET, host, raw) != 1 && inet_pton(AF_INET6, host, raw) != 1)
		return error_set(err, -EINVAL, "mount '%s': the server's address must be given, as the option "
				 "addr=ADDRESS", device);
	return strv_append(&src->options, option) < 0 ? oom(err) : 0;
}

static int classify_network(const Grpc__Mount *m, struct volsource *src, struct error *err)
{
	src->fstype = strdup(m->type);
	src->read_only = is_read_only(m);
	if (!src->fstype || set_source(src, VOLSOURCE_NETWORK, m->source, err) < 0)
		return oom(err);
	src->device = strdup(m->source);
	if (!src->device || copy_options(src, m, err) < 0)
		return src->device ? err->code : oom(err);
	return complete_nfs(src, src->device, err);
}

/* --- direct volumes --- */

static char *base64url(const char *text)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
	size_t len = strlen(text), n = 0;
	char *out = malloc((len + 2) / 3 * 4 + 1);

	for (size_t i = 0; out && i < len; i += 3) {
		uint32_t v = (uint32_t)(uint8_t)text[i] << 16;

		if (i + 1 < len)
			v |= (uint32_t)(uint8_t)text[i + 1] << 8;
		if (i + 2 < len)
			v |= (uint8_t)text[i + 2];
		out[n++] = digits[v >> 18];
		out[n++] = digits[v >> 12 & 63];
		out[n++] = i + 1 < len ? digits[v >> 6 & 63] : '=';
		out[n++] = i + 2 < len ? digits[v & 63] : '=';
	}
	if (out)
		out[n] = '\0';
	return out;
}

static int parse_info(const char *text, const char *path, struct volsource *src, struct error *err)
{
	json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
	const char *type = json_string_value(json_object_get(root, "volume-type"));
	const char *device = json_string_value(json_object_get(root, "device"));
	const char *fstype = json_string_value(json_object_get(root, "fstype"));
	const json_t *options = json_object_get(root, "options");
	const json_t *meta = json_object_get(root, "metadata"), *value;
	size_t i;
	uint32_t gid;
	int r = 0;

	bool nfs = fstype && is_nfs(fstype);

	if (!json_is_object(root) || !device || (*device != '/' && !nfs) || str_empty(fstype)) {
		r = error_set(err, -EINVAL, "'%s': device and fstype must be given", path);
	} else if (type && !str_eq(type, "block") && !str_eq(type, "directvol") &&
		   !str_eq(type, "blk") && !nfs) {
		r = error_set(err, -EOPNOTSUPP, "'%s': volume-type '%s' is not supported", path, type);
	} else {
		src->device = strdup(device);
		src->fstype = strdup(fstype);
		if (!src->device || !src->fstype)
			r = oom(err);
	}
	json_array_foreach(options, i, value) {
		const char *o = json_string_value(value);

		if (r == 0 && o && str_eq(o, "ro"))
			src->read_only = true;
		else if (r == 0 && o && !str_eq(o, "rw") && strv_append(&src->options, o) < 0)
			r = oom(err);
	}
	value = json_object_get(meta, "fsGroup");
	if (r == 0 && value &&
	    (str_parse_u32(json_string_value(value) ? json_string_value(value) : "", &gid) < 0))
		r = error_set(err, -EINVAL, "'%s': fsGroup is not a number", path);
	else if (r == 0 && value)
		src->st.st_gid = gid;
	json_decref(root);
	return r;
}

/* 1: it is one; 0: it is not. */
static int classify_direct(const Grpc__Mount *m, struct volsource *src, struct error *err)
{
	auto_free char *name = base64url(m->source), *path = NULL, *text = NULL;
	int r;

	if (!name)
		return oom(err);
	if (strlen(name) > NAME_MAX)
		return 0;
	path = str_printf(DIRECT_ROOT "/%s/mountInfo.json", name);
	if (!path)
		return oom(err);
	r = fd_read_file(AT_FDCWD, path, INFO_MAX, &text, NULL);
	if (r == -ENOENT || r == -ENOTDIR)
		return 0;
	if (r < 0)
		return error_errno(err, r, "read '%s'", path);
	src->st = (struct stat){ 0 };
	r = parse_info(text, path, src, err);
	if (r == 0 && is_nfs(src->fstype))
		r = complete_nfs(src, src->device, err);
	if (r == 0)
		r = set_source(src, is_nfs(src->fstype) ? VOLSOURCE_NETWORK : VOLSOURCE_DISK, m->source,
			       err);
	return r < 0 ? r : 1;
}

/* --- the kubelet's --- */

/* "<pod>/volumes/kubernetes.io~empty-dir/NAME", and nothing after it. */
static bool is_empty_dir(const char *source)
{
	const char *at = strstr(source, EMPTY_DIR), *name = at ? at + strlen(EMPTY_DIR) : NULL;

	return name && *name && !strchr(name, '/');
}

static bool is_watched(const char *source)
{
	static const char *const kinds[] = { "configmap/", "secret/", "projected/", "downward-api/" };
	const char *at = strstr(source, KUBELET), *name;

	if (!at)
		return false;
	at += strlen(KUBELET);
	for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
		if (!str_has_prefix(at, kinds[i]))
			continue;
		name = at + strlen(kinds[i]);
		return *name && !strchr(name, '/');
	}
	return false;
}

static int classify_empty_dir(const char *source, struct volsource *src, struct error *err)
{
	enum volsource_kind kind = VOLSOURCE_SCRATCH;
	struct statfs fs;

	if (stat(source, &src->st) < 0 || statfs(source, &fs) < 0)
		return error_errno(err, -errno, "mount '%s'", source);
	if (fs.f_type == TMPFS_MAGIC)
		kind = VOLSOURCE_MEMORY;
	else if (fs.f_type == HUGETLBFS_MAGIC)
		kind = VOLSOURCE_HUGE;
	if (kind != VOLSOURCE_SCRATCH)
		src->size = (uint64_t)fs.f_blocks * (uint64_t)fs.f_bsize;
	src->page = kind == VOLSOURCE_HUGE ? (uint64_t)fs.f_bsize : 0;
	return set_source(src, kind, source, err);
}

/* Fields 3 to 5 of a line of mountinfo: device, root, mount point. */
struct mount_line {
	unsigned major, minor;
	char root[PATH_MAX], point[PATH_MAX];
};

static bool parse_mount_line(const char *line, struct mount_line *ret)
{
	return sscanf(line, "%*d %*d %u:%u %4095s %4095s", &ret->major, &ret->minor, ret->root,
		      ret->point) == 4;
}

/*
 * A subPath of an emptyDir: the kubelet has mounted "<pod>/volume-subpaths/VOLUME/CONTAINER/N" from
 * the directory on the host; the guest's own emptyDir is meant. Which path beneath it, the kernel
 * knows: the mount's root. 1: found, 0: it is something else.
 */
static int classify_subpath(const char *source, struct volsource *src, struct error *err)
{
	const char *at = strstr(source, SUBPATHS), *name = at ? at + strlen(SUBPATHS) : NULL;
	const char *slash = name ? strchr(name, '/') : NULL;
	struct mount_line *line, *of = NULL, *one = NULL;
	auto_free char *dir = NULL, *text = NULL;
	const char *below = NULL;
	char *save = NULL;
	int r;

	if (!slash)
		return 0;
	dir = str_printf("%.*s" EMPTY_DIR "%.*s", (int)(at - source), source, (int)(slash - name),
			 name);
	if (!dir || access(dir, F_OK) < 0)
		return dir ? 0 : oom(err);
	r = fd_read_file(AT_FDCWD, "/proc/self/mountinfo", 16u << 20, &text, NULL);
	line = malloc(3 * sizeof(*line));
	if (r < 0 || !line) {
		free(line);
		return oom(err);
	}
	for (char *l = strtok_r(text, "\n", &save); l; l = strtok_r(NULL, "\n", &save)) {
		if (!parse_mount_line(l, &line[2]))
			continue;
		if (str_eq(line[2].point, source)) {
			line[0] = line[2];
			one = &line[0];
		} else if (str_eq(line[2].point, dir)) {
			line[1] = line[2];
			of = &line[1];
		}
	}
	if (one && of && of->major == one->major && of->minor == one->minor &&
	    str_has_prefix(one->root, str_eq(of->root, "/") ? "" : of->root))
		below = one->root + (str_eq(of->root, "/") ? 0 : strlen(of->root));
	else if (one && !of && (below = strstr(one->root, EMPTY_DIR)))
		below += strlen(EMPTY_DIR) + (size_t)(slash - name);
	r = 0;
	if (below && *below == '/' && below[1]) {
		r = classify_empty_dir(dir, src, err);
		src->subpath = strdup(below + 1);
		r = r < 0 ? r : src->subpath ? 1 : oom(err);
	}
	free(line);
	return r;
}

/* --- all --- */

int volsource_classify(const Grpc__Mount *m, struct volsource *src, struct error *err)
{
	int r;

	if (!is_bind(m)) {
		if (str_eq(m->type, "ext4") || str_eq(m->type, "xfs") || str_eq(m->type, "erofs"))
			return classify_disk(m, src, err);
		if (is_nfs(m->type))
			return classify_network(m, src, err);
		return 0;
	}
	if (str_eq(m->destination, "/dev/shm") || str_eq(m->destination, "/sys/fs/cgroup"))
		return 0;
	if (str_has_prefix(m->source, "/dev/") && !str_has_prefix(m->source, "/dev/shm/"))
		return set_source(src, VOLSOURCE_GUEST, m->source, err);
	r = classify_direct(m, src, err);
	if (r != 0)
		return r < 0 ? r : 0;
	if (is_empty_dir(m->source))
		return classify_empty_dir(m->source, src, err);
	r = classify_subpath(m->source, src, err);
	if (r != 0)
		return r < 0 ? r : 0;
	if (is_watched(m->source) && mirror_fits(m->source))
		return set_source(src, VOLSOURCE_WATCHED, m->source, err);
	return 0;
}

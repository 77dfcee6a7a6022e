/* SPDX-License-Identifier: Apache-2.0 */
#include "sandbox/manifest.h"

#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"
#include "base/sparse.h"

#define FORMAT   "caisson snapshot"
#define VERSION  1
#define VERSION_LAYER 2 /* of one with a parent: an older program must not take it for the whole */
#define FILE_NAME "manifest.json"
#define SIZE_MAX_ ((size_t)1 << 20)
#define PARTS_MAX 255

/* As in struct manifest_files. */
static const char *const file_names[] = { "ram", "state", "scratch", "pages" };

void manifest_fini(struct manifest *m)
{
	for (size_t i = 0; i < m->n_disks; i++)
		free(m->disks[i].path);
	free(m->key);
	free(m->guest_id);
	free(m->parent);
	free(m->parent_sum);
	free(m->sum);
	*m = (struct manifest){ 0 };
}

void manifest_files_close(struct manifest_files *f)
{
	cleanup_close_(&f->ram);
	cleanup_close_(&f->state);
	cleanup_close_(&f->scratch);
	cleanup_close_(&f->pages);
	*f = (struct manifest_files)MANIFEST_NO_FILES;
}

/* FNV-1a of the text in its canonical form. */
static uint64_t sum_of(const json_t *doc)
{
	auto_free char *text = json_dumps(doc, JSON_SORT_KEYS | JSON_COMPACT);
	uint64_t h = UINT64_C(0xcbf29ce484222325);

	for (const char *p = text; p && *p; p++)
		h = (h ^ (uint8_t)*p) * UINT64_C(0x100000001b3);
	return h;
}

static json_t *hex64(uint64_t v)
{
	return json_sprintf("%016llx", (unsigned long long)v);
}

/* --- writing --- */

static json_t *disk_json(const struct manifest_disk *d)
{
	return json_pack("{s:s, s:i, s:I, s:b, s:b, s:s}", "Serial", d->serial, "Part", (int)d->part,
			 "Size", (json_int_t)d->size, "ReadOnly", d->read_only, "Scratch", d->scratch,
			 "Path", d->path ? d->path : "");
}

static int add_file(json_t *files, int dir_fd, const char *name, bool checked, struct error *err)
{
	auto_close int fd = openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	uint64_t sum = 0;
	struct stat st;
	json_t *file;
	int r = 0;

	if (fd < 0 && errno == ENOENT)
		return 0;
	if (fd < 0 || fstat(fd, &st) < 0)
		r = -errno;
	if (r == 0 && checked)
		r = sparse_sum(fd, &sum);
	if (r < 0)
		return error_errno(err, r, "read the snapshot's file '%s'", name);
	file = json_pack("{s:I}", "Size", (json_int_t)st.st_size);
	if (checked)
		(void)json_object_set_new(file, "Sum", hex64(sum));
	return json_object_set_new(files, name, file) < 0 ? error_set(err, -ENOMEM, "out of memory") :
							    0;
}

int manifest_write(int dir_fd, const struct manifest *m, struct error *err)
{
	json_t *disks = json_array(), *files = json_object(), *doc;
	auto_free char *text = NULL;
	int r = 0;

	for (size_t i = 0; i < m->n_disks; i++)
		(void)json_array_append_new(disks, disk_json(&m->disks[i]));
	for (size_t i = 0; i < ARRAY_LEN(file_names) && r == 0; i++)
		r = add_file(files, dir_fd, file_names[i], m->checked, err);
	doc = json_pack("{s:s, s:i, s:s, s:s, s:i, s:i, s:i, s:b, s:o, s:o}", "Format", FORMAT, "Version",
			m->parent ? VERSION_LAYER : VERSION, "Machine", m->key, "Container", m->guest_id, "MemoryMiB",
			(int)m->memory_mib, "Vcpus", (int)m->vcpus, "NextSerial", (int)m->next_serial,
			"Terminal", m->terminal, "Disks", disks, "Files", files);
	if (r == 0 && m->parent &&
	    (!doc || json_object_set_new(doc, "Parent", json_pack("{s:s, s:s}", "Path", m->parent, "Sum",
								  m->parent_sum)) < 0))
		r = error_set(err, -ENOMEM, "out of memory");
	if (r == 0 && (!doc || json_object_set_new(doc, "Sum", hex64(sum_of(doc))) < 0 ||
		       !(text = json_dumps(doc, JSON_INDENT(1) | JSON_SORT_KEYS))))
		r = error_set(err, -ENOMEM, "out of memory");
	json_decref(doc);
	if (r < 0)
		return r;
	r = fsutil_write_atomic(dir_fd, FILE_NAME, text, strlen(text), 0600);
	return r < 0 ? error_errno(err, r, "write the snapshot's " FILE_NAME) : 0;
}

/* --- reading --- */

static bool same_hex(const json_t *text, uint64_t v)
{
	char want[17];

	(void)!str_format(want, sizeof(want), "%016llx", (unsigned long long)v);
	return str_eq(json_string_value(text), want);
}

static int read_disk(json_t *o, struct manifest_disk *d)
{
	const char *serial = NULL, *path = NULL;
	json_int_t part, size;
	int read_only, scratch;

	if (json_unpack(o, "{s:s, s:I, s:I, s:b, s:b, s:s}", "Serial", &serial, "Part", &part, "Size",
			&size, "ReadOnly", &read_only, "Scratch", &scratch, "Path", &path) < 0)
		return -EINVAL;
	if (part < 1 || part > PARTS_MAX || size < 0 || str_empty(serial) ||
	    str_format(d->serial, sizeof(d->serial), "%s", serial) < 0 ||
	    (!scratch && path[0] != '/'))
		return -EINVAL;
	d->part = (unsigned)part;
	d->size = (uint64_t)size;
	d->read_only = read_only;
	d->scratch = scratch;
	d->path = strdup(path);
	return d->path ? 0 : -ENOMEM;
}

static bool in_range(json_int_t v, json_int_t least, json_int_t most)
{
	return v >= least && v <= most;
}

static int read_parent(const json_t *doc, struct manifest *m, struct error *err)
{
	const json_t *parent = json_object_get(doc, "Parent");
	const char *path = json_string_value(json_object_get(parent, "Path"));
	const char *sum = json_string_value(json_object_get(parent, "Sum"));

	if (!parent)
		return 0;
	if (str_empty(path) || path[0] != '/' || str_empty(sum))
		return error_set(err, -EINVAL, "the snapshot does not say what it is a change of");
	m->parent = strdup(path);
	m->parent_sum = strdup(sum);
	return m->parent && m->parent_sum ? 0 : error_set(err, -ENOMEM, "out of memory");
}

static int read_doc(json_t *doc, struct manifest *m, struct error *err)
{
	const char *key = NULL, *guest = NULL;
	json_int_t memory, vcpus, next;
	json_t *disks = NULL, *disk;
	int terminal, r = 0;
	size_t i, n_scratch = 0;

	if (json_unpack(doc, "{s:s, s:s, s:I, s:I, s:I, s:b, s:o}", "Machine", &key, "Container", &guest,
			"MemoryMiB", &memory, "Vcpus", &vcpus, "NextSerial", &next, "Terminal",
			&terminal, "Disks", &disks) < 0 ||
	    !str_valid_id(guest) || !in_range(memory, 1, INT32_MAX) || !in_range(vcpus, 1, 255) ||
	    !in_range(next, 0, INT32_MAX) || !json_is_array(disks) ||
	    json_array_size(disks) > MANIFEST_MAX_DISKS)
		return error_set(err, -EINVAL, "the snapshot's " FILE_NAME " lacks something");
	m->memory_mib = (uint32_t)memory;
	m->vcpus = (uint32_t)vcpus;
	m->next_serial = (uint32_t)next;
	m->terminal = terminal;
	m->key = strdup(key);
	m->guest_id = strdup(guest);
	if (!m->key || !m->guest_id)
		return error_set(err, -ENOMEM, "out of memory");
	json_array_foreach(disks, i, disk) {
		if (r == 0)
			r = read_disk(disk, &m->disks[m->n_disks]);
		if (r == 0)
			n_scratch += m->disks[m->n_disks++].scratch;
	}
	if (r < 0 || n_scratch > 1)
		return error_set(err, -EINVAL, "the snapshot's disks are malformed");
	return 0;
}

static int open_file(int dir_fd, const json_t *files, const char *name, int *ret_fd,
		     struct error *err)
{
	const json_t *file = json_object_get(files, name), *sum = json_object_get(file, "Sum");
	auto_close int fd = -1;
	struct stat st;
	uint64_t have;
	int r = 0;

	*ret_fd = -1;
	if (!file)
		return 0;
	fd = openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		return error_errno(err, -errno, "the snapshot's file '%s'", name);
	if (!S_ISREG(st.st_mode) ||
	    json_integer_value(json_object_get(file, "Size")) != (json_int_t)st.st_size)
		return error_set(err, -EBADMSG, "the snapshot's file '%s' has %lld bytes and not those "
				 "it was written with", name, (long long)st.st_size);
	if (sum)
		r = sparse_sum(fd, &have);
	if (r < 0)
		return error_errno(err, r, "read the snapshot's file '%s'", name);
	if (sum && !same_hex(sum, have))
		return error_set(err, -EBADMSG, "the snapshot's file '%s' is damaged", name);
	*ret_fd = take_fd(&fd);
	return 0;
}

static int check_head(json_t *doc, char **ret_sum, struct error *err)
{
	auto_free char *sum = NULL;
	const char *format = json_string_value(json_object_get(doc, "Format"));
	json_int_t version = json_integer_value(json_object_get(doc, "Version"));
	json_t *text = json_object_get(doc, "Sum");

	if (!str_eq(format, FORMAT))
		return error_set(err, -EINVAL, "this is no snapshot");
	if (version != VERSION && version != VERSION_LAYER)
		return error_set(err, -ENOTSUP, "the snapshot has version %lld, known are %d and %d",
				 (long long)version, VERSION, VERSION_LAYER);
	sum = strdup(json_is_string(text) ? json_string_value(text) : "");
	(void)json_object_del(doc, "Sum");
	text = json_string(sum ? sum : "");
	if (!same_hex(text, sum_of(doc))) {
		json_decref(text);
		return error_set(err, -EBADMSG, "the snapshot's " FILE_NAME " is damaged");
	}
	json_decref(text);
	*ret_sum = take_ptr(&sum);
	return 0;
}

int manifest_read(int dir_fd, struct manifest *ret, struct manifest_files *f, struct error *err)
{
	int *const fds[] = { &f->ram, &f->state, &f->scratch, &f->pages };
	auto_free char *text = NULL;
	json_t *doc, *files;
	size_t len = 0;
	int r = fd_read_file(dir_fd, FILE_NAME, SIZE_MAX_, &text, &len);

	*ret = (struct manifest){ 0 };
	*f = (struct manifest_files)MANIFEST_NO_FILES;
	if (r < 0)
		return error_errno(err, r, "read the snapshot's " FILE_NAME);
	doc = json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
	r = json_is_object(doc) ? check_head(doc, &ret->sum, err) :
				  error_set(err, -EINVAL, "the snapshot's " FILE_NAME " is not JSON");
	if (r == 0)
		r = read_doc(doc, ret, err);
	if (r == 0)
		r = read_parent(doc, ret, err);
	files = json_object_get(doc, "Files");
	for (size_t i = 0; i < ARRAY_LEN(fds) && r == 0; i++)
		r = open_file(dir_fd, files, file_names[i], fds[i], err);
	if (r == 0 && (f->ram < 0 || f->state < 0 || (f->pages >= 0) != (ret->parent != NULL)))
		r = error_set(err, -EINVAL, "the snapshot has no memory or no state");
	for (size_t i = 0; i < ret->n_disks && r == 0; i++)
		if (ret->disks[i].scratch && f->scratch < 0)
			r = error_set(err, -EINVAL, "the snapshot lacks what the container wrote");
	json_decref(doc);
	if (r < 0) {
		manifest_files_close(f);
		manifest_fini(ret);
	}
	return r;
}

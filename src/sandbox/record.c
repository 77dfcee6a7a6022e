/* SPDX-License-Identifier: Apache-2.0 */
/* See record.h. */
#include "sandbox/record.h"

#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/fsutil.h"

#define RECORD_MAX_SIZE ((size_t)64 << 10)

void sandbox_record_fini(struct sandbox_record *r)
{
	free(r->id);
	free(r->ns);
	free(r->bundle);
	free(r->socket);
	free(r->scratch);
	*r = (struct sandbox_record){ 0 };
}

static json_t *process_json(const struct child_id *id)
{
	return json_pack("{s:i, s:I}", "pid", (int)id->pid, "start", (json_int_t)id->start_time);
}

static int process_parse(const json_t *j, struct child_id *ret)
{
	json_int_t pid = json_integer_value(json_object_get(j, "pid"));
	json_int_t start = json_integer_value(json_object_get(j, "start"));

	if (pid <= 1 || pid > INT32_MAX || start < 0)
		return -EINVAL;
	*ret = (struct child_id){ .pid = (pid_t)pid, .start_time = (uint64_t)start };
	return 0;
}

int sandbox_record_write(const char *dir, const struct sandbox_record *r, struct error *err)
{
	auto_close int dfd = open(dir, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
	json_t *root, *children;
	auto_free char *text = NULL;
	int e;

	if (dfd < 0)
		return error_errno(err, -errno, "open '%s'", dir);
	root = json_pack("{s:i, s:s, s:s, s:s, s:s*, s:s*}", "version", 1, "id", r->id, "namespace",
			 r->ns, "bundle", r->bundle, "socket", r->socket, "scratch", r->scratch);
	children = json_array();
	for (size_t i = 0; i < r->n_children; i++)
		(void)json_array_append_new(children, process_json(&r->children[i]));
	(void)json_object_set_new(root, "children", children);
	if (r->shim.pid)
		(void)json_object_set_new(root, "shim", process_json(&r->shim));
	text = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
	json_decref(root);
	if (!text)
		return error_set(err, -ENOMEM, "out of memory");
	e = fsutil_write_volatile(dfd, RECORD_FILE, text, strlen(text), 0600);
	if (e < 0)
		return error_errno(err, e, "write '%s/" RECORD_FILE "'", dir);
	return 0;
}

static int copy_field(const json_t *root, const char *key, char **ret)
{
	const char *s = json_string_value(json_object_get(root, key));

	*ret = s ? strdup(s) : NULL;
	return s && !*ret ? -ENOMEM : 0;
}

int sandbox_record_read(const char *dir, struct sandbox_record *ret, struct error *err)
{
	auto_close int dfd = open(dir, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
	auto_free char *text = NULL;
	struct sandbox_record r = { 0 };
	json_t *root, *shim, *child, *children;
	size_t i;
	int e;

	if (dfd < 0)
		return error_errno(err, -errno, "open '%s'", dir);
	e = fd_read_file(dfd, RECORD_FILE, RECORD_MAX_SIZE, &text, NULL);
	if (e < 0)
		return error_errno(err, e, "read '%s/" RECORD_FILE "'", dir);
	root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
	if (!json_is_object(root)) {
		json_decref(root);
		return error_set(err, -EINVAL, "'%s/" RECORD_FILE "' is not valid", dir);
	}
	e = copy_field(root, "id", &r.id);
	if (e == 0)
		e = copy_field(root, "namespace", &r.ns);
	if (e == 0)
		e = copy_field(root, "bundle", &r.bundle);
	if (e == 0)
		e = copy_field(root, "socket", &r.socket);
	if (e == 0)
		e = copy_field(root, "scratch", &r.scratch);
	shim = json_object_get(root, "shim");
	if (e == 0 && shim)
		e = process_parse(shim, &r.shim);
	children = json_object_get(root, "children");
	json_array_foreach(children, i, child) {
		if (e == 0 && r.n_children < RECORD_MAX_CHILDREN)
			e = process_parse(child, &r.children[r.n_children++]);
	}
	json_decref(root);
	if (e < 0) {
		sandbox_record_fini(&r);
		return error_errno(err, e, "read '%s/" RECORD_FILE "'", dir);
	}
	*ret = r;
	return 0;
}

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
#include "base/str.h"

#define RECORD_MAX_SIZE ((size_t)64 << 10)

void sandbox_record_fini(struct sandbox_record *r)
{
	free(r->id);
	free(r->ns);
	free(r->bundle);
	free(r->socket);
	free(r->scratch);
	free(r->net);
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

static json_t *net_json(const struct net_holds *n)
{
	json_t *links = json_array();

	for (size_t i = 0; i < n->n; i++) {
		const struct net_hold *h = &n->hold[i];

		(void)json_array_append_new(
			links, json_pack("{s:s, s:s, s:b, s:b, s:b, s:b, s:s, s:s}", "link", h->link,
					 "tap", h->tap, "filter", h->filter, "ingress", h->ingress,
					 "rate", h->rate, "macvtap", h->macvtap, "pci",
					 h->pci.address, "driver", h->pci.driver));
	}
	return json_pack("{s:s, s:I, s:I, s:o}", "netns", n->netns, "dev", (json_int_t)n->dev,
			 "ino", (json_int_t)n->ino, "links", links);
}

static int copy_name(const json_t *j, const char *key, char *out, size_t size)
{
	const char *s = json_string_value(json_object_get(j, key));

	return s ? str_format(out, size, "%s", s) : -EINVAL;
}

static int net_parse(const json_t *j, struct net_holds **ret)
{
	auto_free struct net_holds *n = calloc(1, sizeof(*n));
	const json_t *links = json_object_get(j, "links"), *one;
	size_t i;
	int r;

	if (!n)
		return -ENOMEM;
	r = copy_name(j, "netns", n->netns, sizeof(n->netns));
	n->dev = (uint64_t)json_integer_value(json_object_get(j, "dev"));
	n->ino = (uint64_t)json_integer_value(json_object_get(j, "ino"));
	json_array_foreach(links, i, one) {
		struct net_hold *h = &n->hold[n->n];

		if (r < 0 || n->n == ARRAY_LEN(n->hold))
			break;
		r = copy_name(one, "link", h->link, sizeof(h->link));
		if (r == 0)
			r = copy_name(one, "tap", h->tap, sizeof(h->tap));
		if (r == 0 && json_object_get(one, "pci"))
			r = copy_name(one, "pci", h->pci.address, sizeof(h->pci.address));
		if (r == 0 && json_object_get(one, "driver"))
			r = copy_name(one, "driver", h->pci.driver, sizeof(h->pci.driver));
		h->filter = json_is_true(json_object_get(one, "filter"));
		h->ingress = json_is_true(json_object_get(one, "ingress"));
		h->rate = json_is_true(json_object_get(one, "rate"));
		h->macvtap = json_is_true(json_object_get(one, "macvtap"));
		n->n++;
	}
	if (r == 0)
		*ret = take_ptr(&n);
	return r;
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
	if (r->net)
		(void)json_object_set_new(root, "network", net_json(r->net));
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
	json_t *root, *shim, *child, *children, *network;
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
	network = json_object_get(root, "network");
	if (e == 0 && network)
		e = net_parse(network, &r.net);
	json_decref(root);
	if (e < 0) {
		sandbox_record_fini(&r);
		return error_errno(err, e, "read '%s/" RECORD_FILE "'", dir);
	}
	*ret = r;
	return 0;
}

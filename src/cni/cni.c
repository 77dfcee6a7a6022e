/* ADD, CHECK and DEL of attachments, and the files that remember them. */
#include "cni/cni.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/fsutil.h"
#include "base/str.h"
#include "cni/internal.h"

enum { LOCK_STEP_MS = 20, DEFAULT_LOCK_MS = 60000 };
#define SUFFIX ".attachment"

/* An attachment as its file has it. */
struct saved {
	char *file;             /* its name */
	json_t *doc;
	struct cni_network *net;
	struct cni_attachment at;
	json_t *result;         /* NULL: ADD was never finished */
};

static void saved_fini(struct saved *s)
{
	free(s->file);
	json_decref(s->doc);
	cni_network_free(s->net);
}
#define auto_saved __attribute__((cleanup(saved_fini)))

static const char *plugin_dirs(const struct cni *cni)
{
	const char *env = getenv("CNI_PATH");

	return cni->plugin_dirs ? cni->plugin_dirs : !str_empty(env) ? env : CNI_PLUGIN_DIRS;
}

/* The directory, locked; plugins inherit it. */
static int lock_dir(const struct cni *cni, struct error *err)
{
	auto_close int fd = open(cni->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	unsigned limit = cni->timeout_ms ? cni->timeout_ms : DEFAULT_LOCK_MS;

	if (fd < 0)
		return error_errno(err, -errno, "open '%s'", cni->dir);
	for (unsigned waited = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; waited += LOCK_STEP_MS) {
		const struct timespec step = { .tv_nsec = LOCK_STEP_MS * 1000000L };

		if (errno != EWOULDBLOCK && errno != EINTR)
			return error_errno(err, -errno, "lock '%s'", cni->dir);
		if (waited >= limit)
			return error_set(err, -EBUSY, "a network plugin of this container is still running");
		(void)nanosleep(&step, NULL);
	}
	return take_fd(&fd);
}

static int check_attachment(const struct cni_attachment *at, struct error *err)
{
	size_t n = strlen(at->ifname);

	if (!cni_valid_name(at->container))
		return error_set(err, -EINVAL, "'%s' cannot be the id of a container", at->container);
	if (!n || n > CNI_IFNAME_MAX || strpbrk(at->ifname, "/: \t\n") || str_eq(at->ifname, ".") ||
	    str_eq(at->ifname, ".."))
		return error_set(err, -EINVAL, "'%s' cannot be the name of an interface", at->ifname);
	if (at->netns[0] != '/')
		return error_set(err, -EINVAL, "'%s' is not an absolute path", at->netns);
	if (at->args && strpbrk(at->args, "\n"))
		return error_set(err, -EINVAL, "the arguments of a plugin are one line");
	return 0;
}

static int save(int dir, const char *file, json_t *doc, struct error *err)
{
	auto_free char *text = json_dumps(doc, JSON_INDENT(1));
	int r = text ? fsutil_write_volatile(dir, file, text, strlen(text), 0600) : -ENOMEM;

	return r < 0 ? error_errno(err, r, "write '%s'", file) : 0;
}

static int load(int dir, const char *file, struct saved *s, struct error *err)
{
	auto_free char *text = NULL, *list = NULL;
	json_error_t why;
	size_t len = 0;
	int r = fd_read_file(dir, file, 8 * CNI_TEXT_MAX, &text, &len);

	if (r == -ENOENT)
		return r;
	if (r < 0)
		return error_errno(err, r, "read '%s'", file);
	s->doc = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);
	s->file = strdup(file);
	list = json_dumps(json_object_get(s->doc, "network"), JSON_COMPACT);
	if (!s->doc || !s->file || !list)
		return error_set(err, -EINVAL, "'%s' is damaged", file);
	r = cni_network_parse(list, strlen(list), file, &s->net, err);
	if (r < 0)
		return r;
	s->at = (struct cni_attachment){
		.container = json_string_value(json_object_get(s->doc, "container")),
		.netns = json_string_value(json_object_get(s->doc, "netns")),
		.ifname = json_string_value(json_object_get(s->doc, "ifname")),
		.args = json_string_value(json_object_get(s->doc, "args")),
		.capabilities = json_object_get(s->doc, "capabilities"),
	};
	s->result = json_object_get(s->doc, "result");
	if (!s->at.container || !s->at.netns || !s->at.ifname)
		return error_set(err, -EINVAL, "'%s' is damaged", file);
	return check_attachment(&s->at, err);
}

/* What one plugin reads: its part of the list, and what the runtime adds. */
static json_t *make_request(const struct cni_network *net, json_t *plugin,
			    const struct cni_attachment *at, json_t *prev)
{
	json_t *req = json_deep_copy(plugin), *caps = json_object_get(plugin, "capabilities");
	json_t *config = json_object(), *on;
	const char *key;
	int r = req && config ? 0 : -1;

	if (r == 0)
		r = json_object_set_new(req, "name", json_string(net->name)) |
		    json_object_set_new(req, "cniVersion", json_string(net->version));
	json_object_foreach(caps, key, on) {
		json_t *value = json_object_get(at->capabilities, key);

		if (r == 0 && json_is_true(on) && value)
			r = json_object_set(config, key, value);
	}
	if (r == 0 && json_object_size(config))
		r = json_object_set(req, "runtimeConfig", config);
	if (r == 0 && prev)
		r = json_object_set(req, "prevResult", prev);
	json_decref(config);
	if (r == 0)
		return req;
	json_decref(req);
	return NULL;
}

static int call(const struct cni *cni, const struct cni_network *net, size_t i, const char *command,
		const struct cni_attachment *at, json_t *prev, int lock, json_t **ret_answer,
		struct error *err)
{
	json_t *plugin = json_array_get(net->plugins, i);
	json_t *request = make_request(net, plugin, at, prev);
	const struct cni_exec x = {
		.dirs = plugin_dirs(cni),
		.type = json_string_value(json_object_get(plugin, "type")),
		.command = command,
		.at = at,
		/* DEL of a namespace that has gone: the plugins free what is outside of it. */
		.netns = str_eq(command, "DEL") && access(at->netns, F_OK) < 0 ? NULL : at->netns,
		.request = request,
		.lock_fd = lock,
		.timeout_ms = cni->timeout_ms,
	};
	int r = request ? cni_exec(&x, ret_answer, err) : error_set(err, -ENOMEM, "out of memory");

	json_decref(request);
	return r < 0 ? error_prefix(err, r, "network '%s'", net->name) : 0;
}

/* All plugins, the last first; the error is the first that occurs. */
static int del_plugins(const struct cni *cni, const struct cni_network *net,
		       const struct cni_attachment *at, json_t *result, int lock, struct error *err)
{
	json_t *prev = cni_version_at_least(net->version, "0.4.0") ? result : NULL;
	int failed = 0;

	for (size_t i = json_array_size(net->plugins); i-- > 0;) {
		struct error why = { 0 };
		json_t *answer = NULL;
		int r = call(cni, net, i, "DEL", at, prev, lock, &answer, &why);

		json_decref(answer);
		if (r < 0 && !failed)
			failed = error_set(err, r, "%s", error_text(&why));
	}
	return failed;
}

/*
 * Some plugins' DEL does nothing without a result, so what each ADD gave is saved before the next
 * one runs. @doc is the attachment's; its "partial" is the last result also on failure.
 */
static int add_plugins(const struct cni *cni, const struct cni_network *net,
		       const struct cni_attachment *at, int lock, const char *file, json_t *doc,
		       struct error *err)
{
	for (size_t i = 0; i < json_array_size(net->plugins); i++) {
		json_t *answer = NULL;
		int r = call(cni, net, i, "ADD", at, json_object_get(doc, "partial"), lock, &answer,
			     err);

		if (r == 0 && !json_is_object(answer)) {
			r = error_set(err, -EPROTO, "network '%s': plugin %s: ADD: it gave no result",
				      net->name,
				      json_string_value(json_object_get(json_array_get(net->plugins, i),
									"type")));
		}
		if (r == 0 && json_object_set(doc, "partial", answer) < 0)
			r = error_set(err, -ENOMEM, "out of memory");
		json_decref(answer);
		if (r == 0)
			r = save(lock, file, doc, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static json_t *describe(const struct cni_network *net, const struct cni_attachment *at)
{
	json_t *doc = json_pack("{s:s, s:s, s:s, s:O, s:s*}", "container", at->container, "netns",
				at->netns, "ifname", at->ifname, "network", net->doc, "args", at->args);

	if (doc && at->capabilities && json_object_set(doc, "capabilities", at->capabilities) < 0) {
		json_decref(doc);
		return NULL;
	}
	return doc;
}

/* Before anything is acquired: an ADD that cannot come to its end is not begun. */
static int check_plugins(const struct cni *cni, const struct cni_network *net, struct error *err)
{
	for (size_t i = 0; i < json_array_size(net->plugins); i++) {
		json_t *type = json_object_get(json_array_get(net->plugins, i), "type");
		auto_free char *path = NULL;
		int r = cni_find_plugin(plugin_dirs(cni), json_string_value(type), &path, err);

		if (r < 0)
			return error_prefix(err, r, "network '%s'", net->name);
	}
	return 0;
}

int cni_add(const struct cni *cni, const struct cni_network *net, const struct cni_attachment *at,
	    struct cni_result **ret, struct error *err)
{
	auto_free char *file = str_printf("%s" SUFFIX, at->ifname);
	auto_cni_result struct cni_result *result = NULL;
	auto_close int lock = -1;
	struct error ignored = { 0 };
	json_t *doc;
	int r = check_attachment(at, err);

	if (r == 0)
		r = check_plugins(cni, net, err);
	if (r < 0)
		return r;
	lock = lock_dir(cni, err);
	if (lock < 0)
		return lock;
	doc = describe(net, at);
	if (!file || !doc) {
		json_decref(doc);
		return error_set(err, -ENOMEM, "out of memory");
	}
	if (!faccessat(lock, file, F_OK, 0))
		r = error_set(err, -EEXIST, "interface %s has been added already", at->ifname);
	if (r == 0)
		r = save(lock, file, doc, err);
	if (r < 0) {
		json_decref(doc);
		return r;
	}
	r = add_plugins(cni, net, at, lock, file, doc, err);
	if (r == 0) {
		r = cni_result_parse(json_object_get(doc, "partial"), &result, err);
		if (r < 0)
			(void)error_prefix(err, r, "network '%s': the plugins' result", net->name);
	}
	if (r == 0 && json_object_set(doc, "result", json_object_get(doc, "partial")) < 0)
		r = error_set(err, -ENOMEM, "out of memory");
	if (r == 0)
		r = save(lock, file, doc, err);
	if (r < 0 &&
	    del_plugins(cni, net, at, json_object_get(doc, "partial"), lock, &ignored) == 0)
		(void)unlinkat(lock, file, 0);
	json_decref(doc);
	if (r < 0)
		return r;
	*ret = take_ptr(&result);
	return 0;
}

static int open_saved(const struct cni *cni, const char *ifname, int lock, struct saved *s,
		      struct error *err)
{
	auto_free char *file = str_printf("%s" SUFFIX, ifname);

	(void)cni;
	return file ? load(lock, file, s, err) : error_set(err, -ENOMEM, "out of memory");
}

int cni_check(const struct cni *cni, const char *ifname, struct error *err)
{
	auto_saved struct saved s = { 0 };
	auto_close int lock = lock_dir(cni, err);
	int r = lock < 0 ? lock : open_saved(cni, ifname, lock, &s, err);

	if (r == -ENOENT)
		return error_set(err, r, "there is no interface %s", ifname);
	if (r < 0)
		return r;
	if (!s.result)
		return error_set(err, -ENODATA, "interface %s was never completely made", ifname);
	if (s.net->disable_check || !cni_version_at_least(s.net->version, "0.4.0"))
		return 0;
	for (size_t i = 0; i < json_array_size(s.net->plugins) && r == 0; i++) {
		json_t *answer = NULL;

		r = call(cni, s.net, i, "CHECK", &s.at, s.result, lock, &answer, err);
		json_decref(answer);
	}
	return r;
}

static int del_locked(const struct cni *cni, const char *file, int lock, struct error *err)
{
	auto_saved struct saved s = { 0 };
	int r = load(lock, file, &s, err);

	if (r == -ENOENT)
		return 0;
	if (r == 0)
		r = del_plugins(cni, s.net, &s.at, json_object_get(s.doc, "partial"), lock, err);
	if (r < 0)
		return r;
	return unlinkat(lock, file, 0) < 0 ? error_errno(err, -errno, "remove '%s'", file) : 0;
}

int cni_del(const struct cni *cni, const char *ifname, struct error *err)
{
	auto_free char *file = str_printf("%s" SUFFIX, ifname);
	auto_close int lock = lock_dir(cni, err);

	if (lock < 0)
		return lock == -ENOENT ? 0 : lock;
	return file ? del_locked(cni, file, lock, err) : error_set(err, -ENOMEM, "out of memory");
}

static int is_attachment(const struct dirent *e)
{
	return e->d_name[0] != '.' && str_has_suffix(e->d_name, SUFFIX);
}

static int last_first(const struct dirent **a, const struct dirent **b)
{
	return strverscmp((*b)->d_name, (*a)->d_name);
}

/* Calls @fn for each file; goes on after an error and gives the first. */
static int for_all(const struct cni *cni,
		   int (*fn)(const struct cni *cni, const char *file, int lock, struct error *err),
		   struct error *err)
{
	struct dirent **names = NULL;
	auto_close int lock = lock_dir(cni, err);
	int n, failed = 0;

	if (lock < 0) {
		if (lock == -ENOENT)
			error_clear(err);
		return lock == -ENOENT ? 0 : lock;
	}
	n = scandirat(lock, ".", &names, is_attachment, last_first);
	if (n < 0)
		return error_errno(err, -errno, "read '%s'", cni->dir);
	for (int i = 0; i < n; i++) {
		struct error why = { 0 };
		int r = fn(cni, names[i]->d_name, lock, &why);

		if (r < 0 && !failed)
			failed = error_set(err, r, "%s", error_text(&why));
		free(names[i]);
	}
	free(names);
	return failed;
}

int cni_del_all(const struct cni *cni, struct error *err)
{
	return for_all(cni, del_locked, err);
}

static int forget(const struct cni *cni, const char *file, int lock, struct error *err)
{
	(void)cni;
	return unlinkat(lock, file, 0) < 0 ? error_errno(err, -errno, "remove '%s'", file) : 0;
}

int cni_forget_all(const struct cni *cni, struct error *err)
{
	return for_all(cni, forget, err);
}

int cni_cached(const struct cni *cni, const char *ifname, struct cni_result **ret,
	       struct error *err)
{
	auto_saved struct saved s = { 0 };
	auto_close int dir = open(cni->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int r = dir < 0 ? error_errno(err, -errno, "open '%s'", cni->dir) :
			  open_saved(cni, ifname, dir, &s, err);

	if (r < 0)
		return r;
	return s.result ? cni_result_parse(s.result, ret, err) :
			  error_set(err, -ENODATA, "interface %s was never completely made", ifname);
}

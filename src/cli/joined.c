#include "cli/joined.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/connect.h"
#include "cli/lifecycle.h"
#include "cli/netopts.h"
#include "sandbox/sandbox.h"

enum { NAMES_MAX = 200 };

static int oom(struct error *err)
{
	return error_set(err, -ENOMEM, "out of memory");
}

bool joined_is(const struct container *c)
{
	return *container_str(c, "Sandbox");
}

const char *joined_owner(const struct container *c)
{
	return joined_is(c) ? container_str(c, "Sandbox") : c->id;
}

static const char *hostname_of(const struct container *c)
{
	return json_string_value(json_object_get(json_object_get(c->rec, "Net"), "Hostname"));
}

const char *joined_hostname(const struct container *c)
{
	return joined_is(c) ? hostname_of(c) : NULL;
}

/* Notes @other, and the owner of the machine it runs in, in the record of @c. */
static int note(struct container *c, const struct container *other, const struct container *owner)
{
	const char *host = hostname_of(owner);
	auto_free char *mode = cli_format(NETOPTS_CONTAINER "%s", other->id);
	json_t *net = json_pack("{s:s, s:s}", "Mode", "container", "Hostname", host ? host : "");

	if (!mode || !net || json_object_set_new(c->rec, "Net", net) < 0)
		return -ENOMEM;
	container_set_str(c, "NetworkMode", mode);
	container_set_str(c, "Sandbox", owner->id);
	return 0;
}

int joined_plan(const struct run_options *o, struct container *c, struct error *err)
{
	const char *name = netopts_container(o), *state;
	struct container *other = NULL, *owner = NULL;
	struct error why = { 0 };
	int r;

	if (!name)
		return 0;
	r = container_find(name, &other, &why);
	if (r == 0)
		r = lifecycle_refresh(other, &why);
	if (r == 0) {
		state = container_str(other, "State");
		if (strcmp(state, "running") && strcmp(state, "paused"))
			r = error_set(&why, -ESRCH, "that container is not running: it is %s", state);
	}
	if (r == 0)
		r = container_find(joined_owner(other), &owner, &why);
	if (r == 0 && note(c, other, owner) < 0)
		r = oom(&why);
	container_free(other);
	container_free(owner);
	return r < 0 ? error_set(err, r, "--network container:%s: %s", name, error_text(&why)) : 0;
}

int joined_apply(const struct container *c, Grpc__Spec *spec, struct error *err)
{
	struct container *owner;
	int r;

	if (oci_annotation_set(spec, SANDBOX_JOIN, joined_owner(c)) < 0)
		return oom(err);
	r = container_find(joined_owner(c), &owner, err);
	if (r < 0)
		return r;
	if (json_is_true(json_object_get(json_object_get(owner->rec, "Net"), "Files")))
		r = connect_add_files(owner, spec, err);
	container_free(owner);
	return r;
}

int joined_check(const struct container *c, struct error *err)
{
	const char *mode = container_str(c, "NetworkMode");
	struct container *owner = NULL;
	struct error why = { 0 };
	struct task *t = NULL;
	int r = container_find(joined_owner(c), &owner, &why);

	if (r == 0)
		r = lifecycle_connect(owner, &t, &why);
	task_close(t);
	container_free(owner);
	return r < 0 ? error_set(err, -ESRCH, "--network %s: its virtual machine has ended", mode) : 0;
}

static bool is_over(const struct container *c)
{
	const char *state = container_str(c, "State");

	return !strcmp(state, "exited") || !strcmp(state, "created");
}

int joined_none(const struct container *c, struct error *err)
{
	struct buf names = BUF_INIT(NAMES_MAX);
	struct error why = { 0 };
	struct container_list all;
	auto_free char *text = NULL;
	int r;

	if (joined_is(c))
		return 0;
	r = container_list(&all, err);
	if (r < 0)
		return r;
	for (size_t i = 0; i < all.n; i++) {
		struct container *other = all.v[i];

		if (!joined_is(other) || strcmp(joined_owner(other), c->id) ||
		    lifecycle_refresh(other, &why) < 0 || is_over(other))
			continue;
		/* Those that do not fit are as good as named. */
		(void)!buf_printf(&names, "%s%s", names.len ? ", " : "", container_str(other, "Name"));
	}
	container_list_fini(&all);
	if (names.len && buf_take_str(&names, &text) == 0)
		r = error_set(err, -EBUSY, "other containers run in the virtual machine of %s: remove "
			      "them first: %s", container_str(c, "Name"), text);
	buf_fini(&names);
	return r;
}

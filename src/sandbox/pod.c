/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A sandbox as a pod: made before any container and alive without one, waited for as a whole, in the
 * cgroup that was made for it.
 */
#include <stdlib.h>
#include <string.h>

#include "oci/oci.h"
#include "sandbox/internal.h"

struct pod_waiter {
	struct pod_waiter *next;
	sandbox_done_fn ready; /* one of the two */
	sandbox_exit_fn gone;
	void *arg;
};

int sandbox_make_pod(struct sandbox *s, const struct sandbox_pod *pod, struct error *err)
{
	auto_free char *hostname = pod->hostname ? strdup(pod->hostname) : NULL;
	auto_free char *netns = pod->netns ? strdup(pod->netns) : NULL;
	auto_free char *cgroup = pod->cgroup_parent ? strdup(pod->cgroup_parent) : NULL;

	if (s->lasting)
		return error_set(err, -EEXIST, "sandbox '%s' has been created already", s->id);
	if (s->state != VM_NEW)
		return error_set(err, -EBUSY, "the virtual machine of '%s' runs already", s->id);
	if ((pod->hostname && !hostname) || (pod->netns && !netns) ||
	    (pod->cgroup_parent && !cgroup))
		return error_set(err, -ENOMEM, "out of memory");
	s->is_pod = s->lasting = true;
	s->pod_memory = pod->memory;
	s->pod_quota = pod->cpu_quota;
	s->pod_period = pod->cpu_period;
	free(s->hostname);
	s->hostname = take_ptr(&hostname);
	free(s->cgroup_parent);
	s->cgroup_parent = take_ptr(&cgroup);
	if (netns) {
		free(s->netns);
		s->netns = take_ptr(&netns);
	}
	(void)clock_gettime(CLOCK_REALTIME, &s->created_at);
	return 0;
}

static struct pod_waiter *waiter_add(struct sandbox *s, void *arg)
{
	struct pod_waiter *w = calloc(1, sizeof(*w));

	if (w) {
		w->arg = arg;
		w->next = s->pod_waiters;
		s->pod_waiters = w;
	}
	return w;
}

void sandbox_when_ready(struct sandbox *s, sandbox_done_fn done, void *arg)
{
	struct error err = { 0 };
	struct pod_waiter *w;

	if (s->prepared || sandbox_check_alive(s, &err) < 0) {
		done(arg, err.code ? &err : NULL);
		return;
	}
	w = waiter_add(s, arg);
	if (w) {
		w->ready = done;
		return;
	}
	(void)error_set(&err, -ENOMEM, "out of memory");
	done(arg, &err);
}

void sandbox_when_gone(struct sandbox *s, sandbox_exit_fn done, void *arg)
{
	struct error err = { 0 };
	struct pod_waiter *w;

	if (s->state == VM_GONE) {
		done(arg, NULL, &s->pod_exit);
		return;
	}
	w = waiter_add(s, arg);
	if (w) {
		w->gone = done;
		return;
	}
	(void)error_set(&err, -ENOMEM, "out of memory");
	done(arg, &err, NULL);
}

/* Those of one kind; they may ask again. */
static void run_waiters(struct sandbox *s, bool gone, const struct error *err)
{
	struct pod_waiter **at = &s->pod_waiters, *w, *run = NULL;

	while ((w = *at)) {
		if (gone || w->ready) {
			*at = w->next;
			w->next = run;
			run = w;
		} else {
			at = &w->next;
		}
	}
	while ((w = run)) {
		run = w->next;
		if (w->ready)
			w->ready(w->arg, err);
		else
			w->gone(w->arg, NULL, &s->pod_exit);
		free(w);
	}
}

void pod_prepared(struct sandbox *s)
{
	s->prepared = true;
	run_waiters(s, false, NULL);
}

void pod_gone(struct sandbox *s)
{
	s->pod_exit = (struct sandbox_exit){ .pid = sandbox_vm_pid(s), .status = s->gone_status };
	(void)clock_gettime(CLOCK_REALTIME, &s->pod_exit.at);
	/* A sandbox that was stopped has ended well. */
	if (s->stopping)
		s->pod_exit.status = 0;
	run_waiters(s, true, &s->failure);
}

void sandbox_pod_state(const struct sandbox *s, struct sandbox_pod_state *ret)
{
	*ret = (struct sandbox_pod_state){
		.ready = s->prepared && s->state == VM_READY,
		.gone = s->state == VM_GONE,
		.pid = sandbox_vm_pid(s),
		.created_at = s->created_at,
		.exit = s->pod_exit,
	};
}

/* --- cgroup --- */

/* systemd's "a-b.slice" lies in "a.slice". */
static char *slice_path(const char *slice)
{
	struct buf b = BUF_INIT(0);
	char *path = NULL;
	int r = 0;

	for (const char *dash = strchr(slice, '-'); dash && r == 0; dash = strchr(dash + 1, '-'))
		r = buf_printf(&b, "/%.*s.slice", (int)(dash - slice), slice);
	if (r == 0)
		r = buf_printf(&b, "/%s", slice);
	if (r == 0)
		r = buf_take_str(&b, &path);
	buf_fini(&b);
	return r < 0 ? NULL : path;
}

/* "/kubepods/burstable/podX" (with or without a last part for the container), "X.slice:prefix:id" */
char *pod_cgroup(const struct sandbox *s, const Grpc__Spec *spec)
{
	const char *path = spec && spec->linux ? spec->linux->cgroupspath : NULL, *end;

	if (str_eq(s->ns, SANDBOX_OWN_NAMESPACE))
		return NULL;
	if (!str_empty(s->cgroup_parent)) {
		end = s->cgroup_parent + strlen(s->cgroup_parent);
		return end - s->cgroup_parent > 6 && str_eq(end - 6, ".slice") &&
				       !strchr(s->cgroup_parent, '/') ?
			       slice_path(s->cgroup_parent) :
			       strdup(s->cgroup_parent);
	}
	if (str_empty(path))
		return NULL;
	end = strchr(path, ':');
	if (end) {
		auto_free char *slice = strndup(path, (size_t)(end - path));

		return slice && !strchr(slice, '/') ? slice_path(slice) : NULL;
	}
	end = strrchr(path, '/');
	return path[0] == '/' && end != path ? strndup(path, (size_t)(end - path)) : NULL;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Volumes, and what containers use of them, as they pass to the program that a shim goes on in. */
#include <stdlib.h>
#include <string.h>

#include "sandbox/handover.h"
#include "sandbox/volumes_priv.h"

bool volumes_busy(const struct sandbox *s)
{
	const struct volume *v;

	list_for_each(v, &s->volumes, node)
		if (!v->gate.open)
			return true;
	return false;
}

static HandoverVolume *save_volume(const struct volume *v, struct arena *a)
{
	HandoverVolume *m = HANDOVER_NEW(a, HandoverVolume, caisson__handover__v1__volume__init);

	if (!m)
		return NULL;
	m->kind = v->kind;
	m->source = handover_text(v->source);
	m->guest = handover_text(v->guest);
	m->mounted = handover_text(v->mounted);
	m->fstype = handover_text(v->fstype);
	m->device = handover_text(v->device);
	m->options = v->options;
	m->n_options = strv_len((const char *const *)v->options);
	m->mode = v->st.st_mode;
	m->uid = v->st.st_uid;
	m->gid = v->st.st_gid;
	m->size = v->size;
	m->page = v->page;
	m->read_only = v->read_only;
	m->disk = handover_disk(a, &v->disk);
	m->mirror = handover_text(v->mirror ? v->guest + strlen(MIRROR_ROOT "/") : NULL);
	m->scratch = v->scratch ? scratch_save(v->scratch, a) : NULL;
	m->failure = handover_failure(a, &v->gate.failure);
	return m;
}

void volumes_save(const struct sandbox *s, struct arena *a, HandoverSandbox *m)
{
	const struct volume *v;
	size_t n = 0;

	list_for_each(v, &s->volumes, node)
		n++;
	m->volumes = arena_alloc(a, n, sizeof(*m->volumes));
	if (!m->volumes)
		return;
	list_for_each(v, &s->volumes, node)
		m->volumes[m->n_volumes++] = save_volume(v, a);
}

static int restore_volume(struct sandbox *s, const HandoverVolume *m)
{
	struct volume *v = calloc(1, sizeof(*v));
	int r;

	if (!v)
		return -ENOMEM;
	v->s = s;
	v->kind = (enum volsource_kind)m->kind;
	v->st.st_mode = m->mode;
	v->st.st_uid = m->uid;
	v->st.st_gid = m->gid;
	v->size = m->size;
	v->page = m->page;
	v->read_only = m->read_only;
	list_init(&v->node);
	list_push_back(&s->volumes, &v->node);
	r = handover_copy(&v->source, m->source);
	if (r == 0)
		r = handover_copy(&v->guest, m->guest);
	if (r == 0)
		r = handover_copy(&v->mounted, m->mounted);
	if (r == 0)
		r = handover_copy(&v->fstype, m->fstype);
	if (r == 0)
		r = handover_copy(&v->device, m->device);
	for (size_t i = 0; i < m->n_options && r == 0; i++)
		r = strv_append(&v->options, m->options[i]);
	if (r == 0)
		r = handover_get_disk(m->disk, &v->disk);
	if (r == 0 && m->scratch)
		r = scratch_restore(s, m->scratch, &v->scratch);
	if (r == 0 && (!v->source || !v->guest))
		r = -EINVAL;
	/* It sends all of the source again: what the guest has already stays as it is. */
	if (r == 0 && *m->mirror && mirror_new(s->loop, v->source, m->mirror, &v->mirror, NULL) < 0)
		log_warn("changes of '%s' will not be seen by the guest", v->source);
	handover_get_failure(m->failure, &v->gate.failure);
	v->gate.open = true;
	return r;
}

int volumes_restore(struct sandbox *s, const HandoverSandbox *m)
{
	int r = 0;

	for (size_t i = 0; i < m->n_volumes && r == 0; i++)
		r = restore_volume(s, m->volumes[i]);
	return r;
}

void volumes_resume(struct sandbox *s)
{
	struct volume *v;

	list_for_each(v, &s->volumes, node)
		volume_start_mirror(v);
}

static int place_of(const struct sandbox *s, const struct volume *wanted)
{
	const struct volume *v;
	int n = 0;

	list_for_each(v, &s->volumes, node) {
		if (v == wanted)
			return n;
		n++;
	}
	return -1;
}

void volumes_save_uses(const struct container *c, struct arena *a, HandoverContainer *m)
{
	Caisson__Handover__V1__VolumeUse *v = arena_alloc(a, c->n_uses, sizeof(*v));

	m->uses = arena_alloc(a, c->n_uses, sizeof(*m->uses));
	for (size_t i = 0; v && m->uses && i < c->n_uses; i++) {
		caisson__handover__v1__volume_use__init(&v[i]);
		v[i].volume = place_of(c->s, c->uses[i].volume);
		v[i].guest = handover_text(c->uses[i].guest);
		v[i].subpath = handover_text(c->uses[i].subpath);
		m->uses[m->n_uses++] = &v[i];
	}
}

int volumes_restore_uses(struct container *c, const HandoverContainer *m)
{
	c->uses = calloc(m->n_uses + 1, sizeof(*c->uses));
	if (!c->uses)
		return -ENOMEM;
	for (; c->n_uses < m->n_uses; c->n_uses++) {
		struct volume_use *u = &c->uses[c->n_uses];
		const Caisson__Handover__V1__VolumeUse *from = m->uses[c->n_uses];
		struct volume *v;
		int n = from->volume;

		list_for_each(v, &c->s->volumes, node)
			if (n-- == 0)
				u->volume = v;
		if (from->volume >= 0 && !u->volume)
			return -EINVAL;
		if (handover_copy(&u->guest, from->guest) < 0 ||
		    handover_copy(&u->subpath, from->subpath) < 0)
			return -ENOMEM;
	}
	return 0;
}

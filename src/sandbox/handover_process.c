/* SPDX-License-Identifier: Apache-2.0 */
/* A container's processes as messages, see handover.h. */
#include <stdlib.h>

#include "oci/oci.h"
#include "sandbox/handover.h"

static HandoverProcess *save_process(const struct process *p, struct arena *a)
{
	HandoverProcess *m = HANDOVER_NEW(a, HandoverProcess, caisson__handover__v1__process__init);

	if (!m)
		return NULL;
	m->exec_id = handover_text(p->exec_id);
	m->state = p->state;
	m->terminal = p->terminal;
	m->uri_in = handover_text(p->uri_in);
	m->uri_out = handover_text(p->uri_out);
	m->uri_err = handover_text(p->uri_err);
	m->spec = p->state == PROCESS_CREATED ? p->spec : NULL;
	m->exit = handover_exit(a, &p->exit);
	m->wait_call = p->wait_call;
	m->never_ran = p->never_ran;
	if (p->io)
		stdio_save(p->io, a, m);
	return m;
}

void processes_save(const struct container *c, struct arena *a, HandoverContainer *m)
{
	const struct process *p;
	size_t n = 0;

	list_for_each(p, &c->processes, node)
		n++;
	m->processes = arena_alloc(a, n, sizeof(*m->processes));
	if (!m->processes || !c->init)
		return;
	m->processes[m->n_processes++] = save_process(c->init, a);
	list_for_each(p, &c->processes, node)
		if (p != c->init)
			m->processes[m->n_processes++] = save_process(p, a);
}

static int restore_process(struct container *c, const HandoverProcess *m)
{
	const struct sandbox_stdio io = { m->terminal, m->uri_in, m->uri_out, m->uri_err };
	bool is_init = !c->init;
	struct process *p;
	int r;

	if (m->state > PROCESS_STOPPED || m->state == PROCESS_STARTING ||
	    is_init != !*m->exec_id)
		return -EINVAL;
	p = process_new(c, is_init ? NULL : m->exec_id, &io, NULL);
	if (!p)
		return -ENOMEM;
	if (is_init)
		c->init = p;
	p->state = (enum process_state)m->state;
	p->exit = handover_get_exit(m->exit);
	p->never_ran = m->never_ran;
	if (m->spec) {
		p->spec = oci_process_copy(m->spec);
		if (!p->spec)
			return -ENOMEM;
	}
	r = stdio_restore(c->s->loop, m, &p->io);
	/* An exec is connected when it starts. */
	if (r == 0 && !is_init && p->state == PROCESS_CREATED && (!p->io || !p->spec))
		r = -EINVAL;
	return r == 0 && m->wait_call && c->s->agent ? process_resume_wait(p, m->wait_call) : r;
}

int processes_restore(struct container *c, const HandoverContainer *m)
{
	int r = m->n_processes ? 0 : -EINVAL;

	for (size_t i = 0; i < m->n_processes && r == 0; i++)
		r = restore_process(c, m->processes[i]);
	return r;
}

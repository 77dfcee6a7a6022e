/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Is the agent still there? Its connection ends with the VM or with the agent, but stays when the guest
 * hangs. So it is asked from time to time, and a VM whose agent has not answered CHECKS times as
 * often in turn is ended, with all that waits for an answer. Counted are questions, not time: a host
 * that slept, or a shim that was stopped, finds the answer before the next one is due. The agent does
 * one thing after the other, and some take long (to write a disk out): while it is asked for something
 * else, it has twice the time.
 */
#include "sandbox/internal.h"

#define CHECKS 4u /* questions within the time limit */

static void next_check(struct sandbox *s);

static bool lost(const struct sandbox *s)
{
	unsigned limit = agent_client_busy(s->agent) > 1 ? 2 * CHECKS : CHECKS;

	return s->health.missed >= limit;
}

static void on_answer(void *arg, const struct error *err, const Grpc__HealthCheckResponse *answer)
{
	struct sandbox *s = arg;

	(void)answer;
	s->health.asked = false;
	/* An agent that has other words for "healthy", or none, has answered. */
	if (!err || err->code != -ETIMEDOUT)
		s->health.missed = 0;
}

static void on_time(void *arg)
{
	const Grpc__CheckRequest req = GRPC__CHECK_REQUEST__INIT;
	struct sandbox *s = arg;

	s->health.timer = NULL;
	if (s->state != VM_READY || !agent_client_alive(s->agent))
		return;
	/* While it is saved the machine stands still. */
	if (s->snapshot)
		s->health.missed = 0;
	else if (s->health.asked)
		s->health.missed++;
	if (lost(s)) {
		if (!s->failure.code)
			(void)error_set(&s->failure, -ETIMEDOUT,
					"the agent in the virtual machine has not answered for %u ms",
					s->config->agent_timeout_ms);
		if (s->vmm)
			vmm_kill(s->vmm);
		return;
	}
	if (!s->health.asked && agent_check(s->agent, &req, on_answer, s) == 0)
		s->health.asked = true;
	next_check(s);
}

static void next_check(struct sandbox *s)
{
	if (loop_timer_start(s->loop, s->config->agent_timeout_ms / CHECKS, on_time, s,
			     &s->health.timer) < 0)
		log_warn("no memory to look after the agent");
}

void health_start(struct sandbox *s)
{
	s->health.asked = false;
	s->health.missed = 0;
	if (s->config->agent_timeout_ms && !s->health.timer)
		next_check(s);
}

void health_stop(struct sandbox *s)
{
	loop_timer_cancel(s->health.timer);
	s->health.timer = NULL;
}

#include "cli/restart.h"

#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/base.h"
#include "cli/launch.h"

#define FIRST_DELAY_MS 100
#define LAST_DELAY_MS  60000
#define SETTLED_S      10 /* one that ran this long was well: the delay begins anew */

/* *ret_tries: how often; 0: without a bound. False: not a policy that starts anything. */
static bool is_on_failure(const char *policy, uint32_t *ret_tries)
{
	*ret_tries = 0;
	if (!str_has_prefix(policy, "on-failure"))
		return false;
	policy += strlen("on-failure");
	return !*policy || (*policy == ':' && str_parse_u32(policy + 1, ret_tries) == 0);
}

int restart_check(const char *policy, struct error *err)
{
	uint32_t tries;

	if (str_eq(policy, "no") || str_eq(policy, "always") || str_eq(policy, "unless-stopped") ||
	    is_on_failure(policy, &tries))
		return 0;
	return error_set(err, -EINVAL,
			 "--restart takes no, always, unless-stopped or on-failure[:N], not '%s'", policy);
}

void restart_hold(struct container *c)
{
	struct error ignored;
	auto_close int lock = -1;

	if (str_empty(container_str(c, "RestartPolicy")))
		return;
	lock = container_lock(c, true, &ignored);
	if (lock < 0 || container_reload(c, &ignored) < 0)
		return;
	container_set_bool(c, "Stopped", true);
	(void)!container_save(c, &ignored);
}

static bool wants(const struct container *c)
{
	const char *policy = container_str(c, "RestartPolicy");
	uint32_t tries;

	if (!str_eq(container_str(c, "State"), "exited") || container_bool(c, "Stopped") ||
	    container_bool(c, "Leaving") || str_empty(policy) || str_eq(policy, "no"))
		return false;
	if (!is_on_failure(policy, &tries))
		return true;
	return container_int(c, "ExitCode") != 0 &&
	       (!tries || container_int(c, "RestartCount") < (int64_t)tries);
}

void restart_by_policy(struct container *c)
{
	int64_t ran = (int64_t)time(NULL) - container_int(c, "StartTime");
	int64_t ms = ran >= SETTLED_S ? 0 : container_int(c, "RestartDelay");
	struct launch l = { 0 };
	struct timespec wait;
	struct error err = { 0 };

	if (!wants(c))
		return;
	ms = MIN_OF(MAX_OF(2 * ms, (int64_t)FIRST_DELAY_MS), (int64_t)LAST_DELAY_MS);
	wait = (struct timespec){ .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };
	(void)nanosleep(&wait, NULL);
	if (container_reload(c, &err) < 0 || !wants(c))
		return;
	container_set_int(c, "RestartCount", container_int(c, "RestartCount") + 1);
	container_set_int(c, "RestartDelay", ms);
	if (container_save(c, &err) == 0 && launch_again(c, &l, &err) == 0)
		(void)launch_run(&l);
}

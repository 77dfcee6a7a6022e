/*
 * Restart policies, with nobody to watch over containers: the program that a container's shim runs
 * at its end starts it again. So a policy holds as long as the machine runs.
 */
#pragma once

#include "cli/container.h"

/* "no", "always", "unless-stopped", "on-failure[:N]". -EINVAL. */
int restart_check(const char *policy, struct error *err);
/* Somebody ends it on purpose: its policy has no say until it is started again. */
void restart_hold(struct container *c);
/* Of a container that has ended: waits and starts it again, if its policy says so. */
void restart_by_policy(struct container *c);

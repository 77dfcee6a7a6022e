/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections to the loopback of a pod's network namespace (that is how containerd forwards ports)
 * go on to the same port of the guest's loopback. Private to sandbox.
 */
#pragma once

#include "sandbox/internal.h"

struct forward;

/* @netns: path of the pod's namespace. Connections that come before the agent is there wait. */
__must_check int forward_new(struct sandbox *s, const char *netns, struct forward **ret,
			     struct error *err);
/* Ends all connections. Takes NULL. */
void forward_free(struct forward *f);

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * User-mode network: passt, one process a sandbox, turns the packets of the VM's card into sockets
 * in the network namespace of the sandbox's process. Nothing is set up on the host. The constants
 * are for the command line too, which asks for it by annotation; only its own sandboxes may.
 *
 * passt ends when the VM's end of their socket closes, and jails itself (an unprivileged user, an
 * empty root, seccomp). It starts after the VM's processes, while the guest boots. The guest's
 * address is static: no DHCP.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <unistd.h>

#include "base/error.h"

#define SANDBOX_NETWORK "io.caisson.network" /* "user" */
/* "PROTOCOL/ADDRESS/HOSTPORT/PORT,...", the address may be empty */
#define SANDBOX_PUBLISH "io.caisson.publish"

/* Of the prefix that RFC 7335 sets aside for what never leaves a host. */
#define SANDBOX_USER_ADDRESS "192.0.0.2"
#define SANDBOX_USER_GATEWAY "192.0.0.1"
#define SANDBOX_USER_PREFIX  29
#define SANDBOX_USER_ADDRESS6 "fd00:ca15:5077::2"
#define SANDBOX_USER_GATEWAY6 "fd00:ca15:5077::1"
#define SANDBOX_USER_PREFIX6  64

/* Its path, or NULL if it is not installed. */
static inline const char *usernet_program(void)
{
	static const char *const paths[] = { "/usr/bin/passt", "/usr/local/bin/passt" };

	for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++)
		if (access(paths[i], X_OK) == 0)
			return paths[i];
	return NULL;
}

struct sandbox;
struct usernet;
struct vmm_nic;

/* Plans it if the sandbox's annotations ask for it; -EINVAL for ports that cannot be read. */
__must_check int usernet_open(struct sandbox *s, const char *network, const char *publish,
			      struct error *err);
/* The card of the VM. Valid until usernet_start(). */
void usernet_nic(const struct usernet *u, struct vmm_nic *ret_nic);
/* The VM in @dir runs, and its card listens for its wire: that becomes passt's end. */
__must_check int usernet_wire(struct usernet *u, const char *dir, struct error *err);
/* The VM has its end of the socket: starts passt. Without it the guest's network is dead. */
__must_check int usernet_start(struct sandbox *s, struct error *err);
/* Tells the agent address and routes. */
__must_check int usernet_configure(struct sandbox *s);
void usernet_free(struct usernet *u);

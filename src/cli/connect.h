/*
 * A container's networks from the command line to their end. What it asked for is the record's
 * "Net"; what it has is its "NetworkSettings". While anything is held for it on the host, the
 * bundle has the folder net/, which holds the CNI attachments.
 *
 * The container's /etc/hosts, /etc/hostname and /etc/resolv.conf are files of the bundle's folder
 * etc/. The shim copies them into the guest when the container is made and whenever they change:
 * so the names of containers that come and go appear in the hosts files of their neighbours.
 */
#pragma once

#include "cli/container.h"
#include "cli/netopts.h"

/* Notes @n and the options in the record, and what the shim must know in @spec. */
int connect_plan(struct container *c, const struct netopts *n, const struct run_options *o,
		 Grpc__Spec *spec, struct error *err);
/* Mounts /etc/hosts, /etc/hostname and /etc/resolv.conf of @c's bundle, unless something is there. */
int connect_add_files(const struct container *c, Grpc__Spec *spec, struct error *err);
/* Before the shim is started. On failure connect_down() frees what was got. */
int connect_up(struct container *c, struct error *err);
/*
 * After the shim's end; 0 if nothing is held. On failure what could not be freed is kept for
 * another try, unless @force.
 */
int connect_down(const struct container *c, bool force, struct error *err);
/* Something is held on the host. */
bool connect_is_up(const struct container *c);

/*
 * --network container:NAME. The network stack of a virtual machine is its containers', so the new
 * container runs in the machine of the one that is named: it has joined it. The machine is that of
 * its first container, the owner, whose record holds the networks; "Sandbox" in the record of one
 * that joined is the owner's id. The machine ends with the last of its containers. An owner that
 * ends before is "Leaving" in its record: its networks stay until then.
 */
#pragma once

#include <stdbool.h>

#include "cli/container.h"
#include "cli/spec.h"

/* Whether the container runs in another one's machine. */
bool joined_is(const struct container *c);
/* The owner of the machine that the container runs in: its own id, or another one's. */
const char *joined_owner(const struct container *c);

/* If the options say so: finds the container to join, which must run, and notes it in the record. */
int joined_plan(const struct run_options *o, struct container *c, struct error *err);
/* The owner's host name; NULL unless it has joined one. Of the record. */
const char *joined_hostname(const struct container *c);
/* The specification of one that joins: where it runs, and the owner's /etc/hosts and the like. */
int joined_apply(const struct container *c, Grpc__Spec *spec, struct error *err);
/* Before it is started: -ESRCH if the machine has ended meanwhile. */
int joined_check(const struct container *c, struct error *err);
/* -EBUSY, with their names, while others run in the machine of @c. */
int joined_none(const struct container *c, struct error *err);

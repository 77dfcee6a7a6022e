/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pool: machines that have gone on from a template ahead of their use, and wait, idle, for the next
 * sandbox of their kind. The sandbox takes them, the command line shows and ends them, and a process
 * of its own, which ends when it is done, makes them (pool_fill()): nothing serves the pool.
 *
 * Below the run root, one directory for each kind, of its template's name:
 *   pool/KIND/key, kind   as the template's files
 *   pool/KIND/ID/         the directory of a waiting machine's VM (vmm.h). To take it is to rename it.
 *   pool/KIND/new-ID/     of one that is being made, or ended, by who has the lock on KIND. It is there
 *                         before the machine is, so that whatever was killed, the next with the lock ends it.
 *   pool/KIND/again       somebody has asked for a filling since the one that goes on
 *   pool/KIND/fill.log    what the last filling had to say
 *
 * Machines with cards of the host's kernel or with shared directories are never in it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "base/error.h"
#include "config/config.h"

/* How many machines of each kind wait: what pool_set_size() has said, else the configuration. */
unsigned pool_size(const struct config *config);
/* On this host from now on; @size < 0: what the configuration says. Neither makes nor ends machines. */
__must_check int pool_set_size(int size, struct error *err);

struct pool_machine {
	const char *kind, *id;
	const char *machine; /* "microvm", "builtin"; "": not known */
	uint32_t memory_mib, vcpus;
	bool ready;          /* it can be taken */
	pid_t pid;           /* of caisson-vmm; 0: it has died, or is not there yet */
	uint64_t used;       /* its share of the host's memory: of caisson-vmm and QEMU, in bytes */
	time_t since;
};

/* Runs @fn for each. */
__must_check int pool_each(void (*fn)(void *arg, const struct pool_machine *m), void *arg,
			   struct error *err);
/*
 * Ends the machine or the kind of that name, or all if NULL, and waits for fillings to end. -ENOENT.
 * *ret_n: how many were ended.
 */
__must_check int pool_clear(const char *name, unsigned *ret_n, struct error *err);
/* Has any container left a template, which machines could be made from? */
bool pool_has_template(void);
/* Ends those that are more than @size of a kind. */
__must_check int pool_trim(unsigned size, struct error *err);
/*
 * Makes machines of @kind (NULL: of the template that was used last) until as many wait as shall,
 * unless somebody else does so. In a process of its own. -ENOENT: there is no such template.
 */
__must_check int pool_fill(const char *kind, const struct config *config, struct error *err);

/* --- for the sandbox --- */

struct sandbox;
struct vmm_config;

/*
 * Takes a machine for @s in place of a new one of @cfg. On success s->vmm is attached to it, its cards
 * are wired, and guest_arrives() is told the agent's connection.
 */
bool pool_take(struct sandbox *s, const struct vmm_config *cfg);
/* The sandbox has its machine: has others of its kind made, if there shall be some. */
void pool_refill(struct sandbox *s);

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Templates of VMs (see vmm.h): finding one that fits, or leaving one. They live beneath the state
 * root (or $CAISSON_TEMPLATES), one directory each:
 *   NAME/ram, state   the machine; NAME is a hash of the key
 *   NAME/working-set  which pages its machines need first; of the built-in monitor, after its first clone
 *   NAME/kind         what machines of it are made like (vmm_kind_save())
 *   NAME/key          what the template depends on, and checks of the first two; written last
 *   new-NAME/         one that is being made, under a lock on the directory
 * Nothing of a container is ever in one: it is saved before the guest gets the first. A template of
 * another boot of the host is never used.
 */
#pragma once

#include "vmm/vmm.h"

#define TEMPLATE_NAME_MAX 24

struct template;

/*
 * If there is a template for @cfg, lets @cfg start from it; if there is none and nobody is making
 * it, has @cfg start a machine that can be saved. *ret is NULL where neither can be; a template is
 * never a reason to fail.
 */
void template_find(struct vmm_config *cfg, struct template **ret);
/*
 * The template @name, for another machine of its kind; *ret_kind is the caller's. -ENOENT: there is none,
 * or it is not what such a machine would start from now.
 */
__must_check int template_open(const char *name, struct template **ret, uint8_t **ret_kind,
			       size_t *ret_len, struct error *err);
/* Lets @cfg start from it. */
void template_use(const struct template *t, struct vmm_config *cfg);
/* NULL: there is none, as for the next. */
const char *template_name(const struct template *t);
/* Does @key, as long as @len, say what it depends on? */
bool template_has_key(const struct template *t, const char *key, size_t len);
/* The name of the one used last, or "". */
void template_newest(char ret[static TEMPLATE_NAME_MAX]);
/*
 * A machine that has started from it has come up: has its working set written down for the next ones, if
 * it can tell and none is there yet.
 */
void template_learn(const struct template *t, struct vmm *vmm);
/* The machine starts from it. */
bool template_loads(const struct template *t);
/*
 * Saves the machine; @done runs when that is over, well or not. Negative: nothing was begun, and
 * @done doesn't run.
 */
__must_check int template_save(struct template *t, struct vmm *vmm, void (*done)(void *arg), void *arg);
/* The machine that was to start from it did not: nobody shall try again. */
void template_reject(struct template *t);
/* Takes NULL. What was not saved is removed. */
void template_free(struct template *t);

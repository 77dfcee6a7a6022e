/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What containerd hands a shim on its standard input at the start, and what it reads back. Up to 2.2 that
 * is an Any with the runtime's options, or nothing, and a plain address; from 2.3 on parameters, with the
 * options among their extensions, and a message. For start.c.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct bootstrap {
	bool params;        /* containerd 2.3 or later, which expects a message */
	bool debug;         /* it wants to know everything */
	char *events;       /* containerd's ttRPC socket, or NULL: the environment has it */
	char *socket_dir;   /* where the shim's socket is to be; absolute, or NULL */
	char *config_path;  /* of the options: a file of settings in place of the usual ones, or NULL */
	char *config_body;  /* settings themselves, or NULL */
};

/* @id, @ns: of the flags, which real parameters repeat. Options that are none of ours are ignored. */
__must_check int bootstrap_parse(const uint8_t *data, size_t len, const char *id, const char *ns,
				 struct bootstrap *ret, struct error *err);
void bootstrap_fini(struct bootstrap *b);

/* The caller frees *ret. -ENOMEM. */
__must_check int bootstrap_answer(const struct bootstrap *b, const char *address, uint8_t **ret,
				  size_t *ret_len);

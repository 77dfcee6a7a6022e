/* SPDX-License-Identifier: Apache-2.0 */
/* A list of Kata's Storage messages, made one by one. Private to sandbox. */
#pragma once

#include <stddef.h>

#include "agent.pb-c.h"
#include "base/error.h"

struct storages {
	Grpc__Storage **v;
	size_t n;
};

/* Strings are copied. NULL, also if a string is NULL: out of memory. */
Grpc__Storage *storages_add(struct storages *st, const char *driver, const char *source,
			    const char *fstype, const char *mount_point);
/* Takes NULL. -ENOMEM. */
__attribute__((format(printf, 2, 3))) __must_check int storage_option(Grpc__Storage *g,
								       const char *fmt, ...);
__must_check int storage_driver_option(Grpc__Storage *g, const char *text);
void storages_fini(struct storages *st);

/* SPDX-License-Identifier: Apache-2.0 */
/* Network namespaces by path, and being in one for a moment. Private to net. */
#pragma once

#include <stdint.h>

#include "base/error.h"

struct ns {
	int fd;
	uint64_t dev, ino;
};

/* -EINVAL if @path is no network namespace. */
__must_check int ns_open(const char *path, struct ns *ret_ns, struct error *err);

/*
 * Moves the calling thread into @fd; ns_leave() moves it back and cannot fail (the process ends
 * rather than go on in a namespace that isn't its own).
 */
__must_check int ns_enter(int fd, int *ret_back);
void ns_leave(int back);

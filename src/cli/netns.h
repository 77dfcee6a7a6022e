/*
 * Network namespaces of containers, pinned as $CAISSON_RUN/netns/ID. The folder is a mount of its
 * own that passes unmounts on, so that no other mount namespace keeps a namespace alive.
 */
#pragma once

#include "base/error.h"

/* The path, whether it exists or not; the caller frees. NULL without memory. */
char *netns_path(const char *id);
/* Makes it, with its loopback up. The caller has noted that it will exist. */
__must_check int netns_make(const char *id, struct error *err);
/* 0 if there is none. */
__must_check int netns_remove(const char *id, struct error *err);

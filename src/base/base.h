/*
 * base: what every other folder stands on. Errors with context, cleanup attributes, logging,
 * bounded buffers, strings, descriptors, paths beneath a root, child processes, libuv glue.
 *
 * Anyone may call it; it calls nothing but libc (loop.h: libuv too). It knows nothing of
 * containers. Nothing here is thread-aware unless its comment says so.
 */
#pragma once

#include "base/beneath.h"
#include "base/buf.h"
#include "base/bytes.h"
#include "base/child.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/fd.h"
#include "base/fsutil.h"
#include "base/list.h"
#include "base/log.h"
#include "base/str.h"

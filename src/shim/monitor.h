/* SPDX-License-Identifier: Apache-2.0 */
/* What a sandbox tells over HTTP at monitor.sock in its directory; docs/monitoring.md has the list. */
#pragma once

#include "shim/http.h"
#include "shim/shim.h"

/* --- metrics.c --- */

/* Answers with all metrics. */
void metrics_serve(struct shim *shim, struct http_call *call);
/* Of what a guest says, the lines that may pass. The caller frees; NULL: too much, or no memory. */
char *metrics_filter_guest(const char *text);

/* What bindings need to make a connection of what was saved. See ttrpc.h, "handing over". */
#pragma once

#include "ttrpc/conn.h"

/* Before the connection is bound. The bytes are copied. */
__must_check int handover_fill(struct conn *c, const struct ttrpc_saved *st);
/* Afterwards, for a server: serves the calls. */
void handover_dispatch(struct conn *c, const struct ttrpc_saved *st);

/* The control service of caisson-vmm (proto/vmm.proto) and its main loop. */
#pragma once

#include "vmm/machine.h"

struct service_fds {
	int control;            /* listening */
	int descriptors;        /* datagrams: a token and a descriptor each */
	struct machine_fds machine;
};

/* Runs the machine to its end. Failure to start it is no error here: callers are told. */
int service_run(const Caisson__Vmm__V1__VmConfig *config, struct service_fds *fds,
		struct error *err);

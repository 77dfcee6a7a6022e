/* --device: devices of the host in a container's specification. */
#pragma once

#include "cli/args.h"
#include "oci/oci.h"

/* "/host[:/container][:rwm]", each. With @spec NULL they are only checked. */
int rundevice_apply(Grpc__Spec *spec, const struct strlist *words, struct error *err);

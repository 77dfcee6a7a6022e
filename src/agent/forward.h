/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections that the host forwards to the pod's loopback (kubectl port-forward): on a vsock port
 * of its own each connection starts with the TCP port, two bytes, big endian; the rest is the
 * stream, both ways. A process of its own carries each.
 */
#pragma once

#define FORWARD_MAX 64 /* at a time */

/* Takes over @listen_fd on success. */
__attribute__((warn_unused_result)) int forward_init(int listen_fd);
/* True if @pid was one of these processes. */
_Bool forward_child_ended(int pid);

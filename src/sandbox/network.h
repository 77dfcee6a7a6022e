/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A sandbox's network: which namespace it comes from, the record of what is held there, the VM's
 * cards, and what the agent is told. Private to sandbox.
 */
#pragma once

#include "net/net.h"
#include "sandbox/internal.h"

/*
 * Decides and, if there is a namespace, ties its links to taps. -EPERM for the host's. @spec may
 * be NULL. Without a namespace it does nothing.
 */
__must_check int network_open(struct sandbox *s, const Grpc__Spec *spec, unsigned queues,
			      struct error *err);
/* The specification names the sandbox's own network namespace. */
bool network_is_shared(const struct sandbox *s, const Grpc__Spec *spec);
/* The VM's cards; valid until network_vm_started(). */
size_t network_nics(const struct sandbox *s, struct vmm_nic nics[static VMM_MAX_NICS]);
/* All PCI devices that the VM gets as they are; as long as the sandbox. */
size_t network_pci(const struct sandbox *s, const char *addresses[static VMM_MAX_PCI]);
/* The place of the link's device among them; -1: it is none of them. */
int network_pci_place(const struct sandbox *s, const struct net_link *l);
/* The namespace that the VM's processes are to be in, or -1: one of their own. */
int network_netns(const struct sandbox *s);
/* Lines of resolv.conf, which the sandbox keeps. */
size_t network_dns(const struct sandbox *s, char ***ret_lines);
/*
 * Follows what has changed in the namespace at once: the agent hears of it before what it is asked
 * next.
 */
void network_sync(struct sandbox *s);
void network_vm_started(struct sandbox *s);
/* Tells the agent links, routes and neighbours; a failure ends the VM. */
void network_configure(struct sandbox *s);
/* Frees what is held on the host. */
void network_vm_gone(struct sandbox *s);
void network_free(struct sandbox *s);

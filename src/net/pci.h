/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Network cards that a virtual machine gets as they are: PCI devices, driven by the host's vfio-pci
 * for as long. Of net, and for those who pass other devices through.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

#define PCI_ADDRESS 13 /* "0000:01:00.0" */
#define PCI_DRIVER  32

struct pci_device {
	char address[PCI_ADDRESS]; /* "": none */
	char driver[PCI_DRIVER];   /* the host's own */
};

bool pci_valid_address(const char *address);
/* In the link's namespace: what is behind it. -ENODEV if that is no PCI device. */
__must_check int pci_of_link(const char *link, struct pci_device *ret);
/* Whether it can be given to a machine: -ENODEV and -EBUSY say why not, and what to do. */
__must_check int pci_check(const char *address, struct error *err);
/*
 * The devices of an IOMMU group that vfio-pci drives; bridges are left out. -EBUSY if another driver
 * has one. *ret_n: how many, also beyond @max.
 */
__must_check int pci_of_group(const char *group, char (*ret)[PCI_ADDRESS], size_t max, size_t *ret_n,
			      struct error *err);
/* From whatever drives it to vfio-pci. Its link is gone then. */
__must_check int pci_take(const char *address, struct error *err);
/* Back to the host's driver; 0 if it is there already, or if the device has been pulled out. */
__must_check int pci_give_back(const struct pci_device *dev, struct error *err);
/* Afterwards: moves its link, which comes up among the host's, to @netns, under @name. */
__must_check int pci_return_link(const char *address, const char *name, int netns,
				 struct error *err);

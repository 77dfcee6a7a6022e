/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PCI devices of the host: which one is behind a link, and from its driver to vfio-pci and back. A
 * device comes back in the first process's network namespace, whoever had it before.
 */
#include "net/pci.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "net/internal.h"

#define DEVICES    "/sys/bus/pci/devices"
#define DRIVERS    "/sys/bus/pci/drivers"
#define VFIO       "vfio-pci"
#define FIRST_NS   "/proc/1/ns/net"
#define BRIDGE     0x0604u /* class of a PCI bridge */
#define APPEAR_MS  3000    /* until a driver has made its link */
#define RETRY_MS   20

bool pci_valid_address(const char *address)
{
	unsigned domain, bus, slot, function;
	int end = 0;

	return sscanf(address, "%4x:%2x:%2x.%1x%n", &domain, &bus, &slot, &function, &end) == 4 &&
	       end == PCI_ADDRESS - 1 && !address[end] && slot < 32 && function < 8;
}

/* The last part of what the link @what of the device points to; -ENOENT. */
static int link_of(const char *address, const char *what, char *out, size_t size)
{
	char path[PATH_MAX], target[PATH_MAX];
	const char *last;
	ssize_t n;

	(void)snprintf(path, sizeof(path), DEVICES "/%s/%s", address, what);
	n = readlink(path, target, sizeof(target) - 1);
	if (n < 0)
		return -errno;
	target[n] = '\0';
	last = strrchr(target, '/');
	return str_format(out, size, "%s", last ? last + 1 : target);
}

static int write_text(const char *path, const char *text)
{
	auto_close int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	return write(fd, text, strlen(text)) == (ssize_t)strlen(text) ? 0 : -errno;
}

static int write_attribute(const char *address, const char *name, const char *text)
{
	char path[PATH_MAX];

	(void)snprintf(path, sizeof(path), DEVICES "/%s/%s", address, name);
	return write_text(path, text);
}

/* --- links --- */

static int address_of(int sock, const char *link, char out[static PCI_ADDRESS])
{
	struct ethtool_drvinfo info = { .cmd = ETHTOOL_GDRVINFO };
	struct ifreq ifr = { .ifr_data = (char *)&info };

	(void)!str_format(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", link);
	if (ioctl(sock, SIOCETHTOOL, &ifr) < 0)
		return -errno;
	info.bus_info[sizeof(info.bus_info) - 1] = '\0';
	if (!pci_valid_address(info.bus_info))
		return -ENODEV;
	return str_format(out, PCI_ADDRESS, "%s", info.bus_info);
}

int pci_of_link(const char *link, struct pci_device *ret)
{
	auto_close int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int r = sock < 0 ? -errno : address_of(sock, link, ret->address);

	return r < 0 ? r : link_of(ret->address, "driver", ret->driver, sizeof(ret->driver));
}

struct search {
	const char *address;
	int sock, index;
};

static int on_link(const struct nlmsghdr *h, void *arg)
{
	const struct nlattr *tb[IFLA_IFNAME + 1];
	const struct ifinfomsg *m = mnl_nlmsg_get_payload(h);
	char name[IFNAMSIZ], address[PCI_ADDRESS];
	struct search *s = arg;

	if (h->nlmsg_type != RTM_NEWLINK || mnl_nlmsg_get_payload_len(h) < sizeof(*m))
		return 0;
	rtnl_attrs(h, sizeof(*m), tb, IFLA_IFNAME);
	rtnl_string(tb[IFLA_IFNAME], name, sizeof(name));
	if (address_of(s->sock, name, address) == 0 && str_eq(address, s->address))
		s->index = m->ifi_index;
	return 0;
}

/* In the namespace where links of devices appear. */
static int move_link(struct rtnl *rt, struct search *s, const char *name, int netns)
{
	union rtnl_request rq;
	struct ifinfomsg *m;

	for (int ms = 0; !s->index && ms < APPEAR_MS; ms += RETRY_MS) {
		(void)rtnl_init(&rq, RTM_GETLINK, 0, sizeof(struct ifinfomsg));
		(void)!rtnl_dump(rt, &rq, on_link, s);
		if (!s->index)
			(void)nanosleep(&(struct timespec){ .tv_nsec = RETRY_MS * 1000000L }, NULL);
	}
	if (!s->index)
		return -ENODEV;
	m = rtnl_init(&rq, RTM_NEWLINK, 0, sizeof(*m));
	m->ifi_index = s->index;
	mnl_attr_put_u32(&rq.h, IFLA_NET_NS_FD, (uint32_t)netns);
	mnl_attr_put_strz(&rq.h, IFLA_IFNAME, name);
	return rtnl_do(rt, &rq);
}

int pci_return_link(const char *address, const char *name, int netns, struct error *err)
{
	auto_close int first = open(FIRST_NS, O_RDONLY | O_CLOEXEC);
	auto_free struct rtnl *rt = calloc(1, sizeof(*rt));
	struct search s = { .address = address, .sock = -1 };
	int back, r = first < 0 ? -errno : !rt ? -ENOMEM : ns_enter(first, &back);

	if (r == 0) {
		s.sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
		r = s.sock < 0 ? -errno : rtnl_open(rt, 0);
		ns_leave(back);
	}
	if (r == 0)
		r = move_link(rt, &s, name, netns);
	if (rt)
		rtnl_close(rt);
	cleanup_close_(&s.sock);
	return r < 0 ? error_errno(err, r, "give the network card %s back to its namespace as '%s'",
				   address, name) :
		       0;
}

/* --- drivers --- */

static bool is_bridge(const char *address)
{
	auto_free char *text = NULL;
	char path[PATH_MAX];

	(void)snprintf(path, sizeof(path), DEVICES "/%s/class", address);
	return fd_read_file(AT_FDCWD, path, 64, &text, NULL) == 0 &&
	       strtoul(text, NULL, 16) >> 8 == BRIDGE;
}

/*
 * Whoever has one device of a group can reach the others: none but @but (or "") may be in use by the
 * host.
 */
static int walk_group(const char *group, const char *but, char (*ret)[PCI_ADDRESS], size_t max,
		      size_t *ret_n, struct error *err)
{
	char path[PATH_MAX], driver[PCI_DRIVER];
	const struct dirent *e;
	DIR *dir;
	int r = 0;

	(void)snprintf(path, sizeof(path), "/sys/kernel/iommu_groups/%s/devices", group);
	dir = opendir(path);
	if (!dir)
		return error_errno(err, -errno, "open '%s'", path);
	while (r == 0 && (e = readdir(dir))) {
		if (!pci_valid_address(e->d_name) || str_eq(e->d_name, but) || is_bridge(e->d_name))
			continue;
		if (link_of(e->d_name, "driver", driver, sizeof(driver)) < 0)
			continue;
		if (!str_eq(driver, VFIO))
			r = error_set(err, -EBUSY,
				      "the host uses PCI device %s (driver %s) of IOMMU group %s: a virtual "
				      "machine gets whole groups only", e->d_name, driver, group);
		else if ((*ret_n)++ < max)
			(void)!str_format(ret[*ret_n - 1], PCI_ADDRESS, "%s", e->d_name);
	}
	(void)closedir(dir);
	return r;
}

int pci_of_group(const char *group, char (*ret)[PCI_ADDRESS], size_t max, size_t *ret_n,
		 struct error *err)
{
	*ret_n = 0;
	return walk_group(group, "", ret, max, ret_n, err);
}

int pci_check(const char *address, struct error *err)
{
	char group[16];
	size_t others = 0;

	if (link_of(address, "subsystem", group, sizeof(group)) < 0)
		return error_set(err, -ENODEV, "there is no PCI device %s", address);
	if (link_of(address, "iommu_group", group, sizeof(group)) < 0)
		return error_set(err, -ENODEV,
				 "PCI device %s has no IOMMU group: switch the IOMMU on in the firmware "
				 "and by the kernel's command line (intel_iommu=on or amd_iommu=on)",
				 address);
	if (access(DRIVERS "/" VFIO, F_OK) < 0)
		return error_set(err, -ENODEV, "the module vfio-pci is not loaded");
	return walk_group(group, address, NULL, 0, &others, err);
}

static int unbind(const char *address)
{
	char driver[PCI_DRIVER];

	return link_of(address, "driver", driver, sizeof(driver)) < 0 ?
		       0 :
		       write_attribute(address, "driver/unbind", address);
}

int pci_take(const char *address, struct error *err)
{
	char driver[PCI_DRIVER] = "";
	int r = pci_check(address, err);

	if (r < 0)
		return r;
	r = write_attribute(address, "driver_override", VFIO);
	if (r == 0)
		r = unbind(address);
	if (r == 0)
		r = write_text("/sys/bus/pci/drivers_probe", address);
	if (r == 0 && (link_of(address, "driver", driver, sizeof(driver)) < 0 || !str_eq(driver, VFIO)))
		r = -EIO;
	return r < 0 ? error_errno(err, r, "give PCI device %s to vfio-pci", address) : 0;
}

int pci_give_back(const struct pci_device *dev, struct error *err)
{
	char driver[PCI_DRIVER] = "", path[PATH_MAX];
	int r;

	if (link_of(dev->address, "subsystem", driver, sizeof(driver)) < 0)
		return 0;
	driver[0] = '\0';
	(void)!link_of(dev->address, "driver", driver, sizeof(driver));
	/* Never given to vfio-pci, or back with its own already. */
	if (str_eq(driver, dev->driver))
		return write_attribute(dev->address, "driver_override", "\n") < 0 ? -EIO : 0;
	r = unbind(dev->address);
	if (r == 0)
		r = write_attribute(dev->address, "driver_override", "\n");
	(void)snprintf(path, sizeof(path), DRIVERS "/%s/bind", dev->driver);
	if (r == 0)
		r = write_text(path, dev->address);
	return r < 0 ? error_errno(err, r, "give PCI device %s back to its driver %s", dev->address,
				   dev->driver) :
		       0;
}

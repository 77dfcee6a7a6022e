/* SPDX-License-Identifier: Apache-2.0 */
/* See usernet.h. */
#include "sandbox/usernet.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "sandbox/internal.h"

#define GUEST_MAC   { 0x02, 0xca, 0x15, 0x50, 0x77, 0x02 }
#define GUEST_MAC_TEXT "02:ca:15:50:77:02"
#define GATEWAY_MAC "02:ca:15:50:77:01"
#define DEVICE      "eth0"
/* What passt takes at most: long frames cost both sides the least. */
#define MTU         65520u
#define MTU_TEXT    "65520"
#define PASST_FD    3
#define SOCKET_BUFFER (4 << 20)
#define TEXT_(x)    #x
#define TEXT(x)     TEXT_(x)

struct usernet {
	const char *program;
	char **argv;
	int ours, theirs; /* ends of the socket: the VM's, passt's */
	bool v6;
};

/* Whether this host has an IPv6 address that leads anywhere. */
static bool host_has_v6(void)
{
	struct ifaddrs *list = NULL;
	bool found = false;

	if (getifaddrs(&list) < 0)
		return false;
	for (const struct ifaddrs *i = list; i && !found; i = i->ifa_next) {
		const struct sockaddr_in6 *a = (const void *)i->ifa_addr;

		found = a && a->sin6_family == AF_INET6 && !IN6_IS_ADDR_LOOPBACK(&a->sin6_addr) &&
			!IN6_IS_ADDR_LINKLOCAL(&a->sin6_addr);
	}
	freeifaddrs(list);
	return found;
}

static int add_words(struct usernet *u, const char *const *words)
{
	int r = 0;

	for (; *words && r == 0; words++)
		r = strv_append(&u->argv, *words);
	return r;
}

/* "tcp/127.0.0.1/8080/80" becomes "-t 127.0.0.1/8080:80". */
static int add_port(struct usernet *u, const char *text, struct error *err)
{
	auto_free char *copy = strdup(text), *spec = NULL;
	char *rest = copy;
	const char *protocol = strsep(&rest, "/"), *address = rest ? strsep(&rest, "/") : NULL;
	const char *host = rest ? strsep(&rest, "/") : NULL, *guest = rest;
	unsigned char raw[16];
	uint32_t from, to;
	bool udp = str_eq(protocol, "udp");

	if (!copy)
		return error_set(err, -ENOMEM, "out of memory");
	if (!guest || (!udp && !str_eq(protocol, "tcp")) || str_parse_u32(host, &from) < 0 ||
	    str_parse_u32(guest, &to) < 0 || !from || from > 65535 || !to || to > 65535 ||
	    (*address && inet_pton(AF_INET, address, raw) != 1 &&
	     inet_pton(AF_INET6, address, raw) != 1))
		return error_set(err, -EINVAL, SANDBOX_PUBLISH ": '%s' is not a port to publish", text);
	u->v6 |= strchr(address, ':') != NULL;
	spec = str_printf("%s%s%u:%u", address, *address ? "/" : "", from, to);
	if (!spec || strv_append(&u->argv, udp ? "-u" : "-t") < 0 || strv_append(&u->argv, spec) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	return 0;
}

static int add_ports(struct usernet *u, const char *publish, struct error *err)
{
	auto_free char *copy = strdup(publish);
	char *rest = copy, *word;
	int r = 0;

	if (!copy)
		return error_set(err, -ENOMEM, "out of memory");
	while (r == 0 && *copy && (word = strsep(&rest, ",")))
		r = add_port(u, word, err);
	return r;
}

static int make_argv(struct usernet *u, const char *publish, struct error *err)
{
	/*
	 * The loopback as the interface: passt shall neither look for a default route nor copy the
	 * host's addresses to the guest. What it connects to is routed by the host all the same.
	 */
	const char *const common[] = {
		u->program, "--foreground", "--quiet", "--one-off", "--fd", TEXT(PASST_FD),
		"--interface", "lo", "--mac-addr", GATEWAY_MAC, "--mtu", MTU_TEXT,
		"--address", SANDBOX_USER_ADDRESS, "--netmask", TEXT(SANDBOX_USER_PREFIX),
		"--gateway", SANDBOX_USER_GATEWAY,
		/* Services on the host's loopback are not the container's. */
		"--no-map-gw", "--no-dhcp", "--no-dhcpv6", "--no-ra", NULL,
	};
	const char *const v6[] = { "--address", SANDBOX_USER_ADDRESS6, "--gateway",
				   SANDBOX_USER_GATEWAY6, NULL };
	const char *const v4_only[] = { "--ipv4-only", NULL };
	int r = add_words(u, common);

	if (r < 0)
		return error_set(err, r, "out of memory");
	r = add_ports(u, publish, err);
	if (r < 0)
		return r;
	r = add_words(u, u->v6 ? v6 : v4_only);
	return r < 0 ? error_set(err, r, "out of memory") : 0;
}

/* passt drops what does not fit, and then waits for a timer of seconds. */
static void enlarge(int fd)
{
	const int bytes = SOCKET_BUFFER;

	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)) < 0)
		(void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
}

int usernet_open(struct sandbox *s, const char *network, const char *publish, struct error *err)
{
	struct usernet *u;
	int fds[2], r;

	if (!network)
		return 0;
	/* It opens the host's own network to the guest: no pod's annotation may. */
	if (!str_eq(s->ns, SANDBOX_OWN_NAMESPACE))
		return error_set(err, -EPERM, "the annotation " SANDBOX_NETWORK " is for the command line's "
				 "own containers");
	if (!str_eq(network, "user"))
		return error_set(err, -EINVAL, SANDBOX_NETWORK ": '%s' is not 'user'", network);
	u = calloc(1, sizeof(*u));
	if (!u)
		return error_set(err, -ENOMEM, "out of memory");
	u->ours = u->theirs = -1;
	u->v6 = host_has_v6();
	u->program = usernet_program();
	if (!u->program)
		r = error_set(err, -ENOENT, "user-mode network: passt is not installed");
	else if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
		r = error_errno(err, -errno, "make a socket for the network");
	else {
		u->ours = fds[0];
		u->theirs = fds[1];
		enlarge(u->ours);
		enlarge(u->theirs);
		r = make_argv(u, publish ? publish : "", err);
	}
	if (r < 0) {
		usernet_free(u);
		return r;
	}
	s->usernet = u;
	return 0;
}

void usernet_nic(const struct usernet *u, struct vmm_nic *ret_nic)
{
	*ret_nic = (struct vmm_nic){ .kind = VMM_NIC_STREAM, .mac = GUEST_MAC, .mtu = MTU,
				     .fds = &u->ours, .n_fds = 1 };
}

int usernet_wire(struct usernet *u, const char *dir, struct error *err)
{
	int fd = vmm_sock_connect(dir, VMM_SOCK_NIC "0", err);

	if (fd < 0)
		return fd;
	enlarge(fd);
	cleanup_close_(&u->theirs);
	u->theirs = fd;
	return 0;
}

int usernet_start(struct sandbox *s, struct error *err)
{
	struct usernet *u = s->usernet;
	const struct child_fd fds[] = { { u->theirs, PASST_FD }, { s->log_fd, STDERR_FILENO } };
	const struct child_options o = {
		.argv = (const char *const *)u->argv,
		.fds = fds,
		.n_fds = s->log_fd >= 0 ? 2 : 1,
		.cwd_fd = -1,
		.setsid = true,
	};
	struct child_id id;
	int r;

	/* From here on the VM alone holds the other end: when it is gone, so is passt. */
	cleanup_close_(&u->ours);
	u->ours = -1;
	r = child_spawn(&o, &id.pid, NULL);
	cleanup_close_(&u->theirs);
	u->theirs = -1;
	if (r == 0)
		r = child_identify(id.pid, &id);
	if (r < 0)
		return error_errno(err, r, "start '%s'", u->program);
	sandbox_add_child(s, &id);
	return 0;
}

/* --- with the agent --- */

static void on_done(struct sandbox *s, const struct error *err, const char *what)
{
	if (!err || s->state != VM_READY || sandbox_lost(s, err))
		return;
	(void)error_set(&s->failure, err->code, "set up the guest's network: %s: %s", what, err->msg);
	log_error("%s", s->failure.msg);
	vmm_kill(s->vmm);
}

static void on_interface(void *arg, const struct error *err, const Types__Interface *answer)
{
	(void)answer;
	on_done(arg, err, "interface");
}

static void on_routes(void *arg, const struct error *err, const Grpc__Routes *answer)
{
	(void)answer;
	on_done(arg, err, "routes");
}

static int send_interface(struct sandbox *s)
{
	Grpc__UpdateInterfaceRequest req = GRPC__UPDATE_INTERFACE_REQUEST__INIT;
	Types__Interface itf = TYPES__INTERFACE__INIT;
	Types__IPAddress v4 = TYPES__IPADDRESS__INIT, v6 = TYPES__IPADDRESS__INIT;
	Types__IPAddress *addresses[] = { &v4, &v6 };

	v4.family = TYPES__IPFAMILY__v4;
	v4.address = (char *)SANDBOX_USER_ADDRESS;
	v4.mask = (char *)TEXT(SANDBOX_USER_PREFIX);
	v6.family = TYPES__IPFAMILY__v6;
	v6.address = (char *)SANDBOX_USER_ADDRESS6;
	v6.mask = (char *)TEXT(SANDBOX_USER_PREFIX6);
	itf.device = itf.name = (char *)DEVICE;
	itf.hwaddr = (char *)GUEST_MAC_TEXT;
	itf.mtu = MTU;
	itf.ipaddresses = addresses;
	itf.n_ipaddresses = s->usernet->v6 ? 2 : 1;
	req.interface = &itf;
	return agent_update_interface(s->agent, &req, on_interface, s);
}

static int send_routes(struct sandbox *s)
{
	Grpc__UpdateRoutesRequest req = GRPC__UPDATE_ROUTES_REQUEST__INIT;
	Grpc__Routes routes = GRPC__ROUTES__INIT;
	Types__Route v4 = TYPES__ROUTE__INIT, v6 = TYPES__ROUTE__INIT;
	Types__Route *list[] = { &v4, &v6 };

	v4.gateway = (char *)SANDBOX_USER_GATEWAY;
	v4.family = TYPES__IPFAMILY__v4;
	v6.gateway = (char *)SANDBOX_USER_GATEWAY6;
	v6.family = TYPES__IPFAMILY__v6;
	v4.device = v6.device = (char *)DEVICE;
	routes.routes = list;
	routes.n_routes = s->usernet->v6 ? 2 : 1;
	req.routes = &routes;
	return agent_update_routes(s->agent, &req, on_routes, s);
}

int usernet_configure(struct sandbox *s)
{
	int r = send_interface(s);

	return r < 0 ? r : send_routes(s);
}

void usernet_free(struct usernet *u)
{
	if (!u)
		return;
	cleanup_close_(&u->ours);
	cleanup_close_(&u->theirs);
	strv_free(u->argv);
	free(u);
}

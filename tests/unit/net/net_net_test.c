/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net against real links: the test moves into a network namespace of its own, which stands for the
 * host's, and makes pods beside it. Needs root; otherwise it says so and counts as skipped.
 */
#include "../test.h"

#include <arpa/inet.h>
#include <linux/if_addr.h>
#include <linux/neighbour.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/base.h"
#include "net/net.h"

#define VNET_HDR 10

struct pod {
	pid_t holder;
	char path[64];
	struct error err;
};

static const struct net_options tcfilter = { .model = NET_MODEL_TCFILTER, .queues = 1 };

/* Runs a shell's line in the pod's namespace, or in the test's if @pod is NULL. */
__attribute__((format(printf, 2, 3))) static int try_do(const struct pod *pod, const char *fmt, ...)
{
	char line[1024], path[96] = "";
	const char *const argv[] = { "nsenter", path, "sh", "-c", line, NULL };
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	if (pod)
		(void)snprintf(path, sizeof(path), "--net=%s", pod->path);
	return child_run(pod ? argv : argv + 2, NULL);
}

#define run(...) assert_int_equal(try_do(__VA_ARGS__), 0)

static void pod_init(struct pod *p)
{
	int fds[2];
	char c;

	*p = (struct pod){ 0 };
	assert_int_equal(pipe(fds), 0);
	p->holder = fork();
	assert_true(p->holder >= 0);
	if (!p->holder) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		c = unshare(CLONE_NEWNET) < 0;
		(void)!write(fds[1], &c, 1);
		for (;;)
			pause();
	}
	assert_int_equal(read(fds[0], &c, 1), 1);
	assert_int_equal(c, 0);
	(void)close(fds[0]);
	(void)close(fds[1]);
	(void)snprintf(p->path, sizeof(p->path), "/proc/%d/ns/net", p->holder);
}

static int setup(void **state)
{
	static struct pod p;

	pod_init(&p);
	run(NULL, "ip link add h0 type veth peer name eth0 address 02:00:00:00:00:02 netns %d && "
		  "ip link set h0 up", p.holder);
	run(&p, "ip addr add 10.1.0.2/24 dev eth0 && ip addr add fd01::2/64 dev eth0 nodad && "
		"ip link set eth0 mtu 1400 up && ip route add default via 10.1.0.1");
	*state = &p;
	return 0;
}

static int teardown(void **state)
{
	struct pod *p = *state;

	(void)try_do(NULL, "ip link del h0");
	(void)kill(p->holder, SIGKILL);
	(void)waitpid(p->holder, NULL, 0);
	return 0;
}

static struct net *open_net(struct pod *p, const struct net_options *o)
{
	struct net *n = NULL;

	if (net_open(p->path, o, &n, &p->err) < 0)
		fail_msg("%s", p->err.msg);
	return n;
}

static struct net *attach(struct pod *p, const struct net_options *o, struct net_holds *holds)
{
	struct net *n = open_net(p, o);

	net_holds(n, holds);
	if (net_attach(n, &p->err) < 0)
		fail_msg("%s", p->err.msg);
	return n;
}

static void release(struct pod *p, const struct net_holds *holds)
{
	if (net_release(holds, &p->err) < 0)
		fail_msg("%s", p->err.msg);
}

static void assert_clean(struct pod *p)
{
	assert_int_equal(try_do(p, "! ip -o link | grep -q _csn"), 0);
	assert_int_equal(try_do(p, "! tc qdisc show | grep -q 'ingress\\|tbf'"), 0);
}

/* --- what is refused --- */

static void hosts_network_is_refused(void **state)
{
	struct pod *p = *state;
	struct net *n = NULL;

	assert_int_equal(net_open("/proc/self/ns/net", &tcfilter, &n, &p->err), -EPERM);
	assert_non_null(strstr(p->err.msg, "host's network namespace"));
	assert_int_equal(net_open("/proc/self/ns/ipc", &tcfilter, &n, &p->err), -EINVAL);
	assert_int_equal(net_open("/dev/null", &tcfilter, &n, &p->err), -EINVAL);
	assert_int_equal(net_open("/nonexistent", &tcfilter, &n, &p->err), -ENOENT);
	assert_null(n);
	assert_int_equal(net_is_host("/proc/self/ns/net"), 1);
	assert_int_equal(net_is_host(p->path), 0);
}

static void models_have_names(void **state)
{
	enum net_model m;

	(void)state;
	for (int i = NET_MODEL_TCFILTER; i <= NET_MODEL_NONE; i++) {
		assert_int_equal(net_model_parse(net_model_name((enum net_model)i), &m), 0);
		assert_int_equal(m, i);
	}
	assert_int_equal(net_model_parse("bridge", &m), -EINVAL);
}

static void pci_addresses(void **state)
{
	static const char *const bad[] = { "", "01:00.0", "0000:01:00.8", "0000:01:20.0", "0000:01:00.0x",
					   "../0:01:00.0", "0000:01:00", "00000:1:00.0" };

	(void)state;
	assert_true(pci_valid_address("0000:01:00.0"));
	assert_true(pci_valid_address("fffe:ff:1f.7"));
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		assert_false(pci_valid_address(bad[i]));
}

/* --- what is read --- */

static const struct net_addr *find_addr(const struct net_link *l, const char *text)
{
	char ip[NET_IP_TEXT];

	for (size_t i = 0; i < l->n_addrs; i++) {
		net_ip_format(&l->addrs[i].ip, ip);
		if (str_eq(ip, text))
			return &l->addrs[i];
	}
	return NULL;
}

static const struct net_route *find_route(const struct net_state *st, const char *dst)
{
	char ip[NET_IP_TEXT];

	for (size_t i = 0; i < st->n_routes; i++) {
		net_ip_format(&st->routes[i].dst, ip);
		if (str_eq(ip, dst))
			return &st->routes[i];
	}
	return NULL;
}

static void reads_what_cni_left(void **state)
{
	struct pod *p = *state;
	const struct net_state *st;
	const struct net_route *r;
	const struct net_link *l;
	char mac[18], ip[NET_IP_TEXT];
	struct net *n;

	run(p, "ip link set lo up && ip link add br0 type bridge && "
	       "ip link add m0 type veth peer name m1 && ip link set m0 master br0 up && "
	       "ip link add ifb9 type ifb && ip link set ifb9 up && "
	       "ip route add 10.7.0.0/16 via 10.1.0.9 mtu 1300 metric 5 && "
	       "ip -6 route add fd07::/64 via fd01::1 && "
	       "ip neigh add 10.1.0.8 lladdr 02:00:00:00:00:08 dev eth0");
	n = open_net(p, &tcfilter);
	st = net_state(n);
	/* Not: the loopback, ifb9, the bridge's port, and what is down without an address. */
	assert_int_equal(st->n_links, 1);
	l = &st->links[0];
	assert_string_equal(l->name, "eth0");
	assert_string_equal(l->kind, "veth");
	net_mac_format(l->mac, mac);
	assert_string_equal(mac, "02:00:00:00:00:02");
	assert_int_equal(l->mtu, 1400);
	assert_int_equal(l->bridge, NET_BRIDGE_TCFILTER);
	assert_false(l->attached);
	assert_int_equal(find_addr(l, "10.1.0.2")->ip.prefix, 24);
	assert_int_equal(find_addr(l, "10.1.0.2")->flags, 0);
	assert_int_equal(find_addr(l, "fd01::2")->ip.prefix, 64);
	assert_int_equal(find_addr(l, "fd01::2")->flags, 0);

	r = find_route(st, "10.7.0.0");
	assert_non_null(r);
	assert_int_equal(r->dst.prefix, 16);
	assert_int_equal(r->mtu, 1300);
	assert_int_equal(r->metric, 5);
	net_ip_format(&r->gateway, ip);
	assert_string_equal(ip, "10.1.0.9");
	assert_non_null(find_route(st, ""));
	assert_non_null(find_route(st, "fd07::"));
	/* Made by the kernel with the address, here as in the guest. */
	assert_null(find_route(st, "10.1.0.0"));
	assert_int_equal(st->n_neighs, 1);
	net_free(n);
	assert_clean(p);
}

/* Plugins of point-to-point kind remove the prefix route: the guest must not have it either. */
static void removed_prefix_route(void **state)
{
	struct pod *p = *state;
	struct net *n;

	run(p, "ip route del 10.1.0.0/24 dev eth0; ip route flush 10.1.0.0/24;"
	       "ip route add 10.1.0.1 dev eth0 scope link; ip route add 10.1.0.0/24 via 10.1.0.1");
	n = open_net(p, &tcfilter);
	assert_int_equal(find_addr(&net_state(n)->links[0], "10.1.0.2")->flags,
			 IFA_F_NOPREFIXROUTE);
	assert_non_null(find_route(net_state(n), "10.1.0.0"));
	assert_non_null(find_route(net_state(n), "10.1.0.1"));
	net_free(n);
}

static void too_many_links(void **state)
{
	struct pod *p = *state;
	struct net *n = NULL;

	run(p, "for i in 1 2 3 4 5; do ip link add a$i type veth peer name b$i;"
	       "ip link set a$i up; ip link set b$i up; done");
	assert_int_equal(net_open(p->path, &tcfilter, &n, &p->err), -E2BIG);
}

/* --- packets --- */

static int raw_socket(const char *link)
{
	struct sockaddr_ll at = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL),
				  .sll_ifindex = (int)if_nametoindex(link) };
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL));

	assert_true(fd >= 0 && at.sll_ifindex);
	assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof(at)), 0);
	return fd;
}

/* Waits for our frame among what the links say by themselves. */
static bool arrives(int fd, size_t skip, const char *text)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	char data[2048];

	while (poll(&p, 1, 5000) > 0) {
		ssize_t n = read(fd, data, sizeof(data));

		if (n > (ssize_t)(skip + ETH_HLEN + strlen(text)) &&
		    memcmp(data + skip + ETH_HLEN, text, strlen(text)) == 0)
			return true;
	}
	return false;
}

static size_t make_frame(char *out, size_t skip, const char *text)
{
	memset(out, 0, 128);
	memset(out + skip, 0xff, ETH_ALEN);
	memcpy(out + skip + ETH_ALEN, "\2\0\0\0\0\7\x88\xb5", 8); /* local experiment */
	memcpy(out + skip + ETH_HLEN, text, strlen(text));
	return skip + 64;
}

static void check_packets(int tap)
{
	int host = raw_socket("h0");
	char frame[128];
	size_t n = make_frame(frame, VNET_HDR, "from the guest");

	assert_int_equal(write(tap, frame, n), (ssize_t)n);
	assert_true(arrives(host, 0, "from the guest"));
	n = make_frame(frame, 0, "to the guest");
	assert_int_equal(write(host, frame, n), (ssize_t)n);
	assert_true(arrives(tap, VNET_HDR, "to the guest"));
	(void)close(host);
}

static void tcfilter_carries_packets(void **state)
{
	struct pod *p = *state;
	struct net_holds holds;
	struct net *n = attach(p, &tcfilter, &holds);

	assert_int_equal(holds.n, 1);
	assert_true(holds.hold[0].filter && holds.hold[0].ingress);
	assert_true(net_state(n)->links[0].attached);
	check_packets(net_state(n)->links[0].fds[0]);
	/* This side says nothing on the tap by itself. */
	run(p, "! ip -6 addr show dev %s | grep -q inet6", net_state(n)->links[0].tap);
	net_free(n);
	release(p, &holds);
	assert_clean(p);
	release(p, &holds);
}

static void macvtap_carries_packets(void **state)
{
	const struct net_options o = { .model = NET_MODEL_MACVTAP, .queues = 2 };
	struct pod *p = *state;
	struct net_holds holds;
	struct net *n = attach(p, &o, &holds);

	assert_int_equal(net_state(n)->links[0].bridge, NET_BRIDGE_MACVTAP);
	assert_int_equal(net_state(n)->links[0].n_fds, 2);
	assert_true(holds.hold[0].macvtap);
	assert_true(net_state(n)->links[0].fds[1] >= 0);
	/* Packets are spread over the queues; all of them then go to the one that is left. */
	assert_true(dup2(net_state(n)->links[0].fds[0], net_state(n)->links[0].fds[1]) >= 0);
	check_packets(net_state(n)->links[0].fds[0]);
	net_free(n);
	run(p, "ip link show %s", holds.hold[0].tap);
	release(p, &holds);
	assert_clean(p);
}

static void existing_taps_are_used(void **state)
{
	const struct net_options o = { .model = NET_MODEL_TCFILTER, .queues = 2 };
	struct pod *p = *state;
	struct net_holds holds;
	struct net *n;

	run(p, "ip tuntap add tap7 mode tap && ip link set tap7 up &&"
	       "ip link add link eth0 name mt0 type macvtap mode bridge && ip link set mt0 up");
	n = attach(p, &o, &holds);
	assert_int_equal(net_state(n)->n_links, 3);
	for (size_t i = 0; i < 3; i++) {
		const struct net_link *l = &net_state(n)->links[i];

		if (str_eq(l->name, "eth0"))
			continue;
		assert_int_equal(l->bridge, NET_BRIDGE_DIRECT);
		assert_string_equal(l->tap, l->name);
		assert_int_equal(l->n_fds, 1);
		assert_true(l->fds[0] >= 0);
	}
	net_free(n);
	release(p, &holds);
	run(p, "ip link show tap7 && ip link show mt0");
}

/* --- undoing --- */

static void failure_leaves_nothing(void **state)
{
	struct pod *p = *state;
	struct net *n;
	int index;

	run(NULL, "ip link add h1 type veth peer name eth1 netns %d && ip link set h1 up", p->holder);
	run(p, "ip link set eth1 up");
	n = open_net(p, &tcfilter);
	assert_int_equal(net_state(n)->n_links, 2);
	index = net_state(n)->links[1].index;
	/* The second tap's name is taken by something else. */
	run(p, "ip link add tap%d_csn type veth peer name x0", index);
	assert_true(net_attach(n, &p->err) < 0);
	assert_non_null(strstr(p->err.msg, p->path));
	net_free(n);
	run(p, "! tc qdisc show | grep -q ingress");
}

static void others_filters_stay(void **state)
{
	struct pod *p = *state;
	struct net_holds holds;
	struct net *n;

	run(p, "tc qdisc add dev eth0 ingress && tc filter add dev eth0 parent ffff: prio 3 "
	       "protocol ip u32 match ip dst 10.1.0.99/32 action mirred egress redirect dev lo");
	n = attach(p, &tcfilter, &holds);
	assert_true(holds.hold[0].filter && !holds.hold[0].ingress);
	check_packets(net_state(n)->links[0].fds[0]);
	net_free(n);
	release(p, &holds);
	run(p, "tc filter show dev eth0 ingress | grep -q 'pref 3'");
	run(p, "! tc filter show dev eth0 ingress | grep -q _csn");
	run(p, "! tc filter show dev eth0 ingress | grep -q 'pref 51733'");
}

/* The path of a record may name another namespace by now. */
static void another_namespace_is_left_alone(void **state)
{
	struct pod *p = *state;
	struct net_holds holds;
	struct net *n = attach(p, &tcfilter, &holds);

	holds.ino++;
	release(p, &holds);
	check_packets(net_state(n)->links[0].fds[0]);
	holds.ino--;
	(void)snprintf(holds.netns, sizeof(holds.netns), "/nonexistent");
	release(p, &holds);
	(void)snprintf(holds.netns, sizeof(holds.netns), "/proc/self/ns/net");
	release(p, &holds);
	(void)snprintf(holds.netns, sizeof(holds.netns), "%s", p->path);
	net_free(n);
	release(p, &holds);
	assert_clean(p);
}

static void rates(void **state)
{
	struct net_options o = { .queues = 1, .rx_rate = 1 << 20, .tx_rate = 5ULL << 30 };
	struct pod *p = *state;
	struct net_holds holds;
	struct net *n = attach(p, &o, &holds);

	run(p, "tc qdisc show dev %s | grep -q 'tbf.*rate 8388'", holds.hold[0].tap);
	run(p, "tc qdisc show dev eth0 | grep -q 'tbf.*rate 42949'");
	check_packets(net_state(n)->links[0].fds[0]);
	net_free(n);
	release(p, &holds);
	assert_clean(p);
	run(p, "tc qdisc add dev eth0 root handle 5: tbf rate 1mbit burst 32k latency 50ms");
	assert_int_equal(net_open(p->path, &o, &n, &p->err), -EOPNOTSUPP);
}

/* --- later --- */

static void links_come_and_go(void **state)
{
	const struct net_options o = { .queues = 1, .spare = 1 };
	struct pod *p = *state;
	struct net_holds holds;
	struct net *n = attach(p, &o, &holds);
	const struct net_link *l = &net_state(n)->links[1];
	struct pollfd watch = { .events = POLLIN };
	unsigned left = 0;
	bool changed = true;
	int fds[1];

	assert_int_equal(net_state(n)->n_links, 2);
	assert_int_equal(l->index, 0);
	assert_int_equal(net_watch(n, &watch.fd, &p->err), 0);
	/* Link-local addresses may have come since. */
	assert_int_equal(net_rescan(n, &changed, &left, &p->err), 0);
	assert_int_equal(net_rescan(n, &changed, &left, &p->err), 0);
	assert_false(changed);
	assert_int_equal(poll(&watch, 1, 0), 0);

	run(NULL, "ip link add h1 type veth peer name eth1 netns %d && ip link set h1 up", p->holder);
	run(p, "ip addr add 10.2.0.2/24 dev eth1 && ip link set eth1 up &&"
	       "ip route add 10.3.0.0/24 via 10.2.0.1");
	assert_int_equal(poll(&watch, 1, 5000), 1);
	assert_int_equal(net_rescan(n, &changed, &left, &p->err), 0);
	assert_true(changed);
	assert_int_equal(left, 0);
	assert_string_equal(l->name, "eth1");
	assert_true(memcmp(l->mac, l->card_mac, 6) != 0);
	assert_int_equal(find_route(net_state(n), "10.3.0.0")->link, 1);
	net_holds(n, &holds);
	assert_string_equal(holds.hold[1].link, "eth1");
	fds[0] = l->fds[0];
	assert_int_equal(net_attach(n, &p->err), 0);
	assert_int_equal(l->fds[0], fds[0]);

	/* A neighbour that went is told once. */
	run(p, "ip neigh add 10.2.0.8 lladdr 02:00:00:00:00:08 dev eth1");
	assert_int_equal(net_rescan(n, &changed, &left, &p->err), 0);
	assert_int_equal(net_state(n)->n_neighs, 1);
	assert_int_equal(net_state(n)->neighs[0].state, NUD_PERMANENT);
	run(p, "ip neigh del 10.2.0.8 dev eth1");
	assert_int_equal(net_rescan(n, &changed, &left, &p->err), 0);
	assert_true(changed);
	assert_int_equal(net_state(n)->n_neighs, 1);
	assert_int_equal(net_state(n)->neighs[0].state, NUD_FAILED);
	assert_int_equal(net_rescan(n, &changed, &left, &p->err), 0);
	assert_int_equal(net_state(n)->n_neighs, 0);

	/* One more than there are cards for. */
	run(p, "ip link add a0 type veth peer name a1 && ip link set a0 up");
	assert_int_equal(net_rescan(n, &changed, &left, &p->err), 0);
	assert_int_equal(left, 1);
	run(p, "ip link del a0");

	run(p, "ip link del eth1");
	assert_int_equal(net_rescan(n, &changed, &left, &p->err), 0);
	assert_true(changed);
	assert_true(l->gone);
	assert_null(find_route(net_state(n), "10.3.0.0"));
	net_holds(n, &holds);
	assert_string_equal(holds.hold[1].link, "");
	net_free(n);
	release(p, &holds);
	assert_clean(p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		cmocka_unit_test(models_have_names),
		cmocka_unit_test(pci_addresses),
		T(hosts_network_is_refused),
		T(reads_what_cni_left),
		T(removed_prefix_route),
		T(too_many_links),
		T(tcfilter_carries_packets),
		T(macvtap_carries_packets),
		T(existing_taps_are_used),
		T(failure_leaves_nothing),
		T(others_filters_stay),
		T(another_namespace_is_left_alone),
		T(rates),
		T(links_come_and_go),
	};

	if (unshare(CLONE_NEWNET) < 0) {
		printf("skipped: a network namespace of its own takes root\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* See network.h. */
#include "sandbox/network_priv.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "net/net.h"
#include "oci/oci.h"
#include "sandbox/forward.h"
#include "sandbox/handover.h"
#include "sandbox/usernet.h"

#define RESOLV_CONF "/etc/resolv.conf"
#define RESOLV_MAX  ((size_t)64 << 10)
#define DNS_MAX     64u

#define DOCKER_NAMESPACE "moby" /* of containerd; Docker adds links between create and start */
#define SETTLE_MS        20u    /* changes come in bursts */

/* --- before the VM --- */

static int find_netns(const struct sandbox *s, const Grpc__Spec *spec, const char **ret_path,
		      struct error *err)
{
	const Grpc__LinuxNamespace *ns;

	*ret_path = NULL;
	if (s->netns) {
		*ret_path = *s->netns ? s->netns : NULL;
		return 0;
	}
	if (!spec || !spec->linux)
		return 0;
	ns = oci_namespace_find(spec, "network");
	if (!ns)
		return error_set(
			err, -EPERM,
			"the host's network is asked for (the spec has no network namespace): a "
			"virtual machine cannot share it; give the pod a network of its own");
	*ret_path = str_empty(ns->path) ? NULL : ns->path;
	return 0;
}

/* A pod's resolv.conf is a file that the containers get; the guest's own programs use it too. */
static void read_dns(struct network *n, const Grpc__Spec *spec)
{
	const char *source = NULL;
	auto_free char *text = NULL;
	char *save = NULL;

	for (size_t i = 0; spec && i < spec->n_mounts; i++)
		if (str_eq(spec->mounts[i]->destination, RESOLV_CONF))
			source = spec->mounts[i]->source;
	if (str_empty(source) || fd_read_file(AT_FDCWD, source, RESOLV_MAX, &text, NULL) < 0)
		return;
	n->dns = calloc(DNS_MAX, sizeof(*n->dns));
	for (char *line = strtok_r(text, "\n", &save); line && n->dns && n->n_dns < DNS_MAX;
	     line = strtok_r(NULL, "\n", &save)) {
		char *copy = strdup(line);

		if (copy)
			n->dns[n->n_dns++] = copy;
	}
}

static int write_record(struct sandbox *s, struct error *err)
{
	if (!s->record.net)
		s->record.net = calloc(1, sizeof(*s->record.net));
	if (!s->record.net)
		return error_set(err, -ENOMEM, "out of memory");
	net_holds(s->network->net, s->record.net);
	return sandbox_record_write(s->dir, &s->record, err);
}

/* Links cannot be two machines' at once: the second one's taps would take the first one's packets. */
static int check_taken(const struct sandbox *s, const char *path, struct error *err)
{
	auto_free char *ns = NULL, *id = NULL;
	int r = sandbox_of_netns(path, &ns, &id, err);

	if (r < 0 || !id || (str_eq(ns, s->ns) && str_eq(id, s->id)))
		return r;
	return error_set(err, -EBUSY,
			 "the network namespace '%s' is that of sandbox '%s' (namespace '%s'): two virtual "
			 "machines cannot have the same links", path, id, ns);
}

bool network_is_shared(const struct sandbox *s, const Grpc__Spec *spec)
{
	const Grpc__LinuxNamespace *ns = oci_namespace_find(spec, "network");
	struct stat st;

	return s->record.net && ns && !str_empty(ns->path) && stat(ns->path, &st) == 0 &&
	       s->record.net->dev == st.st_dev && s->record.net->ino == st.st_ino;
}

/*
 * A namespace that is to be made (no @path) gets its links later, if at all, by Docker or by hooks:
 * without cards for them there is no use in it.
 */
static unsigned slots(const struct sandbox *s, const Grpc__Spec *spec, const char *path)
{
	const Grpc__Hooks *h = spec ? spec->hooks : NULL;
	unsigned n = s->config->network_slots;
	bool later = str_eq(s->ns, DOCKER_NAMESPACE);

	if (!path && h)
		later = later || h->n_prestart || h->n_createruntime;
	return n == 0 && later ? 1 : n;
}

static bool makes_own(const struct sandbox *s, const Grpc__Spec *spec)
{
	return !s->netns && spec && slots(s, spec, NULL) && !str_eq(s->ns, SANDBOX_OWN_NAMESPACE) &&
	       oci_namespace_find(spec, "network");
}

int network_open(struct sandbox *s, const Grpc__Spec *spec, unsigned queues, struct error *err)
{
	auto_free char *own = NULL;
	struct net_options o = {
		.queues = queues,
		.rx_rate = s->config->network_rx_rate,
		.tx_rate = s->config->network_tx_rate,
	};
	const char *path;
	int r = find_netns(s, spec, &path, err);

	if (r == 0 && !path && spec && !s->usernet)
		r = usernet_open(s, oci_annotation_get(spec, SANDBOX_NETWORK),
				 oci_annotation_get(spec, SANDBOX_PUBLISH), err);
	if (r < 0 || s->network || (!path && !makes_own(s, spec)))
		return r;
	o.spare = slots(s, spec, path);
	if (net_model_parse(s->config->network_model, &o.model) < 0)
		return error_set(err, -EINVAL, "unknown network model '%s'",
				 s->config->network_model);
	s->network = calloc(1, sizeof(*s->network));
	if (!s->network)
		return error_set(err, -ENOMEM, "out of memory");
	s->network->made_fd = -1;
	if (!path) {
		r = net_make(&s->network->made_fd, err);
		if (r == 0) {
			path = own =
				str_printf("/proc/%d/fd/%d", (int)getpid(), s->network->made_fd);
			r = own ? 0 : error_set(err, -ENOMEM, "out of memory");
		}
	}
	if (r == 0)
		r = net_open(path, &o, &s->network->net, err);
	if (r == 0 && net_taken(s->network->net))
		r = check_taken(s, path, err);
	if (r == 0)
		r = write_record(s, err);
	if (r == 0)
		r = net_attach(s->network->net, err);
	if (r < 0) {
		network_free(s);
		return r;
	}
	read_dns(s->network, spec);
	if (s->is_pod) {
		struct error e = { 0 };

		if (forward_new(s, path, &s->network->forward, &e) < 0)
			log_warn("ports cannot be forwarded: %s", error_text(&e));
	}
	return 0;
}

size_t network_nics(const struct sandbox *s, struct vmm_nic nics[static VMM_MAX_NICS])
{
	const struct net_state *st = s->network ? net_state(s->network->net) : NULL;
	size_t n = 0;

	if (s->usernet)
		usernet_nic(s->usernet, &nics[n++]);
	for (size_t i = 0; st && i < st->n_links && n < VMM_MAX_NICS; i++) {
		const struct net_link *l = &st->links[i];

		if (l->bridge == NET_BRIDGE_VFIO)
			continue;
		nics[n] = (struct vmm_nic){
			/* The agent sets the MTU: the card's own would be a bound for later ones.
			 */
			.kind = VMM_NIC_TAP,
			.fds = l->fds,
			.n_fds = l->n_fds,
		};
		memcpy(nics[n].mac, l->card_mac, sizeof(nics[n].mac));
		n++;
	}
	return n;
}

size_t network_pci(const struct sandbox *s, const char *addresses[static VMM_MAX_PCI])
{
	const struct net_state *st = s->network ? net_state(s->network->net) : NULL;
	size_t n = 0;

	while (n < s->n_pci) {
		addresses[n] = s->pci[n];
		n++;
	}

	for (size_t i = 0; st && i < st->n_links && n < VMM_MAX_PCI; i++)
		if (st->links[i].bridge == NET_BRIDGE_VFIO)
			addresses[n++] = st->links[i].pci.address;
	return n;
}

int network_pci_place(const struct sandbox *s, const struct net_link *l)
{
	const char *addresses[VMM_MAX_PCI];
	size_t n = l->bridge == NET_BRIDGE_VFIO ? network_pci(s, addresses) : 0;

	while (n--)
		if (addresses[n] == l->pci.address)
			return (int)n;
	return -1;
}

int network_netns(const struct sandbox *s)
{
	return s->network ? s->network->made_fd : -1;
}

size_t network_dns(const struct sandbox *s, char ***ret_lines)
{
	*ret_lines = s->network ? s->network->dns : NULL;
	return s->network ? s->network->n_dns : 0;
}

void network_vm_started(struct sandbox *s)
{
	struct error err = { 0 };

	if (s->network)
		net_close_taps(s->network->net);
	if (s->usernet && s->vmm && usernet_start(s, &err) < 0)
		log_error("the container has no network: %s", err.msg);
}

/* --- what changes later --- */

static void follow(struct sandbox *s)
{
	struct network *n = s->network;
	struct error err = { 0 };
	bool changed = false;
	unsigned left = 0;
	int r;

	if (s->state != VM_READY || s->stopping)
		return;
	r = net_rescan(n->net, &changed, &left, &err);
	if (r == 0 && left)
		log_warn("the network has %u links more than the virtual machine has cards for "
			 "(network.slots in the configuration)",
			 left);
	if (r == 0 && changed) {
		r = write_record(s, &err);
		if (r == 0)
			r = net_attach(n->net, &err);
		if (r == 0) {
			log_debug("the network has changed");
			n->changing = true;
			network_tell_agent(s);
		}
	}
	/* The pod goes on with what it had. */
	if (r < 0)
		log_warn("%s", error_text(&err));
}

static void on_settled(void *arg)
{
	struct sandbox *s = arg;

	s->network->timer = NULL;
	follow(s);
}

void network_sync(struct sandbox *s)
{
	if (!s->network || !s->network->watching)
		return;
	loop_timer_cancel(take_ptr(&s->network->timer));
	follow(s);
}

static void on_change(uv_poll_t *poll, int status, int events)
{
	struct sandbox *s = poll->data;
	struct network *n = s->network;

	(void)events;
	if (status < 0) {
		(void)uv_poll_stop(poll);
		return;
	}
	net_watch_clear(n->net);
	if (!n->timer)
		(void)!loop_timer_start(s->loop, SETTLE_MS, on_settled, s, &n->timer);
}

static void watch(struct sandbox *s)
{
	struct network *n = s->network;
	struct error err = { 0 };
	int fd;

	if (n->watching || net_watch(n->net, &fd, &err) < 0 ||
	    uv_poll_init(s->loop, &n->poll, fd) < 0)
		return;
	n->poll.data = s;
	n->watching = true;
	(void)uv_poll_start(&n->poll, UV_READABLE, on_change);
}

void network_configure(struct sandbox *s)
{
	struct error err = { 0 };
	int r = s->usernet ? usernet_configure(s) : 0;

	if (r < 0) {
		(void)error_errno(&err, r, "talk to the agent");
		network_fail(s, &err, "request");
	}
	if (!s->network)
		return;
	network_tell_agent(s);
	watch(s);
}

/* --- handing over --- */

bool network_busy(const struct sandbox *s)
{
	const struct network *n = s->network;

	return n && (n->timer || (n->forward && forward_busy(n->forward)));
}

HandoverNetwork *network_save(const struct sandbox *s, struct arena *a)
{
	const struct net_state none = { .n_links = 0 }, *st;
	const struct network *n = s->network;
	Caisson__Handover__V1__Link *v;
	HandoverNetwork *m;

	if (!n)
		return NULL;
	m = HANDOVER_NEW(a, HandoverNetwork, caisson__handover__v1__network__init);
	st = n->net ? net_state(n->net) : &none;
	v = arena_alloc(a, st->n_links, sizeof(*v));
	if (!m || !v)
		return NULL;
	m->path = handover_text(n->net ? net_path(n->net) : NULL);
	m->made_fd = n->made_fd;
	m->watching = n->watching;
	m->forward_listener = m->forward_hold = -1;
	m->links = arena_alloc(a, st->n_links, sizeof(*m->links));
	for (size_t i = 0; m->links && i < st->n_links; i++, v++) {
		const struct net_link *l = &st->links[i];

		caisson__handover__v1__link__init(v);
		v->name = handover_text(l->name);
		v->kind = handover_text(l->kind);
		v->index = l->index;
		v->mac = (ProtobufCBinaryData){ sizeof(l->mac), (uint8_t *)l->mac };
		v->card_mac = (ProtobufCBinaryData){ sizeof(l->card_mac), (uint8_t *)l->card_mac };
		v->mtu = l->mtu;
		v->flags = l->flags;
		v->bridge = l->bridge;
		v->tap = handover_text(l->tap);
		v->queues = l->n_fds;
		v->made = l->made;
		v->attached = l->attached;
		v->gone = l->gone;
		m->links[m->n_links++] = v;
	}
	if (n->forward)
		forward_save(n->forward, a, m);
	return m;
}

static int restore_links(const HandoverNetwork *m, struct net_link *links)
{
	for (size_t i = 0; i < m->n_links; i++) {
		const Caisson__Handover__V1__Link *v = m->links[i];
		struct net_link *l = &links[i];

		*l = (struct net_link){
			.index = v->index,
			.mtu = v->mtu,
			.flags = v->flags,
			.bridge = (enum net_bridge)v->bridge,
			.n_fds = v->queues,
			.made = v->made,
			.attached = v->attached,
			.gone = v->gone,
		};
		if (v->mac.len != sizeof(l->mac) || v->card_mac.len != sizeof(l->card_mac) ||
		    v->queues > NET_MAX_QUEUES || v->bridge > NET_BRIDGE_VFIO ||
		    str_format(l->name, sizeof(l->name), "%s", v->name) < 0 ||
		    str_format(l->kind, sizeof(l->kind), "%s", v->kind) < 0 ||
		    str_format(l->tap, sizeof(l->tap), "%s", v->tap) < 0)
			return -EINVAL;
		memcpy(l->mac, v->mac.data, sizeof(l->mac));
		memcpy(l->card_mac, v->card_mac.data, sizeof(l->card_mac));
		memset(l->fds, 0xff, sizeof(l->fds));
	}
	return 0;
}

int network_restore(struct sandbox *s, const HandoverNetwork *m)
{
	const struct net_options o = {
		.spare = slots(s, NULL, m->path),
		.rx_rate = s->config->network_rx_rate,
		.tx_rate = s->config->network_tx_rate,
	};
	struct net_link links[NET_MAX_LINKS];
	bool follow = *m->path && s->record.net;
	struct error err = { 0 };
	int r;

	if (m->n_links > NET_MAX_LINKS)
		return -EINVAL;
	s->network = calloc(1, sizeof(*s->network));
	if (!s->network)
		return -ENOMEM;
	s->network->made_fd = m->made_fd;
	r = restore_links(m, links);
	if (r < 0)
		return r;
	for (size_t i = 0; i < m->n_links; i++)
		follow = follow && links[i].bridge != NET_BRIDGE_VFIO;
	/*
	 * Without it the guest keeps what it has, and is not told of changes: so it is where a card is
	 * a device of the host, whose link is not in the namespace any more.
	 */
	if (follow && net_resume(m->path, &o, links, m->n_links, s->record.net,
					 &s->network->net, &err) < 0)
		log_warn("the network's changes are not followed any more: %s", error_text(&err));
	s->network->changing = true;
	s->network->watching = m->watching;
	return m->forward_listener >= 0 ? forward_restore(s, m, &s->network->forward) : 0;
}

/* Changes may have come while nobody looked. */
void network_resume(struct sandbox *s)
{
	struct network *n = s->network;

	if (!n || !n->watching)
		return;
	n->watching = false;
	if (n->net)
		watch(s);
	if (n->watching && !n->timer)
		(void)!loop_timer_start(s->loop, 0, on_settled, s, &n->timer);
}

/* --- the end --- */

static void network_destroy(struct network *n)
{
	cleanup_close_(&n->made_fd);
	net_free(n->net);
	for (size_t i = 0; i < n->n_dns; i++)
		free(n->dns[i]);
	free(n->dns);
	free(n);
}

static void on_poll_closed(uv_handle_t *handle)
{
	struct network *n = container_of((uv_poll_t *)handle, struct network, poll);

	n->watching = false;
	if (n->closing)
		network_destroy(n);
}

static void stop_watching(struct network *n)
{
	loop_timer_cancel(take_ptr(&n->timer));
	if (n->watching && !uv_is_closing((uv_handle_t *)&n->poll))
		uv_close((uv_handle_t *)&n->poll, on_poll_closed);
}

void network_vm_gone(struct sandbox *s)
{
	struct error err = { 0 };

	if (!s->network)
		return;
	stop_watching(s->network);
	if (s->record.net && net_release(s->record.net, &err) < 0)
		log_warn("%s", error_text(&err));
}

void network_free(struct sandbox *s)
{
	struct network *n = take_ptr(&s->network);

	usernet_free(take_ptr(&s->usernet));
	if (!n)
		return;
	forward_free(n->forward);
	stop_watching(n);
	n->closing = true;
	if (!n->watching)
		network_destroy(n);
}

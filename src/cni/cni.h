/*
 * cni: runs CNI plugins (Container Network Interface, versions 0.3.0 to 1.0.0) as their
 * specification asks a runtime to. A network is a list of plugins; an attachment is one network
 * interface of one container. Called by the command line, and by tools; it knows neither
 * containers nor virtual machines, and makes no network namespace.
 *
 * Crash safety: what DEL needs is in the attachment's file, in a directory that the caller makes
 * for each container, before the first plugin runs. So cni_del() frees what an ADD acquired
 * whatever was killed in between. Running plugins hold the directory's lock (flock) by a
 * descriptor: a DEL waits for an ADD whose runtime was killed, and never runs beside it.
 *
 * Configurations and results come from files and from programs that others wrote: their sizes are
 * capped and every field is checked before it is used.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/cleanup.h"
#include "base/error.h"

#define CNI_NAME_MAX   128u
#define CNI_IFNAME_MAX 15u
#define CNI_TEXT_MAX   (1u << 20) /* of a configuration, or of what a plugin prints */
#define CNI_MAX_ITEMS  64u        /* plugins, interfaces, addresses, routes, name servers */
#define CNI_PLUGIN_DIRS "/usr/lib/cni:/opt/cni/bin"
#define CNI_CONF_DIR   "/etc/cni/net.d"

/* ---- networks ---- */

struct cni_network {
	char *name;
	char *version;
	char *path;     /* the file, or NULL */
	json_t *doc;    /* always in the form of a list */
	json_t *plugins; /* within doc */
	bool disable_check;
};

/* @origin names it in errors. Takes a list, or the configuration of a single plugin. */
__must_check int cni_network_parse(const char *text, size_t len, const char *origin,
				   struct cni_network **ret, struct error *err);
__must_check int cni_network_load(const char *path, struct cni_network **ret, struct error *err);
void cni_network_free(struct cni_network *net);
DEFINE_AUTO(struct cni_network, cni_network, cni_network_free);
#define auto_cni_network __attribute__((cleanup(cleanup_cni_network_)))

/* Whether a plugin of the network takes this capability ("portMappings", "ips", "mac", ...). */
bool cni_network_takes(const struct cni_network *net, const char *capability);

struct cni_networks {
	struct cni_network **v;
	size_t n;
};

/*
 * The networks of a directory's *.conflist, *.conf and *.json, by file name; none if the directory
 * is missing. A file that is wrong goes to @bad (may be NULL) and is left out.
 */
__must_check int cni_networks_load(const char *dir, struct cni_networks *ret,
				   void (*bad)(const char *path, const struct error *why),
				   struct error *err);
void cni_networks_fini(struct cni_networks *list);
bool cni_valid_name(const char *name);

/* ---- results ---- */

struct cni_ip {
	int family;         /* AF_INET, AF_INET6 */
	unsigned prefix;
	char address[46];   /* numeric, without the prefix */
	char gateway[46];   /* "" if there is none */
	int interface;      /* index into interfaces, -1: not said */
};

struct cni_interface {
	char name[CNI_IFNAME_MAX + 1];
	char mac[24];
	bool sandbox;       /* inside the container's namespace */
};

struct cni_route {
	char dst[52];       /* with the prefix */
	char gateway[46];   /* "": directly */
};

struct cni_dns {
	char **servers, **search, **options; /* NULL-terminated, or NULL */
};

struct cni_result {
	json_t *json;       /* as the plugin gave it */
	struct cni_interface *interfaces;
	struct cni_ip *ips;
	struct cni_route *routes;
	size_t n_interfaces, n_ips, n_routes;
	struct cni_dns dns;
};

__must_check int cni_result_parse(json_t *json, struct cni_result **ret, struct error *err);
void cni_result_free(struct cni_result *res);
DEFINE_AUTO(struct cni_result, cni_result, cni_result_free);
#define auto_cni_result __attribute__((cleanup(cleanup_cni_result_)))

/* ---- attachments ---- */

struct cni {
	const char *plugin_dirs; /* "DIR:DIR"; NULL: $CNI_PATH, else CNI_PLUGIN_DIRS */
	const char *dir;         /* the container's own, mode 0700, exists */
	unsigned timeout_ms;     /* for each plugin, 0: a minute */
};

struct cni_attachment {
	const char *container;   /* [A-Za-z0-9][A-Za-z0-9_.-]* */
	const char *netns;       /* absolute path */
	const char *ifname;
	const char *args;        /* CNI_ARGS, or NULL */
	json_t *capabilities;    /* object: capability to argument; NULL: none */
};

/*
 * Adds the interface. On failure everything is taken back, and what could not be is kept for
 * cni_del(). -EEXIST: the attachment has been made already.
 */
__must_check int cni_add(const struct cni *cni, const struct cni_network *net,
			 const struct cni_attachment *at, struct cni_result **ret,
			 struct error *err);
/* Asks the plugins whether the attachment is as it was made. */
__must_check int cni_check(const struct cni *cni, const char *ifname, struct error *err);
/*
 * Takes the interface away. Every plugin is asked even if one fails, which is then the error, and
 * the file is kept so that it can be tried again. 0 if there is no such attachment.
 */
__must_check int cni_del(const struct cni *cni, const char *ifname, struct error *err);
/* cni_del() for all attachments in the directory, the last first. */
__must_check int cni_del_all(const struct cni *cni, struct error *err);
/* Forgets the attachments without asking the plugins. */
__must_check int cni_forget_all(const struct cni *cni, struct error *err);
/* The result of a finished cni_add(). -ENOENT, or -ENODATA if it was never finished. */
__must_check int cni_cached(const struct cni *cni, const char *ifname, struct cni_result **ret,
			    struct error *err);

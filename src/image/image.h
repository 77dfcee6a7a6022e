/*
 * image: container images on this host.
 *
 * Finds an image (registry, OCI layout as a directory or archive, `docker save` archive), keeps
 * its blobs in a content-addressed store, and turns it into what a sandbox needs: one merged,
 * read-only EROFS file and the parsed image configuration. May be called by the CLI and by any
 * other host program that starts containers; not by the agent. Calls block; a store handle may
 * be used by one thread at a time. Any number of processes may use one store at once.
 *
 * Store layout ($CAISSON_ROOT/images, 0700):
 *   blobs/sha256/HEX   manifests, configs and layers, complete and verified
 *   refs/HEX.json      one record for each image name (HEX = sha256 of the name)
 *   rootfs/HEX.erofs   merged root file systems (HEX = chain id), with HEX.passwd and HEX.group
 *   tmp/               work in progress; each entry is locked (flock) by the process that owns it
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct image_store;

/* "os/architecture[/variant]", as in "linux/amd64"; NULL everywhere means this host's. */
struct image_platform {
	char os[32];
	char arch[32];
	char variant[16];
};

int image_platform_host(struct image_platform *ret);
int image_platform_parse(const char *text, struct image_platform *ret, struct error *err);

/* ---- references ------------------------------------------------------------------------- */

enum image_ref_kind {
	IMAGE_REF_REGISTRY,    /* [docker:// ]host[:port]/path[:tag][@digest], Docker's defaults */
	IMAGE_REF_OCI_DIR,     /* oci:DIR[:TAG] */
	IMAGE_REF_OCI_ARCHIVE, /* oci-archive:FILE[:TAG] */
	IMAGE_REF_DOCKER_ARCHIVE, /* docker-archive:FILE[:REF] */
};

struct image_ref {
	enum image_ref_kind kind;
	char *domain; /* registry only: "docker.io" */
	char *path; /* registry: "library/nginx"; else the absolute path of the file or directory */
	char *tag;  /* registry: "latest" unless a digest is given; else as given, or NULL */
	char *digest;   /* "sha256:…" or NULL */
	char *name;     /* canonical: "docker.io/library/nginx:latest", "oci:/abs/dir:tag" */
	char *familiar; /* as shown to people: "nginx:latest", "oci:/abs/dir:tag" */
};

int image_ref_parse(const char *text, struct image_ref *ret, struct error *err);
void image_ref_fini(struct image_ref *ref);

/* ---- store ------------------------------------------------------------------------------ */

/* @root NULL: $CAISSON_ROOT/images (default /var/lib/caisson/images). Made if missing. */
int image_store_open(const char *root, struct image_store **ret, struct error *err);
void image_store_close(struct image_store *store);

enum image_phase {
	IMAGE_RESOLVING, /* asking a registry, reading an archive's directory */
	IMAGE_FETCHING,  /* bytes of a blob arriving: done/total of blob @index of @count */
	IMAGE_UNPACKING, /* layer @index of @count: compressed bytes read of total */
	IMAGE_BUILDING,  /* mkfs.erofs runs */
	IMAGE_DONE,
};

struct image_progress {
	enum image_phase phase;
	const char *name;   /* the image, familiar form */
	const char *digest; /* the blob, or "" */
	unsigned index;     /* of the blob or layer, from 0 */
	unsigned count;
	uint64_t done;    /* bytes */
	uint64_t total;   /* bytes, 0 = unknown */
	bool cached;      /* the blob was in the store already */
	const char *note; /* retry or mirror message for people, or NULL */
};

/* Called at most about 20 times a second for each phase; non-zero cancels (-ECANCELED). */
typedef int (*image_progress_fn)(void *ctx, const struct image_progress *progress);

enum image_pull_policy {
	IMAGE_PULL_MISSING, /* use the store's copy if there is one */
	IMAGE_PULL_ALWAYS,
	IMAGE_PULL_NEVER,
};

/* Zeroed means: defaults. Strings are borrowed for the call. */
struct image_options {
	const char *platform;          /* "linux/arm64"; NULL = this host's */
	enum image_pull_policy policy; /* for image_prepare() */
	const char *name;              /* image_load(): record under this name instead */
	image_progress_fn progress;
	void *progress_ctx;
};

/*
 * Make the image named by @ref (any kind) present in the store: manifest, config and layers, and
 * record its name. An image that had the name before stays in the store under its digest. -ENOENT:
 * no such image; -EACCES: the registry wants (other) credentials; -EHOSTUNREACH, -ETIMEDOUT:
 * registry not reachable; -EBADMSG: digest or content is wrong; -ENOTSUP: platform or media type;
 * -ENOSPC; -ECANCELED.
 */
int image_pull(struct image_store *store, const char *ref, const struct image_options *opt,
	       struct error *err);

/* Names recorded by a load; free with image_names_fini(). */
struct image_names {
	char **v;
	size_t n;
};

/*
 * Load every image of a local file or directory: an OCI layout (directory or tar) or a
 * `docker save` archive, told apart by content. "-" reads an archive from standard input. Images
 * are recorded under the names the archive gives them; unnamed ones under their digest.
 */
int image_load(struct image_store *store, const char *path, const struct image_options *opt,
	       struct image_names *ret, struct error *err);
void image_names_fini(struct image_names *names);

/* ---- listing ---------------------------------------------------------------------------- */

struct image_info {
	char *name;        /* canonical */
	char *familiar;    /* for people */
	char *repository;  /* familiar without the tag: "nginx", "<none>" */
	char *tag;         /* "latest", "<none>" */
	char *id;          /* "sha256:…" of the config */
	char *digest;      /* "sha256:…" of the manifest */
	char *platform;    /* "linux/amd64" */
	char *created;     /* RFC 3339, from the config, or NULL */
	uint64_t size;     /* bytes of all layers as stored */
	int64_t pulled_at; /* unix seconds */
};

struct image_list {
	struct image_info *v;
	size_t n;
};

/* Sorted by name. */
int image_list(struct image_store *store, struct image_list *ret, struct error *err);
void image_list_fini(struct image_list *list);

/*
 * Forget a name; blobs and root file systems that no other image uses go too. @ref is a name, a
 * config id or a unique prefix of one (>= 4 hex digits). The caller has checked that no
 * container uses it. @ret_name (may be NULL) is the canonical name that went, for the caller to
 * free.
 */
int image_remove(struct image_store *store, const char *ref, char **ret_name, struct error *err);

/*
 * Docker-shaped JSON object describing the image (Id, RepoTags, RepoDigests, Created,
 * Architecture, Os, Config, RootFS, Size …), malloc'd.
 */
int image_inspect(struct image_store *store, const char *ref, char **ret_json, struct error *err);

/*
 * Remove unreferenced blobs and root file systems, and what dead processes left in tmp. Images
 * being pulled or prepared at the same time are safe. @ret_bytes may be NULL.
 */
int image_gc(struct image_store *store, uint64_t *ret_bytes, struct error *err);

/*
 * image_gc() after forgetting the images without a name (whose name went to a newer one, or that
 * never had one), unless @used (may be NULL) says that a container needs the one with config @id.
 */
int image_prune(struct image_store *store, bool (*used)(void *ctx, const char *id), void *ctx,
		uint64_t *ret_bytes, struct error *err);

/* ---- use -------------------------------------------------------------------------------- */

struct image_config {
	char **env; /* NULL-terminated lists, never NULL themselves */
	char **entrypoint;
	char **cmd;
	char **exposed_ports; /* "80/tcp" */
	char **volumes;       /* absolute paths */
	char **labels;        /* "key=value" */
	char *user;           /* "" if none */
	char *workdir;        /* "" if none */
	char *stop_signal;    /* "" if none; "SIGQUIT", "3" */
};

struct image {
	char *name; /* canonical */
	char *familiar;
	char *id;       /* "sha256:…" of the config */
	char *digest;   /* "sha256:…" of the manifest */
	char *chain_id; /* "sha256:…" */
	char *rootfs;   /* absolute path of the merged EROFS file */
	char *passwd;   /* absolute path of the image's /etc/passwd; the file may be missing */
	char *group;    /* likewise /etc/group */
	struct image_config config;
	int lock_fd; /* keeps the rootfs from being collected; closed by image_free() */
};

/*
 * Everything `run` and `create` need. Pulls or imports first as opt->policy says, unpacks and
 * builds the EROFS file if no image with this content has been prepared before. A few
 * milliseconds when all is there. @ref as for image_pull(), or an image id as for image_remove().
 */
int image_prepare(struct image_store *store, const char *ref, const struct image_options *opt,
		  struct image **ret, struct error *err);
void image_free(struct image *image);

struct image_user {
	uint32_t uid;
	uint32_t gid;
	uint32_t *groups; /* supplementary groups */
	size_t n_groups;
	char *home; /* "/" if the image does not say */
};

/*
 * Resolve "user", "uid", "user:group", "uid:gid" … as Docker does. @user NULL or "" means the
 * image's own USER, then root. -ENOENT "no user 'x' in image 'y'" for an unknown name.
 */
int image_resolve_user(const struct image *image, const char *user, struct image_user *ret,
		       struct error *err);
void image_user_fini(struct image_user *user);

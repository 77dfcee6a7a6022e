/*
 * Images from registries (the OCI distribution protocol).
 *
 * A registry is a list of endpoints: its mirrors in order, then itself. Each is asked until one
 * has the manifest; blobs come from that one, else from those after it. What a mirror says is
 * checked by digest, except which manifest a tag means. Each endpoint has its own credentials,
 * and those of one are never sent to another. Transfers that break are taken up where they
 * stopped, as long as they make progress.
 */
#include "image/credentials.h"
#include "image/http.h"

#include <stdio.h>
#include <string.h>

struct endpoint {
	char *base; /* "https://host[:port]" and perhaps a path, no slash at the end */
	char *host; /* for credentials: "host[:port]", or "docker.io" */
	bool mirror;
	bool allow_http;
	bool asked; /* credentials were looked up */
	struct credentials creds;
	bool basic; /* the registry wants them as they are */
	char *token;
};

struct registry {
	struct image_source source;
	struct http *http;
	struct endpoint *v;
	size_t n;
	size_t current; /* that gave the manifest */
	char *domain;
	char *repository;
	char *wanted; /* tag or digest */
	char *ca_file;
	bool insecure;
	char note[160];
};

static const char *const manifest_headers[] = {
	"Accept: application/vnd.oci.image.index.v1+json",
	"Accept: application/vnd.docker.distribution.manifest.list.v2+json",
	"Accept: application/vnd.oci.image.manifest.v1+json",
	"Accept: application/vnd.docker.distribution.manifest.v2+json",
	NULL,
};

static struct registry *of(struct image_source *src)
{
	return container_of(src, struct registry, source);
}

static void endpoint_fini(struct endpoint *ep)
{
	free(ep->base);
	free(ep->host);
	credentials_fini(&ep->creds);
	free(ep->token);
}

/* ---- authorisation ---------------------------------------------------------------------- */

static int load_credentials(struct endpoint *ep, struct error *err)
{
	if (ep->asked)
		return 0;
	ep->asked = true;
	return credentials_find(ep->host, &ep->creds, err);
}

static int take_token(struct endpoint *ep, const struct http_response *resp, struct error *err)
{
	auto_json json_t *j =
		json_loadb((const char *)buf_head(&resp->body), resp->body.len, 0, NULL);
	const char *token = json_string_value(json_object_get(j, "token"));

	if (str_empty(token))
		token = json_string_value(json_object_get(j, "access_token"));
	if (str_empty(token))
		return error_set(err, -EBADMSG, "the token server of '%s' sent no token", ep->host);
	free(ep->token);
	ep->token = strdup(token);
	return ep->token ? 0 : error_set(err, -ENOMEM, "out of memory");
}

static int no_access(const struct registry *reg, const struct endpoint *ep, struct error *err)
{
	if (ep->creds.user || ep->creds.identity_token)
		return error_set(err, -EACCES,
				 "registry '%s' refuses the credentials in docker's "
				 "config.json",
				 ep->host);
	return error_set(err, -EACCES,
			 "access denied by registry '%s': the repository '%s' does "
			 "not exist, or needs credentials in docker's config.json",
			 ep->host, reg->repository);
}

/* Asks the challenge's realm for a token to pull. */
static int get_token(struct registry *reg, struct endpoint *ep, const struct challenge *ch,
		     struct error *err)
{
	auto_free char *service = http_escape(ch->service ? ch->service : "");
	auto_free char *scope_text =
		ch->scope ? strdup(ch->scope) : str_printf("repository:%s:pull", reg->repository);
	auto_free char *scope = scope_text ? http_escape(scope_text) : NULL;
	auto_free char *refresh =
		http_escape(ep->creds.identity_token ? ep->creds.identity_token : "");
	auto_free char *url = NULL, *post = NULL;
	struct http_response resp = { 0 };
	struct http_request req = { .max_body = LIMIT_TOKEN_BYTES,
				    .allow_http = ep->allow_http,
				    .ca_file = reg->ca_file,
				    .insecure = reg->insecure };
	int r;

	if (!service || !scope || !refresh)
		return error_set(err, -ENOMEM, "out of memory");
	if (!str_has_prefix(ch->realm, "https://") &&
	    !(ep->allow_http && str_has_prefix(ch->realm, "http://")))
		return error_set(err, -EPROTO,
				 "registry '%s' sends us to '%.100s' for a token, which "
				 "is not https",
				 ep->host, ch->realm);
	if (ep->creds.identity_token) {
		url = strdup(ch->realm);
		post = str_printf("grant_type=refresh_token&service=%s&scope=%s&client_id=caisson&"
				  "refresh_token=%s",
				  service, scope, refresh);
		req.post = post;
	} else {
		url = str_printf("%s%sservice=%s&scope=%s", ch->realm,
				 strchr(ch->realm, '?') ? "&" : "?", service, scope);
		req.user = ep->creds.user;
		req.password = ep->creds.password;
	}
	if (!url || (ep->creds.identity_token && !post))
		return error_set(err, -ENOMEM, "out of memory");
	req.url = url;
	r = http_perform(reg->http, &req, &resp, err);
	if (r < 0)
		return r;
	if (resp.status == 200)
		r = take_token(ep, &resp, err);
	else if (resp.status == 400 || resp.status == 401 || resp.status == 403)
		r = no_access(reg, ep, err);
	else
		r = error_set(err, -EIO, "the token server of '%s' answers %ld", ep->host,
			      resp.status);
	http_response_fini(&resp);
	return r;
}

/* After a 401: 0 if there is something new to try. */
static int authorise(struct registry *reg, struct endpoint *ep, const char *header,
		     struct error *err)
{
	struct challenge ch = { 0 };
	int r = challenge_parse(header ? header : "", &ch);

	if (r == 0)
		r = load_credentials(ep, err);
	else
		(void)error_set(err, r, "out of memory");
	if (r == 0 && ch.bearer && ch.realm)
		r = get_token(reg, ep, &ch, err);
	else if (r == 0 && ch.basic && ep->creds.user && !ep->basic)
		ep->basic = true;
	else if (r == 0)
		r = no_access(reg, ep, err);
	challenge_fini(&ch);
	return r;
}

/* ---- requests --------------------------------------------------------------------------- */

static void set_note(struct registry *reg, const char *text, const char *why)
{
	struct image_progress *p = &reg->source.job->progress;

	(void)snprintf(reg->note, sizeof(reg->note), "%s: %.120s", text, why);
	p->note = reg->note;
	log_debug("image: %s", reg->note);
}

/* One request, with a second one if access has to be asked for first. */
static int ask_once(struct registry *reg, struct endpoint *ep, struct http_request *req,
		    struct http_response *ret, struct error *err)
{
	int r;

	for (unsigned round = 0;; round++) {
		req->bearer = ep->token;
		req->user = ep->basic && !ep->token ? ep->creds.user : NULL;
		req->password = req->user ? ep->creds.password : NULL;
		req->allow_http = ep->allow_http;
		req->ca_file = reg->ca_file;
		req->insecure = reg->insecure;
		r = http_perform(reg->http, req, ret, err);
		if (r < 0 || ret->status != 401)
			return r;
		if (round > 0) {
			http_response_fini(ret);
			return no_access(reg, ep, err);
		}
		free(take_ptr(&ep->token));
		r = authorise(reg, ep, ret->authenticate, err);
		http_response_fini(ret);
		if (r < 0)
			return r;
	}
}

/* What the registry itself says went wrong, if anything. */
static void server_message(const struct http_response *resp, char *dst, size_t size)
{
	auto_json json_t *j =
		json_loadb((const char *)buf_head(&resp->body), resp->body.len, 0, NULL);
	const json_t *first = json_array_get(json_object_get(j, "errors"), 0);
	const char *text = json_string_value(json_object_get(first, "message"));

	(void)snprintf(dst, size, "%s%.150s", str_empty(text) ? "" : ": ", text ? text : "");
}

static int status_error(const struct registry *reg, const struct endpoint *ep,
			const struct http_response *resp, const char *what, struct error *err)
{
	char said[160];

	server_message(resp, said, sizeof(said));
	if (resp->status == 404)
		return error_set(err, -ENOENT, "not found in registry '%s'%s%s%s", ep->host,
				 *what ? " (" : "", what, *what ? ")" : "");
	if (resp->status == 403)
		return no_access(reg, ep, err);
	if (resp->status == 429)
		return error_set(err, -EBUSY, "registry '%s' limits the rate of pulls%s", ep->host,
				 said);
	return error_set(err, -EIO, "registry '%s' answers %ld%s", ep->host, resp->status, said);
}

static bool worth_retrying(int code, const struct http_response *resp)
{
	return code < 0 ? http_is_transient(code) : resp->status == 429 || resp->status >= 500;
}

/* A host that cannot be reached at all is given up sooner. */
static unsigned tries_for(int code)
{
	return code == -EHOSTUNREACH ? 2 : LIMIT_TRIES;
}

/* With retries; gives only answers that say success. */
static int ask(struct registry *reg, struct endpoint *ep, struct http_request *req,
	       struct http_response *ret, const char *what, struct error *err)
{
	for (unsigned attempt = 0;; attempt++) {
		long wait = 0;
		int r = ask_once(reg, ep, req, ret, err), code = r;

		if (r == 0 && ret->status / 100 == 2)
			return 0;
		if (r == 0) {
			wait = ret->retry_after;
			code = status_error(reg, ep, ret, what, err);
		}
		if (!worth_retrying(r, ret) || attempt + 1 >= tries_for(code)) {
			if (r == 0)
				http_response_fini(ret);
			return code;
		}
		if (r == 0)
			http_response_fini(ret);
		set_note(reg, "trying again", error_text(err));
		r = http_back_off(reg->http, attempt, wait, err);
		if (r < 0)
			return r;
		error_clear(err);
	}
}

static int get_manifest(struct registry *reg, struct endpoint *ep, const char *what, char **ret,
			size_t *ret_len, char **ret_media_type, struct error *err)
{
	auto_free char *url = str_printf("%s/v2/%s/manifests/%s", ep->base, reg->repository, what);
	struct http_request req = { .url = url,
				    .headers = manifest_headers,
				    .max_body = LIMIT_MANIFEST_BYTES };
	struct http_response resp = { 0 };
	int r;

	if (!url)
		return error_set(err, -ENOMEM, "out of memory");
	r = ask(reg, ep, &req, &resp, "", err);
	if (r < 0)
		return r;
	*ret_len = resp.body.len;
	*ret_media_type = take_ptr(&resp.content_type);
	if (buf_take_str(&resp.body, ret) < 0)
		r = error_set(err, -ENOMEM, "out of memory");
	http_response_fini(&resp);
	return r;
}

static int registry_manifest(struct image_source *src, const struct digest *digest, char **ret,
			     size_t *ret_len, char **ret_media_type, struct error *err)
{
	struct registry *reg = of(src);
	int r = -ENOENT;

	for (size_t i = digest ? reg->current : 0; i < reg->n; i++) {
		struct endpoint *ep = &reg->v[i];

		error_clear(err);
		r = get_manifest(reg, ep, digest ? digest->s : reg->wanted, ret, ret_len,
				 ret_media_type, err);
		if (r == 0) {
			reg->current = i;
			return 0;
		}
		if (!ep->mirror || r == -ECANCELED || r == -ENOMEM)
			return r;
		set_note(reg, "mirror passed over", error_text(err));
	}
	return r;
}

/* ---- blobs ------------------------------------------------------------------------------ */

static int on_blob_data(void *ctx, const void *data, size_t n, struct error *err)
{
	return blob_write(ctx, data, n, err);
}

static int on_blob_restart(void *ctx, struct error *err)
{
	return blob_restart(ctx, err);
}

/* One transfer of what is missing. 0: all is there. */
static int transfer(struct registry *reg, struct endpoint *ep, const char *url, struct blob *blob,
		    long *ret_wait, struct error *err)
{
	struct http_request req = { .url = url,
				    .sink = on_blob_data,
				    .restart = on_blob_restart,
				    .sink_ctx = blob,
				    .max_body = 65536,
				    .offset = blob->done };
	struct http_response resp = { 0 };
	int r;

	*ret_wait = 0;
	if (blob->done > 0 && blob->done == blob->size)
		return 0;
	r = ask_once(reg, ep, &req, &resp, err);
	if (r < 0)
		return r;
	if (resp.status / 100 != 2) {
		*ret_wait = resp.retry_after;
		r = status_error(reg, ep, &resp, blob->digest.s, err);
		if (resp.status == 429 || resp.status >= 500)
			r = -EAGAIN;
		else if (resp.status == 416)
			r = blob_restart(blob, err) < 0 ? -EIO : -EAGAIN;
	} else if (blob->done < blob->size) {
		r = error_set(err, -ECONNRESET, "blob %s ends after %llu of %llu bytes",
			      blob->digest.s, (unsigned long long)blob->done,
			      (unsigned long long)blob->size);
	}
	http_response_fini(&resp);
	return r;
}

static int check_resumed(struct blob *blob, bool *again, struct error *err)
{
	struct digest is;
	int r = hasher_digest(blob->hasher, &is);

	*again = false;
	if (r < 0)
		return error_errno(err, r, "hash");
	if (digest_eq(&is, &blob->digest))
		return 0;
	*again = true;
	return blob_restart(blob, err);
}

static int fetch_from(struct registry *reg, struct endpoint *ep, struct blob *blob,
		      struct error *err)
{
	auto_free char *url =
		str_printf("%s/v2/%s/blobs/%s", ep->base, reg->repository, blob->digest.s);
	bool resumed = blob->done > 0;
	unsigned attempt = 0;
	int r;

	if (!url)
		return error_set(err, -ENOMEM, "out of memory");
	for (;;) {
		uint64_t before = blob->done;
		long wait = 0;

		error_clear(err);
		r = transfer(reg, ep, url, blob, &wait, err);
		if (r == 0 && resumed) {
			/* Pieced together from several answers: start over once if it is wrong. */
			r = check_resumed(blob, &resumed, err);
			if (r == 0 && !resumed)
				return 0;
			resumed = false;
			if (r == 0)
				continue;
		}
		if (r == 0)
			return 0;
		if (r != -EAGAIN && !http_is_transient(r))
			return r;
		attempt = blob->done > before ? 0 : attempt + 1;
		if (attempt >= tries_for(r))
			return r == -EAGAIN ? -EIO : r;
		resumed = blob->done > 0;
		set_note(reg, "trying again", error_text(err));
		r = http_back_off(reg->http, attempt, wait, err);
		if (r < 0)
			return r;
	}
}

static int registry_fetch(struct image_source *src, const struct image_descriptor *desc,
			  struct blob *blob, struct error *err)
{
	struct registry *reg = of(src);
	int r = -ENOENT;

	for (size_t i = reg->current; i < reg->n; i++) {
		r = fetch_from(reg, &reg->v[i], blob, err);
		if (r == 0 || r == -ECANCELED || r == -ENOSPC || !reg->v[i].mirror)
			return r;
		set_note(reg, "mirror passed over", error_text(err));
	}
	return r;
}

/* ---- set up ----------------------------------------------------------------------------- */

static void registry_close(struct image_source *src)
{
	struct registry *reg = of(src);

	src->job->progress.note = NULL;
	http_free(reg->http);
	for (size_t i = 0; i < reg->n; i++)
		endpoint_fini(&reg->v[i]);
	free(reg->v);
	free(reg->domain);
	free(reg->repository);
	free(reg->wanted);
	free(reg->ca_file);
	free(reg);
}

static const struct image_source_ops registry_ops = {
	.manifest = registry_manifest,
	.fetch = registry_fetch,
	.close = registry_close,
};

static bool is_loopback(const char *domain)
{
	size_t n = *domain == '[' ? strcspn(domain, "]") + 1 : strcspn(domain, ":");

	return (n == 9 && !strncmp(domain, "localhost", 9)) || str_has_prefix(domain, "127.") ||
	       (n == 5 && !strncmp(domain, "[::1]", 5));
}

static int add_endpoint(struct registry *reg, const char *base, const char *host, bool mirror,
			struct error *err)
{
	struct endpoint *v = reallocarray(reg->v, reg->n + 1, sizeof(*v)), *ep;
	const char *p = strstr(base, "://") + 3;

	if (!v)
		return error_set(err, -ENOMEM, "out of memory");
	reg->v = v;
	ep = &v[reg->n];
	*ep = (struct endpoint){ .mirror = mirror, .base = strdup(base) };
	ep->host = host ? strdup(host) : strndup(p, strcspn(p, "/"));
	ep->allow_http = str_has_prefix(base, "http://");
	reg->n++;
	if (!ep->base || !ep->host)
		return error_set(err, -ENOMEM, "out of memory");
	while (str_has_suffix(ep->base, "/"))
		ep->base[strlen(ep->base) - 1] = '\0';
	return 0;
}

static int add_endpoints(struct registry *reg, const struct registry_settings *s, struct error *err)
{
	bool hub = str_eq(reg->domain, "docker.io");
	bool http = is_loopback(reg->domain) && !s->ca_file && !str_has_suffix(reg->domain, ":443");
	auto_free char *base = str_printf("%s://%s", http || s->insecure ? "http" : "https",
					  hub ? "registry-1.docker.io" : reg->domain);
	int r = base ? 0 : error_set(err, -ENOMEM, "out of memory");

	for (size_t i = 0; r == 0 && s->mirrors && s->mirrors[i]; i++)
		r = add_endpoint(reg, s->mirrors[i], NULL, true, err);
	return r < 0 ? r : add_endpoint(reg, base, reg->domain, false, err);
}

int source_open_registry(struct image_job *job, const struct image_ref *ref,
			 struct image_source **ret, struct error *err)
{
	struct registry *reg = calloc(1, sizeof(*reg));
	struct registry_settings settings = { 0 };
	int r;

	if (!reg)
		return error_set(err, -ENOMEM, "out of memory");
	reg->source.ops = &registry_ops;
	reg->source.job = job;
	reg->domain = strdup(ref->domain);
	reg->repository = strdup(ref->path);
	reg->wanted = strdup(ref->digest ? ref->digest : ref->tag);
	r = reg->domain && reg->repository && reg->wanted
		    ? registry_settings_find(ref->domain, &settings, err)
		    : error_set(err, -ENOMEM, "out of memory");
	if (r == 0) {
		reg->ca_file = take_ptr(&settings.ca_file);
		reg->insecure = settings.insecure;
		settings.ca_file = reg->ca_file; /* borrowed: says that TLS is meant */
		r = add_endpoints(reg, &settings, err);
		settings.ca_file = NULL;
	}
	registry_settings_fini(&settings);
	if (r == 0)
		r = http_new(job, &reg->http, err);
	if (r < 0) {
		registry_close(&reg->source);
		return r;
	}
	*ret = &reg->source;
	return 0;
}

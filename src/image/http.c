#include "image/http.h"

#include <curl/curl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <time.h>

struct http {
	CURL *curl;
	struct image_job *job;
	char curl_error[CURL_ERROR_SIZE];
	/* of the request at hand */
	const struct http_request *req;
	struct http_response *resp;
	struct error error;
};

int http_new(struct image_job *job, struct http **ret, struct error *err)
{
	static bool initialised;
	struct http *h;

	if (!initialised && curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
		return error_set(err, -EIO, "libcurl does not start");
	initialised = true;
	h = calloc(1, sizeof(*h));
	if (!h)
		return error_set(err, -ENOMEM, "out of memory");
	h->job = job;
	h->curl = curl_easy_init();
	if (!h->curl) {
		free(h);
		return error_set(err, -ENOMEM, "out of memory");
	}
	*ret = h;
	return 0;
}

void http_free(struct http *h)
{
	if (!h)
		return;
	curl_easy_cleanup(h->curl);
	free(h);
}

void http_response_fini(struct http_response *r)
{
	free(r->content_type);
	free(r->authenticate);
	buf_fini(&r->body);
	*r = (struct http_response){ 0 };
}

static char *trimmed(const char *s, size_t n)
{
	while (n > 0 && (*s == ' ' || *s == '\t')) {
		s++;
		n--;
	}
	while (n > 0 && strchr(" \t\r\n", s[n - 1]))
		n--;
	return strndup(s, n);
}

static size_t on_header(char *data, size_t size, size_t count, void *ctx)
{
	struct http *h = ctx;
	struct http_response *r = h->resp;
	size_t n = size * count;
	const char *colon = memchr(data, ':', n);
	auto_free char *value = NULL;
	size_t name_len;
	uint32_t seconds;

	if (n >= 5 && !memcmp(data, "HTTP/", 5)) {
		/* A new answer, after a redirect or "100 Continue". */
		http_response_fini(r);
		buf_init(&r->body, h->req->max_body);
		return n;
	}
	if (!colon)
		return n;
	name_len = (size_t)(colon - data);
	value = trimmed(colon + 1, n - name_len - 1);
	if (!value)
		return 0;
	if (name_len == 12 && !strncasecmp(data, "content-type", 12)) {
		value[strcspn(value, "; ")] = '\0';
		free(r->content_type);
		r->content_type = take_ptr(&value);
	} else if (name_len == 16 && !strncasecmp(data, "www-authenticate", 16)) {
		char *joined = r->authenticate ? str_printf("%s, %s", r->authenticate, value)
					       : strdup(value);

		free(r->authenticate);
		r->authenticate = joined;
	} else if (name_len == 11 && !strncasecmp(data, "retry-after", 11)) {
		if (str_parse_u32(value, &seconds) == 0)
			r->retry_after = (long)seconds;
	}
	return n;
}

static size_t on_body(char *data, size_t size, size_t count, void *ctx)
{
	struct http *h = ctx;
	size_t n = size * count;
	int r;

	if (!h->resp->status) {
		(void)curl_easy_getinfo(h->curl, CURLINFO_RESPONSE_CODE, &h->resp->status);
		if (h->req->offset > 0 && h->req->restart && h->resp->status == 200 &&
		    h->req->restart(h->req->sink_ctx, &h->error) < 0)
			return 0;
	}
	if (h->req->sink && h->resp->status / 100 == 2) {
		r = h->req->sink(h->req->sink_ctx, data, n, &h->error);
		return r < 0 ? 0 : n;
	}
	/* Of an error's page, only the start matters. */
	if (h->resp->status / 100 != 2)
		r = h->resp->body.len < 65536 ? buf_append(&h->resp->body, data, n) : 0;
	else
		r = buf_append(&h->resp->body, data, n);
	if (r < 0 && h->resp->status / 100 == 2) {
		(void)error_set(&h->error, -EFBIG, "the answer is larger than %zu bytes",
				h->req->max_body);
		return 0;
	}
	return n;
}

static int on_progress(void *ctx, curl_off_t dl_total, curl_off_t dl_now, curl_off_t ul_total,
		       curl_off_t ul_now)
{
	struct http *h = ctx;

	return image_job_report(h->job, true, &h->error) < 0 ? 1 : 0;
}

static long timeout_seconds(long fallback)
{
	const char *text = getenv("CAISSON_REGISTRY_TIMEOUT");
	uint32_t seconds;

	return text && str_parse_u32(text, &seconds) == 0 && seconds > 0 ? (long)seconds : fallback;
}

static void set_common(struct http *h, const struct http_request *req)
{
	CURL *c = h->curl;

	curl_easy_reset(c);
	(void)curl_easy_setopt(c, CURLOPT_URL, req->url);
	(void)curl_easy_setopt(c, CURLOPT_ERRORBUFFER, h->curl_error);
	(void)curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
	(void)curl_easy_setopt(c, CURLOPT_USERAGENT, "caisson/" CAISSON_VERSION);
	(void)curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
	(void)curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS_STR,
			       req->allow_http ? "http,https" : "https");
	(void)curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 1L);
	(void)curl_easy_setopt(c, CURLOPT_MAXREDIRS, (long)LIMIT_REDIRECTS);
	(void)curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, timeout_seconds(LIMIT_CONNECT_SECONDS));
	(void)curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 1L);
	(void)curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, timeout_seconds(LIMIT_STALL_SECONDS));
	(void)curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_header);
	(void)curl_easy_setopt(c, CURLOPT_HEADERDATA, h);
	(void)curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_body);
	(void)curl_easy_setopt(c, CURLOPT_WRITEDATA, h);
	(void)curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
	(void)curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, on_progress);
	(void)curl_easy_setopt(c, CURLOPT_XFERINFODATA, h);
}

static void set_access(struct http *h, const struct http_request *req)
{
	CURL *c = h->curl;

	/* curl does not carry these to another host on a redirect. */
	if (req->bearer) {
		(void)curl_easy_setopt(c, CURLOPT_HTTPAUTH, (long)CURLAUTH_BEARER);
		(void)curl_easy_setopt(c, CURLOPT_XOAUTH2_BEARER, req->bearer);
	} else if (req->user) {
		(void)curl_easy_setopt(c, CURLOPT_HTTPAUTH, (long)CURLAUTH_BASIC);
		(void)curl_easy_setopt(c, CURLOPT_USERNAME, req->user);
		(void)curl_easy_setopt(c, CURLOPT_PASSWORD, req->password ? req->password : "");
	}
	if (req->ca_file)
		(void)curl_easy_setopt(c, CURLOPT_CAINFO, req->ca_file);
	if (req->insecure) {
		(void)curl_easy_setopt(c, CURLOPT_SSL_VERIFYPEER, 0L);
		(void)curl_easy_setopt(c, CURLOPT_SSL_VERIFYHOST, 0L);
	}
}

static int failure_code(CURLcode code)
{
	switch ((int)code) {
	case CURLE_COULDNT_RESOLVE_HOST:
	case CURLE_COULDNT_RESOLVE_PROXY:
	case CURLE_COULDNT_CONNECT:
		return -EHOSTUNREACH;
	case CURLE_OPERATION_TIMEDOUT:
		return -ETIMEDOUT;
	case CURLE_PARTIAL_FILE:
	case CURLE_RECV_ERROR:
	case CURLE_SEND_ERROR:
	case CURLE_GOT_NOTHING:
	case CURLE_HTTP2:
	case CURLE_HTTP2_STREAM:
		return -ECONNRESET;
	case CURLE_SSL_CONNECT_ERROR:
	case CURLE_PEER_FAILED_VERIFICATION:
	case CURLE_SSL_CACERT_BADFILE:
	case CURLE_SSL_ISSUER_ERROR:
	case CURLE_SSL_INVALIDCERTSTATUS:
	case CURLE_SSL_CERTPROBLEM:
	case CURLE_SSL_CIPHER:
		return -EPROTO;
	case CURLE_OUT_OF_MEMORY:
		return -ENOMEM;
	default:
		return -EIO;
	}
}

static int fail(struct http *h, const struct http_request *req, CURLcode code, struct error *err)
{
	const char *text = *h->curl_error ? h->curl_error : curl_easy_strerror(code);
	const char *host = strstr(req->url, "://");
	int r = failure_code(code);
	int len;

	host = host ? host + 3 : req->url;
	len = (int)strcspn(host, "/?");
	if (h->error.code)
		return error_set(err, h->error.code, "%s", error_text(&h->error));
	if (r == -EHOSTUNREACH)
		return error_set(err, r, "cannot reach '%.*s': %s", len, host, text);
	if (r == -EPROTO)
		return error_set(err, r, "no TLS connection to '%.*s' can be trusted: %s", len,
				 host, text);
	return error_set(err, r, "'%.*s': %s", len, host, text);
}

int http_perform(struct http *h, const struct http_request *req, struct http_response *ret,
		 struct error *err)
{
	struct curl_slist *headers = NULL, *grown;
	struct http_response resp = { 0 };
	char range[32];
	CURLcode code = CURLE_OUT_OF_MEMORY;

	buf_init(&resp.body, req->max_body);
	h->req = req;
	h->resp = &resp;
	error_clear(&h->error);
	h->curl_error[0] = '\0';
	set_common(h, req);
	set_access(h, req);
	if (req->post)
		(void)curl_easy_setopt(h->curl, CURLOPT_COPYPOSTFIELDS, req->post);
	if (req->offset > 0) {
		(void)snprintf(range, sizeof(range), "%llu-", (unsigned long long)req->offset);
		(void)curl_easy_setopt(h->curl, CURLOPT_RANGE, range);
	}
	for (size_t i = 0; req->headers && req->headers[i]; i++) {
		grown = curl_slist_append(headers, req->headers[i]);
		if (!grown)
			goto out;
		headers = grown;
	}
	(void)curl_easy_setopt(h->curl, CURLOPT_HTTPHEADER, headers);
	code = curl_easy_perform(h->curl);
	(void)curl_easy_getinfo(h->curl, CURLINFO_RESPONSE_CODE, &resp.status);
out:
	curl_slist_free_all(headers);
	h->resp = NULL;
	if (code != CURLE_OK) {
		http_response_fini(&resp);
		return fail(h, req, code, err);
	}
	*ret = resp;
	return 0;
}

bool http_is_transient(int code)
{
	return code == -ETIMEDOUT || code == -ECONNRESET || code == -EHOSTUNREACH;
}

int http_back_off(struct http *h, unsigned attempt, long retry_after, struct error *err)
{
	const struct timespec slice = { .tv_nsec = 50 * 1000 * 1000 };
	uint64_t ms = 250ull << MIN_OF(attempt, 5u);
	uint32_t jitter = 0;
	int r;

	if (getrandom(&jitter, sizeof(jitter), 0) < 0)
		jitter = 0;
	ms += jitter % (ms / 4 + 1);
	if (retry_after > 0)
		ms = MAX_OF(ms, 1000ull * (uint64_t)MIN_OF(retry_after, 60L));
	for (uint64_t t = 0; t < ms; t += 50) {
		r = image_job_report(h->job, true, err);
		if (r < 0)
			return r;
		(void)nanosleep(&slice, NULL);
	}
	return 0;
}

char *http_escape(const char *s)
{
	static const char plain[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
	char *out = malloc(3 * strlen(s) + 1), *w = out;

	for (; out && *s; s++) {
		if (strchr(plain, *s)) {
			*w++ = *s;
		} else {
			*w++ = '%';
			str_hex(w, (const uint8_t *)s, 1);
			w += 2;
		}
	}
	if (out)
		*w = '\0';
	return out;
}

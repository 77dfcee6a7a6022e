/* HTTP requests for registries: one connection cache, one request at a time, on libcurl. */
#pragma once

#include "image/internal.h"

struct http;

struct http_request {
	const char *url;
	const char *const *headers; /* NULL-terminated "Name: value", may be NULL */
	const char *bearer;         /* token, or NULL */
	const char *user;           /* basic credentials, or NULL */
	const char *password;
	const char *post;    /* body of a form, or NULL for GET */
	const char *ca_file; /* instead of the system's authorities */
	bool insecure;       /* accept any certificate */
	bool allow_http;     /* redirects may lead to http:// */
	uint64_t offset;     /* > 0: ask for the bytes from there */
	/* Takes the body of a 2xx answer; others are kept in the response. */
	int (*sink)(void *ctx, const void *data, size_t n, struct error *err);
	/* The server ignored the offset: the body starts at 0. */
	int (*restart)(void *ctx, struct error *err);
	void *sink_ctx;
	size_t max_body; /* without a sink */
};

struct http_response {
	long status;
	char *content_type;
	char *authenticate; /* WWW-Authenticate, all of them joined by ", " */
	long retry_after;   /* seconds, 0 = none */
	struct buf body;
};

__must_check int http_new(struct image_job *job, struct http **ret, struct error *err);
void http_free(struct http *h);

/*
 * One try. 0 means there is an answer of any status. -EAGAIN-like failures are told apart by
 * http_is_transient() of the code.
 */
__must_check int http_perform(struct http *h, const struct http_request *req,
			      struct http_response *ret, struct error *err);
void http_response_fini(struct http_response *r);
/* May the same request succeed a moment later? */
bool http_is_transient(int code);
/* Sleeps for try number @attempt (from 0), or longer if the server says so. -ECANCELED. */
__must_check int http_back_off(struct http *h, unsigned attempt, long retry_after,
			       struct error *err);
/* Percent-encodes. NULL when memory is short. */
char *http_escape(const char *s);

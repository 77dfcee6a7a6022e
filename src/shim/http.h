/* SPDX-License-Identifier: Apache-2.0 */
/*
 * As much of HTTP/1.1 as monitoring needs: one request a connection, bodies by Content-Length only.
 * The parser is strict and does no I/O; what it does not understand ends the connection with a
 * status. The server runs on the shim's loop.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "base/error.h"

#define HTTP_HEAD_MAX 8192u
#define HTTP_BODY_MAX (1u << 20)

struct http_request {
	char method[8];
	char path[256];   /* decoded */
	char query[2048]; /* as it came, "" if there is none */
	const uint8_t *body;
	size_t body_len;
};

/*
 * Reads a request from the front of @data. 0 and *ret if it is there as a whole (the body points into
 * @data); -EAGAIN if more must come; else -EBADMSG and *ret_status, 4xx or 5xx.
 */
__must_check int http_parse(const uint8_t *data, size_t len, struct http_request *ret,
			    int *ret_status);
/* The decoded value of a parameter into @out; -ENOENT, -EINVAL (bad escape, NUL, too long). */
__must_check int http_query(const struct http_request *q, const char *name, char *out, size_t size);

struct http_server;
struct http_call;

/* Answers @call now or later, once. @q is valid until it returns. */
typedef void (*http_handler_fn)(void *ctx, struct http_call *call, const struct http_request *q);

/* Serves @fd, a listening socket, which it owns from success on. */
__must_check int http_server_new(uv_loop_t *loop, int fd, http_handler_fn fn, void *ctx,
				 struct http_server **ret);
/* Ends the connections; calls that are answered later are dropped. Takes NULL. */
void http_server_free(struct http_server *s);

/* @body is copied. */
void http_reply(struct http_call *call, int status, const char *type, const void *body, size_t len);
__attribute__((format(printf, 3, 4))) void http_reply_text(struct http_call *call, int status,
							   const char *fmt, ...);

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One rtnetlink socket, which stays in the namespace that it was opened in, and requests over it.
 * Private to net.
 */
#pragma once

#include <libmnl/libmnl.h>
#include <stdint.h>

#include "base/error.h"

#define RTNL_REQUEST_MAX 1024u

struct rtnl {
	struct mnl_socket *sock;
	unsigned seq;
	union {
		char answer[32768];
		struct nlmsghdr align;
	};
};

/* A request being put together; its attributes must fit in RTNL_REQUEST_MAX. */
union rtnl_request {
	char room[RTNL_REQUEST_MAX];
	struct nlmsghdr h;
};

/* In the calling thread's namespace. @groups: RTMGRP_* to listen to. */
__must_check int rtnl_open(struct rtnl *rt, unsigned groups);
void rtnl_close(struct rtnl *rt);

/* Clears @rq and gives its fixed header of @size bytes. */
void *rtnl_init(union rtnl_request *rq, uint16_t type, uint16_t flags, size_t size);
/* Sends a request and waits for its acknowledgement: 0 or the kernel's errno. */
__must_check int rtnl_do(struct rtnl *rt, union rtnl_request *rq);
/* The same where an answer comes before the acknowledgement; @fn sees it. */
__must_check int rtnl_ask(struct rtnl *rt, union rtnl_request *rq,
			  int (*fn)(const struct nlmsghdr *h, void *arg), void *arg);
/*
 * Sends a dump request; @fn sees each object, a negative return ends it. -EINTR if the tables
 * changed meanwhile, after all objects were seen: the caller may repeat.
 */
__must_check int rtnl_dump(struct rtnl *rt, union rtnl_request *rq,
			   int (*fn)(const struct nlmsghdr *h, void *arg), void *arg);

/* Attributes by type up to @max, from @offset bytes behind the message's header. */
void rtnl_attrs(const struct nlmsghdr *h, size_t offset, const struct nlattr **tb, uint16_t max);
void rtnl_nested(const struct nlattr *a, const struct nlattr **tb, uint16_t max);
/* 0 or "" if absent or too short. */
uint32_t rtnl_u32(const struct nlattr *a);
uint8_t rtnl_u8(const struct nlattr *a);
void rtnl_string(const struct nlattr *a, char *out, size_t size);

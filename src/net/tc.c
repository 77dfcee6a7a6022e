/* SPDX-License-Identifier: Apache-2.0 */
/* Traffic control: redirection from ingress to egress of another link, and token buckets. */
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/tc_act/tc_mirred.h>
#include <netinet/in.h>
#include <time.h>

#include "net/internal.h"

/* Tells our filter from anybody else's at the same ingress, and comes after what polices. */
#define FILTER_PRIO 0xca15u
#define BUSY_TRIES  5
#define BUSY_MS     10

static struct tcmsg *init(union rtnl_request *rq, uint16_t type, uint16_t flags, int index,
			  uint32_t parent, uint32_t handle)
{
	struct tcmsg *m = rtnl_init(rq, type, flags, sizeof(*m));

	m->tcm_family = AF_UNSPEC;
	m->tcm_ifindex = index;
	m->tcm_parent = parent;
	m->tcm_handle = handle;
	return m;
}

int tc_add_ingress(struct rtnl *rt, int index)
{
	union rtnl_request rq;
	int r = -EBUSY;

	/* One that was just removed may still be going away. */
	for (int i = 0; i < BUSY_TRIES && r == -EBUSY; i++) {
		const struct timespec wait = { .tv_nsec = i * BUSY_MS * 1000 * 1000L };

		if (i)
			(void)nanosleep(&wait, NULL);
		(void)init(&rq, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, index, TC_H_INGRESS,
			   TC_H_MAKE(TC_H_INGRESS, 0));
		mnl_attr_put_strz(&rq.h, TCA_KIND, "ingress");
		r = rtnl_do(rt, &rq);
	}
	return r;
}

void tc_remove_ingress(struct rtnl *rt, int index)
{
	union rtnl_request rq;

	(void)init(&rq, RTM_DELQDISC, 0, index, TC_H_INGRESS, TC_H_MAKE(TC_H_INGRESS, 0));
	(void)!rtnl_do(rt, &rq);
}

static void put_mirred(struct nlmsghdr *h, uint16_t type, int to)
{
	const struct tc_mirred parms = {
		.action = TC_ACT_STOLEN,
		.eaction = TCA_EGRESS_REDIR,
		.ifindex = (uint32_t)to,
	};
	struct nlattr *list = mnl_attr_nest_start(h, type);
	struct nlattr *one = mnl_attr_nest_start(h, 1);
	struct nlattr *options;

	mnl_attr_put_strz(h, TCA_ACT_KIND, "mirred");
	options = mnl_attr_nest_start(h, TCA_ACT_OPTIONS);
	mnl_attr_put(h, TCA_MIRRED_PARMS, sizeof(parms), &parms);
	mnl_attr_nest_end(h, options);
	mnl_attr_nest_end(h, one);
	mnl_attr_nest_end(h, list);
}

static uint32_t filter_info(void)
{
	return TC_H_MAKE(FILTER_PRIO << 16, htons(ETH_P_ALL));
}

static int add_filter(struct rtnl *rt, int from, int to, bool u32)
{
	const struct tc_u32_sel everything = { .flags = TC_U32_TERMINAL };
	union rtnl_request rq;
	struct nlattr *options;
	struct tcmsg *m = init(&rq, RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, from,
			       TC_H_MAKE(TC_H_INGRESS, TC_H_MIN_INGRESS), 0);

	m->tcm_info = filter_info();
	mnl_attr_put_strz(&rq.h, TCA_KIND, u32 ? "u32" : "matchall");
	options = mnl_attr_nest_start(&rq.h, TCA_OPTIONS);
	if (u32)
		mnl_attr_put(&rq.h, TCA_U32_SEL, sizeof(everything), &everything);
	put_mirred(&rq.h, u32 ? TCA_U32_ACT : TCA_MATCHALL_ACT, to);
	mnl_attr_nest_end(&rq.h, options);
	return rtnl_do(rt, &rq);
}

int tc_redirect(struct rtnl *rt, int from, int to)
{
	int r = add_filter(rt, from, to, true);

	/* Kernels have one of them at least, as a module or built in. */
	return r == -ENOENT || r == -EOPNOTSUPP ? add_filter(rt, from, to, false) : r;
}

void tc_remove_redirect(struct rtnl *rt, int index)
{
	union rtnl_request rq;
	struct tcmsg *m =
		init(&rq, RTM_DELTFILTER, 0, index, TC_H_MAKE(TC_H_INGRESS, TC_H_MIN_INGRESS), 0);

	m->tcm_info = filter_info();
	(void)!rtnl_do(rt, &rq);
}

int tc_add_rate(struct rtnl *rt, int index, uint64_t rate)
{
	/* A tenth of a second, and never less than the largest packet that offloading makes. */
	uint32_t burst =
		(uint32_t)MIN_OF(MAX_OF(rate / 10, (uint64_t)256 << 10), (uint64_t)64 << 20);
	struct tc_tbf_qopt opt = {
		.rate = {
			.rate = rate > UINT32_MAX ? UINT32_MAX : (uint32_t)rate,
			.linklayer = TC_LINKLAYER_ETHERNET,
		},
		.limit = burst * 2,
	};
	union rtnl_request rq;
	struct nlattr *options;

	(void)init(&rq, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, index, TC_H_ROOT,
		   TC_H_MAKE(1u << 16, 0));
	mnl_attr_put_strz(&rq.h, TCA_KIND, "tbf");
	options = mnl_attr_nest_start(&rq.h, TCA_OPTIONS);
	mnl_attr_put(&rq.h, TCA_TBF_PARMS, sizeof(opt), &opt);
	mnl_attr_put_u32(&rq.h, TCA_TBF_BURST, burst);
	if (rate > UINT32_MAX)
		mnl_attr_put_u64(&rq.h, TCA_TBF_RATE64, rate);
	mnl_attr_nest_end(&rq.h, options);
	return rtnl_do(rt, &rq);
}

void tc_remove_root(struct rtnl *rt, int index)
{
	union rtnl_request rq;

	(void)init(&rq, RTM_DELQDISC, 0, index, TC_H_ROOT, TC_H_MAKE(1u << 16, 0));
	(void)!rtnl_do(rt, &rq);
}

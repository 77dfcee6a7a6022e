/* `caisson upgrade`: running shims go on in this installation's program. */
#include <errno.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/pods.h"
#include "handover.pb-c.h"
#include "ttrpc/ttrpc.h"

#define SHIM_PROGRAM "containerd-shim-caisson-v2"

/* A shim waits up to ten seconds for what is under way, and asks the new program. */
static const uint64_t UPGRADE_NS = 30ull * 1000000000;

struct upgrade_options {
	bool all, quiet;
	const char *program;
};

static const struct opt upgrade_opts[] = {
	{ 'a', "all", OPT_BOOL, offsetof(struct upgrade_options, all), NULL,
	  "All sandboxes of this host, whoever started them", NULL },
	{ 0, "program", OPT_STRING, offsetof(struct upgrade_options, program), "FILE",
	  "The shim to go on as (default: the one beside this command)", "file" },
	{ 'q', "quiet", OPT_BOOL, offsetof(struct upgrade_options, quiet), NULL,
	  "Print ids only", NULL },
};

static int upgrade_one(const struct pod *p, const struct upgrade_options *o, const char *program,
		       struct error *err)
{
	Caisson__Handover__V1__UpgradeRequest q = CAISSON__HANDOVER__V1__UPGRADE_REQUEST__INIT;
	Caisson__Handover__V1__UpgradeResponse *a = NULL;
	auto_close int fd = fd_unix_connect(p->socket);
	struct ttrpc_sync sync;
	int r, code = 0;

	if (fd < 0)
		return error_errno(err, fd, "sandbox %s: its shim does not answer", p->id);
	ttrpc_sync_init(&sync, fd);
	q.program = (char *)program;
	r = ttrpc_sync_call(&sync, "caisson.shim.v1.Control", "Upgrade", &q.base, UPGRADE_NS, NULL,
			    &caisson__handover__v1__upgrade_response__descriptor, &a, &code, err);
	if (r < 0 && code == TTRPC_UNIMPLEMENTED && !strstr(err->msg, "cannot take over"))
		return error_set(err, r, "sandbox %s: its shim is of a version that cannot be upgraded",
				 p->id);
	if (r < 0)
		return error_prefix(err, r, "sandbox %s", p->id);
	if (o->quiet)
		puts(p->id);
	else
		printf("%s\t%s\n", p->id, a->version);
	protobuf_c_message_free_unpacked(&a->base, NULL);
	return 0;
}

static int do_upgrade(void *options, int argc, char **argv)
{
	const struct upgrade_options *o = options;
	auto_free char *beside = cli_program(SHIM_PROGRAM);
	const char *wanted = o->program ? o->program : beside;
	auto_free char *program = wanted ? realpath(wanted, NULL) : NULL;
	struct pod_list list;
	struct error err = { 0 };
	int code = 0;

	if (!program)
		return cli_fail(EXIT_CAISSON, "the program '%s': %s", wanted ? wanted : SHIM_PROGRAM,
				strerror(errno));
	if (o->all == (argc > 0))
		return cli_fail(EXIT_CAISSON, "upgrade takes either the names of sandboxes or --all");
	if (pod_list(&list, &err) < 0)
		return cli_fail_err(EXIT_CAISSON, &err);
	for (size_t i = 0; o->all && i < list.n; i++) {
		error_clear(&err);
		if (list.v[i].alive && upgrade_one(&list.v[i], o, program, &err) < 0)
			code = cli_fail_err(1, &err);
	}
	for (int i = 0; i < argc; i++) {
		const struct pod *p;

		error_clear(&err);
		if (pod_find(&list, argv[i], &p, &err) < 0 || upgrade_one(p, o, program, &err) < 0)
			code = cli_fail_err(1, &err);
	}
	pod_list_fini(&list);
	return code;
}

const struct command cmd_upgrade = {
	.name = "upgrade",
	.synopsis = "[SANDBOX...]",
	.summary = "Have running shims go on in a new program",
	.description =
		"Replaces the program of running shims, without anybody noticing: the containers run on, "
		"standard streams and waiting clients stay connected. A shim first asks the new program "
		"whether it understands what it would be handed; if not, it goes on as it is. The virtual "
		"machine's own processes are not replaced.\n\n"
		"A sandbox is named by its id or the beginning of it, or by the name of a container of the "
		"command line. Those that containerd started are meant too: a pod's sandbox id is what "
		"'crictl pods' shows.",
	.examples = "# after installing a new version\ncaisson upgrade --all\n",
	OPTS(upgrade_opts),
	.opts_size = sizeof(struct upgrade_options),
	.max_args = -1,
	.complete = "container",
	.run = do_upgrade,
};

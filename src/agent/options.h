/* What the agent was told: Kata's agent.* words of the kernel command line, and argv. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#define AGENT_PORT_TTRPC 1024
#define AGENT_PORT_LOG 1025
#define AGENT_PORT_CONSOLE 1026
#define AGENT_PORT_STDIO 1027
#define AGENT_PORT_FORWARD 1028
#define AGENT_PORT_HELLO 1030

struct agent_options {
	int log_level;                  /* enum log_level */
	unsigned log_vport;             /* the host reads the log there; 0: on the console only */
	bool debug_console;             /* the host gets a shell at console_port */
	unsigned console_port;
	unsigned rpc_port;
	unsigned stdio_port;
	unsigned hello_port;            /* 0: don't connect out */
	unsigned hotplug_timeout_ms;
	unsigned pipe_size;             /* of containers' stdio pipes; 0: the kernel's own */
	bool native;                    /* not the init of a guest: leave the kernel alone */
	const char *listen;             /* native: unix socket of the ttRPC server, ... */
	const char *stdio;              /* ... of the stdio streams, ... */
	const char *hello;              /* ... and the one to connect to */
	const char *cgroup_root;        /* NULL: /sys/fs/cgroup */
};

void agent_options_init(struct agent_options *opt);

/*
 * Reads the agent.* words of a kernel command line. Unknown words are left to others; a word
 * of ours with a value that makes no sense is reported in @err (-EINVAL), and the rest of the
 * line still takes effect.
 */
int agent_options_parse_cmdline(struct agent_options *opt, const char *line, struct error *err);

/*
 * Command line of a native run: --listen, --stdio and --hello unix:PATH, --cgroup DIR, --log LEVEL.
 * The options keep pointing into @argv.
 */
int agent_options_parse_argv(struct agent_options *opt, int argc, char **argv, struct error *err);

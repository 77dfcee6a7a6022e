#include "agent/options.h"

#include <string.h>

#include "base/log.h"
#include "base/str.h"

void agent_options_init(struct agent_options *opt)
{
	memset(opt, 0, sizeof(*opt));
	opt->log_level = LOG_WARN;
	opt->console_port = AGENT_PORT_CONSOLE;
	opt->rpc_port = AGENT_PORT_TTRPC;
	opt->stdio_port = AGENT_PORT_STDIO;
	opt->hello_port = AGENT_PORT_HELLO;
	opt->hotplug_timeout_ms = 3000;
}

static int parse_number(const char *word, const char *value, uint32_t max, unsigned *field,
			struct error *err)
{
	uint32_t v;

	if (str_parse_u32(value, &v) < 0 || v > max)
		return error_set(err, -EINVAL, "%s: '%s' is not a number up to %u", word, value,
				 max);
	*field = v;
	return 0;
}

static int parse_log(struct agent_options *opt, const char *value, struct error *err)
{
	enum log_level level = LOG_ERROR;

	/* Kata has two more that are quieter than errors. */
	if (!str_eq(value, "critical") && !str_eq(value, "off") && log_level_parse(value, &level) < 0)
		return error_set(err, -EINVAL, "agent.log: unknown level '%s'", value);
	opt->log_level = (int)level;
	return 0;
}

/* vsock://CID:PORT; the CID is the guest's own, or -1 for any. */
static int parse_server(struct agent_options *opt, const char *value, struct error *err)
{
	const char *port = strrchr(value, ':');

	if (!str_has_prefix(value, "vsock://") || !port)
		return error_set(err, -EINVAL, "agent.server_addr: '%s' is not vsock://CID:PORT", value);
	return parse_number("agent.server_addr", port + 1, UINT32_MAX - 1, &opt->rpc_port, err);
}

static int parse_word(struct agent_options *opt, char *word, struct error *err)
{
	char *value = strchr(word, '=');
	unsigned seconds = 0;
	int r;

	if (!str_has_prefix(word, "agent."))
		return 0;
	if (value)
		*value++ = '\0';
	else
		value = word + strlen(word);
	if (str_eq(word, "agent.log"))
		return parse_log(opt, value, err);
	if (str_eq(word, "agent.server_addr"))
		return parse_server(opt, value, err);
	if (str_eq(word, "agent.log_vport"))
		return parse_number(word, value, UINT32_MAX - 1, &opt->log_vport, err);
	if (str_eq(word, "agent.debug_console")) {
		opt->debug_console = true;
		return 0;
	}
	if (str_eq(word, "agent.debug_console_vport"))
		return parse_number(word, value, UINT32_MAX - 1, &opt->console_port, err);
	if (str_eq(word, "agent.passfd_listener_port"))
		return parse_number(word, value, UINT32_MAX - 1, &opt->stdio_port, err);
	if (str_eq(word, "agent.hello_port"))
		return parse_number(word, value, UINT32_MAX - 1, &opt->hello_port, err);
	if (str_eq(word, "agent.container_pipe_size"))
		return parse_number(word, value, 1u << 20, &opt->pipe_size, err);
	if (str_eq(word, "agent.hotplug_timeout")) {
		r = parse_number(word, value, 3600, &seconds, err);
		if (r == 0)
			opt->hotplug_timeout_ms = seconds * 1000;
		return r;
	}
	log_info("kernel command line: %s has no effect", word);
	return 0;
}

int agent_options_parse_cmdline(struct agent_options *opt, const char *line, struct error *err)
{
	char word[128];
	int ret = 0;

	while (*line) {
		size_t n = strcspn(line, " \t\n");
		int r;

		if (n && n < sizeof(word)) {
			memcpy(word, line, n);
			word[n] = '\0';
			r = parse_word(opt, word, ret < 0 ? NULL : err);
			if (r < 0 && ret == 0)
				ret = r;
		}
		line += n;
		line += strspn(line, " \t\n");
	}
	return ret;
}

static int unix_path(const char *option, const char *value, const char **field, struct error *err)
{
	if (!str_has_prefix(value, "unix:/"))
		return error_set(err, -EINVAL, "%s: '%s' is not unix:/PATH", option, value);
	*field = value + strlen("unix:");
	return 0;
}

int agent_options_parse_argv(struct agent_options *opt, int argc, char **argv, struct error *err)
{
	for (int i = 1; i < argc; i += 2) {
		const char *o = argv[i], *v = i + 1 < argc ? argv[i + 1] : NULL;
		int r;

		if (!v)
			return error_set(err, -EINVAL, "%s: a value is missing", o);
		if (str_eq(o, "--listen"))
			r = unix_path(o, v, &opt->listen, err);
		else if (str_eq(o, "--stdio"))
			r = unix_path(o, v, &opt->stdio, err);
		else if (str_eq(o, "--hello"))
			r = unix_path(o, v, &opt->hello, err);
		else if (str_eq(o, "--log"))
			r = parse_log(opt, v, err);
		else if (str_eq(o, "--cgroup")) {
			opt->cgroup_root = v;
			r = 0;
		} else {
			r = error_set(err, -EINVAL, "unknown option %s", o);
		}
		if (r < 0)
			return r;
	}
	opt->native = opt->listen != NULL;
	return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* What each setting may be. */
#include "config/apply.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"

#define MIB ((uint64_t)1 << 20)

int config_set_text(char **field, const char *value)
{
	char *copy = strdup(value);

	if (!copy)
		return -ENOMEM;
	free(*field);
	*field = copy;
	return 0;
}

static int parse_number(const char *text, unsigned min, unsigned max, unsigned *ret)
{
	unsigned long v;
	char *end;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	v = strtoul(text, &end, 10);
	if (errno || *end || v < min || v > max)
		return -EINVAL;
	*ret = (unsigned)v;
	return 0;
}

/* "none", "100000-165535". */
static int parse_uids(const char *text, uint32_t *ret_first, uint32_t *ret_n)
{
	unsigned first, last;
	char begin[11];
	const char *dash = strchr(text, '-');
	int r;

	if (strcmp(text, "none") == 0) {
		*ret_n = 0;
		return 0;
	}
	if (!dash || (size_t)(dash - text) >= sizeof(begin))
		return -EINVAL;
	memcpy(begin, text, (size_t)(dash - text));
	begin[dash - text] = '\0';
	/* The largest two mean something else. */
	r = parse_number(begin, 1, UINT32_MAX - 2, &first);
	if (r == 0)
		r = parse_number(dash + 1, first, UINT32_MAX - 2, &last);
	if (r < 0)
		return r;
	*ret_first = first;
	*ret_n = last - first + 1;
	return 0;
}

/* "30", "30s", "500ms". */
static int parse_duration(const char *text, unsigned *ret_ms)
{
	unsigned long v;
	char *end;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	v = strtoul(text, &end, 10);
	if (strcmp(end, "ms") == 0)
		;
	else if (*end == '\0' || strcmp(end, "s") == 0)
		v = v > 3600 ? ULONG_MAX : v * 1000;
	else
		return -EINVAL;
	if (v < 100 || v > 3600000)
		return -EINVAL;
	*ret_ms = (unsigned)v;
	return 0;
}

static bool one_of(const char *value, const char *const *list)
{
	for (; *list; list++)
		if (strcmp(value, *list) == 0)
			return true;
	return false;
}

int config_apply(struct config *cfg, const char *section, const char *key, const char *value,
		 const char **ret_want)
{
	static const char *const machines[] = { "auto", "builtin", "microvm", "q35", NULL };
	static const char *const levels[] = { "debug", "info", "warn", "error", NULL };
	static const char *const models[] = { "tcfilter", "macvtap", "vfio", "none", NULL };
	static const char *const caches[] = { "auto", "never", "always", NULL };
	uint64_t bytes;
	bool *flag;

#define IS(s, k) (strcmp(section, s) == 0 && strcmp(key, k) == 0)
	if (IS("vm", "kernel") || IS("vm", "initrd") || IS("vm", "root_image") || IS("vm", "qemu") ||
	    IS("storage", "scratch_dir")) {
		*ret_want = "an absolute path";
		if (value[0] != '/' || strlen(value) >= PATH_MAX)
			return -EINVAL;
		if (IS("vm", "kernel"))
			return config_set_text(&cfg->kernel, value);
		if (IS("vm", "root_image"))
			return config_set_text(&cfg->root_image, value);
		if (IS("vm", "initrd"))
			return config_set_text(&cfg->initrd, value);
		if (IS("vm", "qemu"))
			return config_set_text(&cfg->qemu, value);
		return config_set_text(&cfg->scratch_dir, value);
	}
	if (IS("vm", "kernel_params")) {
		*ret_want = "one line";
		if (strchr(value, '\n'))
			return -EINVAL;
		return config_set_text(&cfg->kernel_params, value);
	}
	if (IS("vm", "machine")) {
		*ret_want = "auto, microvm or q35";
		return one_of(value, machines) ? config_set_text(&cfg->machine, value) : -EINVAL;
	}
	if (IS("vm", "accelerator")) {
		*ret_want = "auto, kvm or tcg";
		if (strcmp(value, "auto") == 0)
			cfg->accel = CONFIG_ACCEL_AUTO;
		else if (strcmp(value, "kvm") == 0)
			cfg->accel = CONFIG_ACCEL_KVM;
		else if (strcmp(value, "tcg") == 0)
			cfg->accel = CONFIG_ACCEL_TCG;
		else
			return -EINVAL;
		return 0;
	}
	if (IS("vm", "memory")) {
		*ret_want = "a size from 64MiB to 1TiB";
		if (str_parse_size(value, &bytes) < 0 || bytes < 64 * MIB || bytes >> 40 > 1)
			return -EINVAL;
		cfg->memory = bytes & ~(MIB - 1);
		return 0;
	}
	if (IS("vm", "memory_max")) {
		*ret_want = "a size up to 1TiB";
		if (str_parse_size(value, &bytes) < 0 || bytes >> 40 > 1)
			return -EINVAL;
		cfg->memory_max = bytes & ~(MIB - 1);
		return 0;
	}
	if (IS("vm", "memory_overhead")) {
		*ret_want = "a size up to 4GiB";
		if (str_parse_size(value, &bytes) < 0 || bytes > 4096 * MIB)
			return -EINVAL;
		cfg->memory_overhead = bytes;
		return 0;
	}
	if (IS("vm", "vcpus")) {
		*ret_want = "a number from 1 to 64";
		return parse_number(value, 1, 64, &cfg->vcpus);
	}
	if (IS("vm", "vcpus_max")) {
		*ret_want = "a number from 0 to 64";
		return parse_number(value, 0, 64, &cfg->vcpus_max);
	}
	if (IS("vm", "pool")) {
		*ret_want = "a number from 0 to 64";
		return parse_number(value, 0, CONFIG_POOL_MAX, &cfg->pool);
	}
	if (IS("vm", "cpu")) {
		*ret_want = "host or baseline";
		cfg->baseline_cpu = strcmp(value, "baseline") == 0;
		return cfg->baseline_cpu || strcmp(value, "host") == 0 ? 0 : -EINVAL;
	}
	if (IS("vm", "uids")) {
		*ret_want = "none, or a range like 1900000000-1900065535 of user ids above 0";
		return parse_uids(value, &cfg->uid_first, &cfg->n_uids);
	}
	if (IS("vm", "boot_timeout")) {
		*ret_want = "a time from 100ms to 3600s";
		return parse_duration(value, &cfg->boot_timeout_ms);
	}
	if (IS("vm", "agent_timeout")) {
		*ret_want = "0, or a time from 100ms to 3600s";
		if (!str_eq(value, "0"))
			return parse_duration(value, &cfg->agent_timeout_ms);
		cfg->agent_timeout_ms = 0;
		return 0;
	}
	if (IS("storage", "scratch_size")) {
		*ret_want = "a size from 1MiB to 16TiB";
		if (str_parse_size(value, &bytes) < 0 || bytes < MIB || bytes >> 44 > 1)
			return -EINVAL;
		cfg->scratch_size = bytes & ~(uint64_t)4095;
		return 0;
	}
	if (IS("storage", "disk_rate")) {
		*ret_want = "0, or bytes a second up to 1TiB";
		if (str_parse_size(value, &bytes) < 0 || bytes >> 40 > 1)
			return -EINVAL;
		cfg->disk_rate = bytes;
		return 0;
	}
	if (IS("storage", "disk_ops")) {
		unsigned ops;
		int r;

		*ret_want = "a number up to 10000000";
		r = parse_number(value, 0, 10000000, &ops);
		if (r == 0)
			cfg->disk_ops = ops;
		return r;
	}
	if (IS("storage", "share_cache")) {
		*ret_want = "auto, never or always";
		return one_of(value, caches) ? config_set_text(&cfg->share_cache, value) : -EINVAL;
	}
	if (IS("storage", "share_dax")) {
		*ret_want = "0, or a size from 2MiB to 16GiB";
		if (str_parse_size(value, &bytes) < 0 || (bytes && bytes < 2 * MIB) ||
		    bytes > (uint64_t)16 << 30)
			return -EINVAL;
		cfg->share_dax = bytes & ~(2 * MIB - 1);
		return 0;
	}
	if (IS("network", "model")) {
		*ret_want = "tcfilter, macvtap, vfio or none";
		return one_of(value, models) ? config_set_text(&cfg->network_model, value) : -EINVAL;
	}
	if (IS("network", "slots")) {
		*ret_want = "a number from 0 to 4";
		return parse_number(value, 0, 4, &cfg->network_slots);
	}
	if (IS("network", "rx_rate") || IS("network", "tx_rate")) {
		*ret_want = "0, or bytes a second from 8KiB to 1TiB";
		if (str_parse_size(value, &bytes) < 0 || (bytes && bytes < 8192) || bytes >> 40 > 1)
			return -EINVAL;
		*(key[0] == 'r' ? &cfg->network_rx_rate : &cfg->network_tx_rate) = bytes;
		return 0;
	}
	if (IS("log", "level") || IS("log", "agent_level")) {
		*ret_want = "debug, info, warn or error";
		if (!one_of(value, levels))
			return -EINVAL;
		return config_set_text(IS("log", "level") ? &cfg->log_level : &cfg->agent_log_level,
				    value);
	}
	flag = IS("vm", "templates")		      ? &cfg->templates :
	       IS("vm", "hugepages")		      ? &cfg->hugepages :
	       IS("vm", "prealloc")		      ? &cfg->prealloc :
	       IS("log", "console")		      ? &cfg->log_console :
	       IS("storage", "share_locks")	      ? &cfg->share_locks :
	       IS("storage", "share_file_handles") ? &cfg->share_handles :
						     NULL;
	if (flag) {
		*ret_want = "true or false";
		if (strcmp(value, "true") != 0 && strcmp(value, "false") != 0)
			return -EINVAL;
		*flag = value[0] == 't';
		return 0;
	}
#undef IS
	return -ENOENT;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Reads, merges and validates the settings. See config.h. */
#include "config/config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/str.h"
#include "config/locate.h"
#include "config/schema.h"

#define FILE_MAX_SIZE ((size_t)1 << 20)
#define MIB ((uint64_t)1 << 20)

static const char *const default_annotations[] = {
	"io.caisson.memory",
	"io.caisson.vcpus",
	"io.caisson.scratch-size",
	"io.katacontainers.config.hypervisor.default_memory",
	"io.katacontainers.config.hypervisor.default_vcpus",
};

static int replace_text(char **field, const char *value)
{
	char *copy = strdup(value);

	if (!copy)
		return -ENOMEM;
	free(*field);
	*field = copy;
	return 0;
}

static void free_annotations(struct config *cfg)
{
	for (size_t i = 0; i < cfg->n_annotations; i++)
		free(cfg->annotations[i]);
	free(cfg->annotations);
	cfg->annotations = NULL;
	cfg->n_annotations = 0;
}

static int set_annotations(struct config *cfg, const char *const *names, size_t n)
{
	char **list = calloc(n ? n : 1, sizeof(*list));

	if (!list)
		return -ENOMEM;
	free_annotations(cfg);
	cfg->annotations = list;
	for (size_t i = 0; i < n; i++) {
		list[i] = strdup(names[i]);
		if (!list[i])
			return -ENOMEM;
		cfg->n_annotations++;
	}
	return 0;
}

int config_init(struct config *cfg)
{
	*cfg = (struct config){
		.accel = CONFIG_ACCEL_AUTO,
		.memory = 256 * MIB,
		.memory_overhead = 64 * MIB,
		.vcpus = 1,
		.boot_timeout_ms = 30000,
		.templates = true,
		.scratch_size = (uint64_t)10 << 30,
		.log_console = true,
	};
	if (replace_text(&cfg->machine, "auto") < 0 || replace_text(&cfg->share_cache, "auto") < 0 ||
	    replace_text(&cfg->network_model, "tcfilter") < 0 || replace_text(&cfg->log_level, "info") < 0 ||
	    replace_text(&cfg->agent_log_level, "info") < 0 ||
	    set_annotations(cfg, default_annotations,
			    sizeof(default_annotations) / sizeof(default_annotations[0])) < 0) {
		config_fini(cfg);
		return -ENOMEM;
	}
	return 0;
}

void config_fini(struct config *cfg)
{
	free(cfg->kernel);
	free(cfg->initrd);
	free(cfg->root_image);
	free(cfg->kernel_params);
	free(cfg->qemu);
	free(cfg->machine);
	free(cfg->scratch_dir);
	free(cfg->share_cache);
	free(cfg->network_model);
	free(cfg->log_level);
	free(cfg->agent_log_level);
	free_annotations(cfg);
	*cfg = (struct config){ 0 };
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

/* One setting, by section and key. Returns -EINVAL with *ret_want set for a bad value. */
static int apply(struct config *cfg, const char *section, const char *key, const char *value,
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
			return replace_text(&cfg->kernel, value);
		if (IS("vm", "root_image"))
			return replace_text(&cfg->root_image, value);
		if (IS("vm", "initrd"))
			return replace_text(&cfg->initrd, value);
		if (IS("vm", "qemu"))
			return replace_text(&cfg->qemu, value);
		return replace_text(&cfg->scratch_dir, value);
	}
	if (IS("vm", "kernel_params")) {
		*ret_want = "one line";
		if (strchr(value, '\n'))
			return -EINVAL;
		return replace_text(&cfg->kernel_params, value);
	}
	if (IS("vm", "machine")) {
		*ret_want = "auto, microvm or q35";
		return one_of(value, machines) ? replace_text(&cfg->machine, value) : -EINVAL;
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
	if (IS("vm", "boot_timeout")) {
		*ret_want = "a time from 100ms to 3600s";
		return parse_duration(value, &cfg->boot_timeout_ms);
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
		return one_of(value, caches) ? replace_text(&cfg->share_cache, value) : -EINVAL;
	}
	if (IS("network", "model")) {
		*ret_want = "tcfilter, macvtap, vfio or none";
		return one_of(value, models) ? replace_text(&cfg->network_model, value) : -EINVAL;
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
		return replace_text(IS("log", "level") ? &cfg->log_level : &cfg->agent_log_level,
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

static int apply_section(struct config *cfg, const char *file, const char *text, size_t len,
			 const char *section, const cyaml_schema_field_t *fields, const char *base,
			 struct error *err)
{
	for (const cyaml_schema_field_t *f = fields; f->key; f++) {
		const char *value, *want = "";
		int r;

		if (f->value.type != CYAML_STRING)
			continue;
		memcpy(&value, base + f->data_offset, sizeof(value));
		if (!value)
			continue;
		r = apply(cfg, section, f->key, value, &want);
		if (r == -EINVAL)
			return error_set(err, r, "%s:%u: %s.%s: '%.64s' is not %s", file,
					 locate_key(text, len, section, f->key), section, f->key,
					 value, want);
		if (r < 0)
			return error_set(err, r, "%s: %s.%s: %s", file, section, f->key,
					 strerror(-r));
	}
	return 0;
}

static void quiet_log(cyaml_log_t level, void *ctx, const char *fmt, va_list args)
{
	(void)level;
	(void)ctx;
	(void)fmt;
	(void)args;
}

static int apply_text(struct config *cfg, const char *file, const char *text, size_t len,
		      struct error *err)
{
	const cyaml_config_t cyaml = {
		.log_fn = quiet_log,
		.mem_fn = cyaml_mem,
		.log_level = CYAML_LOG_ERROR,
	};
	struct file_config *fc = NULL;
	cyaml_err_t ce;
	int r;

	r = locate_check(file, text, len, &file_config_schema, err);
	if (r < 0)
		return r;
	ce = cyaml_load_data((const uint8_t *)text, len, &cyaml, &file_config_schema,
			     (cyaml_data_t **)&fc, NULL);
	if (ce != CYAML_OK)
		return error_set(err, -EINVAL, "%s: %s", file, cyaml_strerror(ce));
	if (!fc)
		return 0;

	for (const cyaml_schema_field_t *f = file_config_schema.mapping.fields; f->key && r == 0; f++)
		r = apply_section(cfg, file, text, len, f->key, f->value.mapping.fields,
				  (const char *)fc + f->data_offset, err);
	if (r == 0 && fc->annotations.allow &&
	    set_annotations(cfg, (const char *const *)fc->annotations.allow,
			    fc->annotations.allow_count) < 0)
		r = error_set(err, -ENOMEM, "%s: out of memory", file);
	(void)cyaml_free(&cyaml, &file_config_schema, fc, 0);
	return r;
}

static int apply_file(struct config *cfg, const char *path, bool optional, struct error *err)
{
	auto_free char *text = NULL;
	size_t len = 0;
	int r;

	r = fd_read_file(AT_FDCWD, path, FILE_MAX_SIZE, &text, &len);
	if (optional && (r == -ENOENT || r == -ENOTDIR))
		return 0;
	if (r < 0)
		return error_errno(err, r, "%s", path);
	return apply_text(cfg, path, text, len, err);
}

static int is_yaml(const struct dirent *d)
{
	size_t n = strlen(d->d_name);

	return d->d_name[0] != '.' && n > 5 && strcmp(d->d_name + n - 5, ".yaml") == 0;
}

int config_load(struct config *cfg, const char *path, struct error *err)
{
	bool optional = false;
	auto_free char *dir = NULL;
	struct dirent **names;
	const char *slash;
	int n, r;

	if (!path)
		path = getenv("CAISSON_CONFIG");
	if (!path || !*path) {
		path = CONFIG_DEFAULT_PATH;
		optional = true;
	}
	r = apply_file(cfg, path, optional, err);
	if (r < 0)
		return r;

	slash = strrchr(path, '/');
	if (asprintf(&dir, "%.*sconfig.d", slash ? (int)(slash - path + 1) : 0, path) < 0) {
		dir = NULL;
		return error_set(err, -ENOMEM, "%s: out of memory", path);
	}
	n = scandir(dir, &names, is_yaml, alphasort);
	if (n < 0)
		return errno == ENOENT || errno == ENOTDIR ?
			       0 :
			       error_set(err, -errno, "%s: %s", dir, strerror(errno));
	for (int i = 0; i < n; i++) {
		auto_free char *file = NULL;

		if (r == 0 && asprintf(&file, "%s/%s", dir, names[i]->d_name) < 0) {
			file = NULL;
			r = error_set(err, -ENOMEM, "%s: out of memory", dir);
		}
		if (r == 0)
			r = apply_file(cfg, file, false, err);
		free(names[i]);
	}
	free(names);
	return r;
}

static bool annotation_allowed(const struct config *cfg, const char *name)
{
	for (size_t i = 0; i < cfg->n_annotations; i++) {
		const char *pattern = cfg->annotations[i];
		size_t n = strlen(pattern);

		if (strcmp(pattern, name) == 0)
			return true;
		if (n && pattern[n - 1] == '*' && strncmp(pattern, name, n - 1) == 0)
			return true;
	}
	return false;
}

int config_annotate(struct config *cfg, const char *name, const char *value, bool *ret_denied,
		    struct error *err)
{
	static const struct {
		const char *name, *section, *key;
	} known[] = {
		{ "io.caisson.memory", "vm", "memory" },
		{ "io.caisson.vcpus", "vm", "vcpus" },
		{ "io.caisson.memory-max", "vm", "memory_max" },
		{ "io.caisson.vcpus-max", "vm", "vcpus_max" },
		{ "io.caisson.kernel", "vm", "kernel" },
		{ "io.caisson.initrd", "vm", "initrd" },
		{ "io.caisson.root-image", "vm", "root_image" },
		{ "io.caisson.kernel-params", "vm", "kernel_params" },
		{ "io.caisson.machine", "vm", "machine" },
		{ "io.caisson.accelerator", "vm", "accelerator" },
		{ "io.caisson.boot-timeout", "vm", "boot_timeout" },
		{ "io.caisson.scratch-size", "storage", "scratch_size" },
		{ "io.caisson.disk-rate", "storage", "disk_rate" },
		{ "io.caisson.disk-ops", "storage", "disk_ops" },
		{ "io.caisson.network-model", "network", "model" },
		{ "io.caisson.network-slots", "network", "slots" },
		{ "io.caisson.network-rx-rate", "network", "rx_rate" },
		{ "io.caisson.network-tx-rate", "network", "tx_rate" },
		{ "io.caisson.log-level", "log", "level" },
		{ "io.caisson.agent-log-level", "log", "agent_level" },
		{ "io.katacontainers.config.hypervisor.default_memory", "vm", "memory" },
		{ "io.katacontainers.config.hypervisor.default_vcpus", "vm", "vcpus" },
		{ "io.katacontainers.config.hypervisor.default_max_memory", "vm", "memory_max" },
		{ "io.katacontainers.config.hypervisor.default_maxvcpus", "vm", "vcpus_max" },
		{ "io.katacontainers.config.hypervisor.default_max_vcpus", "vm", "vcpus_max" },
		{ "io.katacontainers.config.hypervisor.rx_rate_limiter_max_rate", "network", "rx_rate" },
		{ "io.katacontainers.config.hypervisor.tx_rate_limiter_max_rate", "network", "tx_rate" },
		{ "io.katacontainers.config.hypervisor.kernel", "vm", "kernel" },
		{ "io.katacontainers.config.hypervisor.initrd", "vm", "initrd" },
		{ "io.katacontainers.config.hypervisor.image", "vm", "root_image" },
		{ "io.katacontainers.config.hypervisor.kernel_params", "vm", "kernel_params" },
		{ "io.katacontainers.config.hypervisor.machine_type", "vm", "machine" },
		{ "io.katacontainers.config.runtime.internetworking_model", "network", "model" },
	};
	uint64_t bits;
	char mib[40];

	*ret_denied = false;
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		const char *want = "", *v = value;
		int r;

		if (strcmp(known[i].name, name) != 0)
			continue;
		if (!annotation_allowed(cfg, name)) {
			*ret_denied = true;
			return 0;
		}
		/* Kata counts memory in MiB. */
		if (strncmp(known[i].key, "memory", 6) == 0 && strncmp(name, "io.kata", 7) == 0 &&
		    strlen(value) < 20 && strspn(value, "0123456789") == strlen(value)) {
			(void)snprintf(mib, sizeof(mib), "%sMiB", value);
			v = mib;
		}
		/* And rates in bits. */
		if (str_has_suffix(name, "_rate_limiter_max_rate") &&
		    str_parse_u64(value, &bits) == 0) {
			(void)snprintf(mib, sizeof(mib), "%llu", (unsigned long long)bits / 8);
			v = mib;
		}
		r = apply(cfg, known[i].section, known[i].key, v, &want);
		if (r == -EINVAL)
			return error_set(err, r, "annotation %s: '%.64s' is not %s", name, value,
					 want);
		if (r < 0)
			return error_set(err, r, "annotation %s: %s", name, strerror(-r));
		return 0;
	}
	return 0;
}

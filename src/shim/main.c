/* SPDX-License-Identifier: Apache-2.0 */
/* Command line of containerd-shim-caisson-v2: Go's flag style, "-id X", "--id=X". */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"
#include "shim/shim.h"

static const char usage[] =
	"usage: containerd-shim-caisson-v2 [flags] start|delete\n"
	"Started by containerd or by caisson; not meant to be run by hand.\n"
	"  -namespace NS   -id ID   -address PATH   -bundle DIR   -publish-binary PATH   -debug\n"
	"  -v              print the version\n"
	"  -info           print what this shim can do (protobuf)\n";

static int flag_value(int argc, char **argv, int *i, const char *inline_value, const char **ret)
{
	if (inline_value) {
		*ret = inline_value;
		return 0;
	}
	if (*i + 1 >= argc) {
		(void)fprintf(stderr, "flag needs an argument: %s\n", argv[*i]);
		return -EINVAL;
	}
	*ret = argv[++*i];
	return 0;
}

int main(int argc, char **argv)
{
	struct shim_flags f = { .ns = "", .address = "", .publish_binary = "", .id = "", .bundle = "" };
	const struct {
		const char *name;
		const char **value;
	} strings[] = {
		{ "namespace", &f.ns },   { "id", &f.id },
		{ "address", &f.address }, { "bundle", &f.bundle },
		{ "publish-binary", &f.publish_binary }, { "socket", NULL },
		{ "handover", &f.handover },
	};
	bool version = false, info = false, check_handover = false;
	const char *command = NULL;

	for (int i = 1; i < argc; i++) {
		const char *name = argv[i], *value;
		size_t len, k;

		if (name[0] != '-' || !name[1]) {
			if (command) {
				(void)fputs(usage, stderr);
				return 1;
			}
			command = name;
			continue;
		}
		name += name[1] == '-' ? 2 : 1;
		value = strchr(name, '=');
		len = value ? (size_t)(value - name) : strlen(name);
		if (value)
			value++;
		for (k = 0; k < ARRAY_LEN(strings); k++)
			if (strlen(strings[k].name) == len && strncmp(strings[k].name, name, len) == 0)
				break;
		if (k < ARRAY_LEN(strings)) {
			const char *unused;

			if (flag_value(argc, argv, &i, value,
				       strings[k].value ? strings[k].value : &unused) < 0)
				return 1;
			continue;
		}
		if (str_eq(name, "debug") || str_eq(name, "debug=true")) {
			f.debug = true;
		} else if (str_eq(name, "v") || str_eq(name, "version")) {
			version = true;
		} else if (str_eq(name, "info")) {
			info = true;
		} else if (str_eq(name, "check-handover")) {
			check_handover = true;
		} else if (str_eq(name, "h") || str_eq(name, "help")) {
			(void)fputs(usage, stdout);
			return 0;
		} else if (!str_eq(name, "debug=false")) {
			(void)fprintf(stderr, "unknown flag: %s\n%s", argv[i], usage);
			return 1;
		}
	}
	if (version) {
		(void)printf("containerd-shim-caisson-v2:\n  Version:  %s\n", CAISSON_VERSION);
		return 0;
	}
	if (info)
		return shim_info();
	if (check_handover)
		return shim_check_handover();
	if (!command) {
		(void)fputs(usage, stderr);
		return 1;
	}
	if (str_empty(f.id) || str_empty(f.ns)) {
		(void)fprintf(stderr, "-id and -namespace are required\n");
		return 1;
	}
	if (str_eq(command, "start"))
		return shim_start(&f);
	if (str_eq(command, "resume"))
		return shim_resume(&f);
	if (str_eq(command, "delete"))
		return shim_delete(&f);
	if (str_eq(command, "fill"))
		return shim_fill(&f);
	(void)fprintf(stderr, "unknown command: %s\n%s", command, usage);
	return 1;
}

/*
 * caisson-vmm: holds one virtual machine in a jail. Started by vmm_spawn() with
 *   fd 3  the configuration, packed, after its length (4 bytes, little endian); its coming is also
 *         the leave to start: the starter has recorded this process by then
 *   fd 4  listening socket of the control service, fd 5 the socket for descriptors
 *   fd 6  listening socket of the hybrid vsock
 *   fd 7  where the console goes, fd 8 a network namespace, fds 9 and 10 a template's memory and
 *         state: if told so by argv[1] ("c", "n", "t")
 *   argv[2] the user id that the VM's processes take, 0: root's
 *   fd 11 and on: the queues of the network cards that the configuration lists
 *   fd SPAWN_FD_LAYERS and on: two for each layer over a template's memory, whose number follows "l"
 *   fd SPAWN_FD_WORKING_SET  the template's working set, if told so by "w"
 * It ends when the machine has ended and those who asked have been told why.
 */
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"
#include "vmm/service.h"
#include "vmm/spawn.h"

static int read_config(Caisson__Vmm__V1__VmConfig **ret_config, struct error *err)
{
	auto_free uint8_t *data = NULL;
	uint8_t head[4];
	uint32_t len;

	if (fd_read_full(SPAWN_FD_CONFIG, head, sizeof(head)) != (ssize_t)sizeof(head))
		return error_set(err, -EPIPE, "started without a configuration");
	len = load_le32(head);
	if (len > SPAWN_CONFIG_MAX)
		return error_set(err, -EMSGSIZE, "configuration of %u bytes", len);
	data = malloc(len ? len : 1);
	if (!data)
		return error_set(err, -ENOMEM, "no memory for the configuration");
	if (fd_read_full(SPAWN_FD_CONFIG, data, len) != (ssize_t)len)
		return error_set(err, -EPIPE, "the configuration is cut");
	*ret_config = caisson__vmm__v1__vm_config__unpack(NULL, len, data);
	return *ret_config ? 0 : error_set(err, -EPROTO, "the configuration is malformed");
}

int main(int argc, char **argv)
{
	const char *given = argc > 1 ? argv[1] : "", *layers = strchr(given, 'l');
	struct service_fds fds = {
		.control = SPAWN_FD_CONTROL,
		.descriptors = SPAWN_FD_DESCRIPTORS,
		.machine = {
			.vsock = SPAWN_FD_VSOCK,
			.console = strchr(given, 'c') ? SPAWN_FD_CONSOLE : -1,
			.netns = strchr(given, 'n') ? SPAWN_FD_NETNS : -1,
			.ram = strchr(given, 't') ? SPAWN_FD_RAM : -1,
			.state = strchr(given, 't') ? SPAWN_FD_STATE : -1,
			.working_set = strchr(given, 'w') ? SPAWN_FD_WORKING_SET : -1,
			.n_layers = layers && layers[1] > '0' ?
					    MIN_OF((size_t)(layers[1] - '0'), (size_t)VMM_MAX_LAYERS) :
					    0,
		},
	};
	Caisson__Vmm__V1__VmConfig *config = NULL;
	struct error err = { 0 };
	int r;

	/* One heap for all threads, given back early: there are many such processes on a host. */
	(void)mallopt(M_ARENA_MAX, 1);
	(void)mallopt(M_TRIM_THRESHOLD, 64 * 1024);
	(void)signal(SIGPIPE, SIG_IGN);
	log_init("vmm", STDERR_FILENO, LOG_INFO);
	if (str_eq(given, "--version")) {
		(void)printf("caisson-vmm %s\n", CAISSON_VERSION);
		return 0;
	}
	if (argc < 2 || (given[0] == '-' && given[1])) {
		log_error("caisson-vmm is started by the shim, not by hand");
		return 2;
	}
	r = read_config(&config, &err);
	if (r < 0) {
		log_error("%s", error_text(&err));
		return 1;
	}
	(void)close(SPAWN_FD_CONFIG);
	fds.machine.uid = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 0;
	log_set_field("sandbox", config->id);
	if (config->debug)
		log_set_level(LOG_DEBUG);
	r = service_run(config, &fds, &err);
	if (r < 0)
		log_error("%s", error_text(&err));
	caisson__vmm__v1__vm_config__free_unpacked(config, NULL);
	return r < 0 ? 1 : 0;
}

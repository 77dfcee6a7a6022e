/* A network's configuration, or a plugin's result, of any content: taken or refused with a text. */
#include <stdint.h>
#include <stdlib.h>

#include "cni/cni.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	auto_cni_network struct cni_network *net = NULL;
	auto_cni_result struct cni_result *res = NULL;
	struct error err = { 0 };
	json_t *json;

	if (cni_network_parse((const char *)data, size, "fuzz", &net, &err) == 0) {
		if (!cni_valid_name(net->name) || !json_array_size(net->plugins))
			abort();
		(void)cni_network_takes(net, "ips");
	} else if (err.code >= 0 || !err.msg[0]) {
		abort();
	}
	json = json_loadb((const char *)data, size, 0, NULL);
	if (!json)
		return 0;
	error_clear(&err);
	if (cni_result_parse(json, &res, &err) < 0 && (err.code >= 0 || !err.msg[0]))
		abort();
	for (size_t i = 0; res && i < res->n_ips; i++)
		if (res->ips[i].interface >= (int)res->n_interfaces)
			abort();
	json_decref(json);
	return 0;
}

/* GetMetrics: the guest and the agent in Prometheus' text format, under Kata's names. */
#include <ctype.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/netdev.h"
#include "agent/rpc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fd.h"

#define METRICS_MAX (1u << 20)
#define PROC_MAX    (256u << 10)

static int heading(struct buf *b, const char *name, const char *type, const char *help)
{
	return buf_printf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* Calls @fn for each line of a file of /proc, with its words. */
static int each_line(const char *path, int (*fn)(struct buf *b, char **word, unsigned n),
		     struct buf *b)
{
	auto_free char *text = NULL;
	char *save = NULL, *line;
	int r = fd_read_file(AT_FDCWD, path, PROC_MAX, &text, NULL);

	if (r < 0)
		return r == -ENOENT ? 0 : r;
	for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char *word[24], *save2 = NULL;
		unsigned n = 0;

		for (char *w = strtok_r(line, " :\t", &save2); w && n < ARRAY_LEN(word);
		     w = strtok_r(NULL, " :\t", &save2))
			word[n++] = w;
		r = n ? fn(b, word, n) : 0;
		if (r < 0)
			return r;
	}
	return 0;
}

static void lower(char *s)
{
	for (; *s; s++)
		*s = *s == '(' || *s == ')' ? '_' : (char)tolower((unsigned char)*s);
}

/* /proc's "kB" are 1024 bytes. */
static unsigned long long kib(const char *text)
{
	return strtoull(text, NULL, 10) << 10;
}

static int meminfo(struct buf *b, char **w, unsigned n)
{
	if (n < 2)
		return 0;
	lower(w[0]);
	return buf_printf(b, "kata_guest_meminfo{item=\"%s\"} %llu\n", w[0],
			  n > 2 ? kib(w[1]) : strtoull(w[1], NULL, 10));
}

static int cpu_time(struct buf *b, char **w, unsigned n)
{
	static const char *const items[] = { "user", "nice", "system", "idle", "iowait", "irq",
					     "softirq", "steal", "guest", "guest_nice" };
	int r = 0;

	if (strncmp(w[0], "cpu", 3) != 0)
		return 0;
	for (unsigned i = 0; i < ARRAY_LEN(items) && i + 1 < n && r == 0; i++)
		r = buf_printf(b, "kata_guest_cpu_time{cpu=\"%s\",item=\"%s\"} %s\n",
			       w[0][3] ? w[0] : "total", items[i], w[i + 1]);
	return r;
}

static int diskstats(struct buf *b, char **w, unsigned n)
{
	static const char *const items[] = { "reads", "reads_merged", "sectors_read",
					     "time_reading", "writes", "writes_merged",
					     "sectors_written", "time_writing", "in_progress",
					     "time_in_progress", "weighted_time_in_progress" };
	int r = 0;

	for (unsigned i = 0; i < ARRAY_LEN(items) && i + 3 < n && r == 0; i++)
		r = buf_printf(b, "kata_guest_diskstat{disk=\"%s\",item=\"%s\"} %s\n", w[2],
			       items[i], w[i + 3]);
	return r;
}

static int vmstat(struct buf *b, char **w, unsigned n)
{
	return n < 2 ? 0 : buf_printf(b, "kata_guest_vm_stat{item=\"%s\"} %s\n", w[0], w[1]);
}

static int loadavg(struct buf *b, char **w, unsigned n)
{
	static const char *const items[] = { "load1", "load5", "load15" };
	int r = 0;

	for (unsigned i = 0; i < ARRAY_LEN(items) && i < n && r == 0; i++)
		r = buf_printf(b, "kata_guest_load{item=\"%s\"} %s\n", items[i], w[i]);
	return r;
}

static int agent_status(struct buf *b, char **w, unsigned n)
{
	int r = 0;

	if (n < 2)
		return 0;
	if (strcmp(w[0], "VmRSS") == 0)
		r = buf_printf(b, "kata_agent_total_rss %llu\n", kib(w[1]));
	else if (strcmp(w[0], "VmSize") == 0)
		r = buf_printf(b, "kata_agent_total_vm %llu\n", kib(w[1]));
	else if (strcmp(w[0], "Threads") == 0)
		r = buf_printf(b, "kata_agent_threads %s\n", w[1]);
	return r;
}

static int agent_io(struct buf *b, char **w, unsigned n)
{
	return n < 2 ? 0 : buf_printf(b, "kata_agent_io_stat{item=\"%s\"} %s\n", w[0], w[1]);
}

static int agent_smaps(struct buf *b, char **w, unsigned n)
{
	if (n != 3 || strcmp(w[2], "kB") != 0)
		return 0;
	lower(w[0]);
	return buf_printf(b, "caisson_agent_smaps{item=\"%s\"} %llu\n", w[0], kib(w[1]));
}

static int netdev(const char *name, const uint64_t *c, void *arg)
{
	static const char *const items[] = {
		"recv_bytes", "recv_packets", "recv_errs", "recv_drop", "recv_fifo", "recv_frame",
		"recv_compressed", "recv_multicast", "sent_bytes", "sent_packets", "sent_errs",
		"sent_drop", "sent_fifo", "sent_colls", "sent_carrier", "sent_compressed",
	};
	int r = 0;

	for (unsigned i = 0; i < NETDEV_COUNTERS && r == 0; i++)
		r = buf_printf(arg, "kata_guest_netdev_stat{interface=\"%s\",item=\"%s\"} %llu\n",
			       name, items[i], (unsigned long long)c[i]);
	return r;
}

static const struct {
	const char *name, *type, *help, *path;
	int (*fn)(struct buf *b, char **word, unsigned n);
} sources[] = {
	{ "kata_guest_load", "gauge", "Load of the guest.", "/proc/loadavg", loadavg },
	{ "kata_guest_cpu_time", "gauge", "Processor time in ticks.", "/proc/stat", cpu_time },
	{ "kata_guest_meminfo", "gauge", "Memory of the guest in bytes.", "/proc/meminfo",
	  meminfo },
	{ "kata_guest_vm_stat", "gauge", "Virtual memory statistics.", "/proc/vmstat", vmstat },
	{ "kata_guest_diskstat", "gauge", "Block device statistics.", "/proc/diskstats",
	  diskstats },
	{ "kata_agent_proc_status", "gauge", "Memory and threads of the agent.",
	  "/proc/self/status", agent_status },
	{ "caisson_agent_smaps", "gauge", "Memory of the agent by kind, in bytes.",
	  "/proc/self/smaps_rollup", agent_smaps },
	{ "kata_agent_io_stat", "gauge", "Input and output of the agent.", "/proc/self/io",
	  agent_io },
};

void rpc_get_metrics(struct ttrpc_call *call, void *request)
{
	Grpc__Metrics rsp = GRPC__METRICS__INIT;
	struct buf b = BUF_INIT(METRICS_MAX);
	auto_free char *text = NULL;
	struct error err = { 0 };
	int r;

	(void)request;
	r = heading(&b, "kata_agent_scrape_count", "counter", "Calls of GetMetrics.");
	if (r == 0)
		r = buf_printf(&b, "kata_agent_scrape_count %lu\n", ++agent.scrapes);
	for (size_t i = 0; i < ARRAY_LEN(sources) && r == 0; i++) {
		r = heading(&b, sources[i].name, sources[i].type, sources[i].help);
		if (r == 0)
			r = each_line(sources[i].path, sources[i].fn, &b);
	}
	if (r == 0)
		r = heading(&b, "kata_guest_netdev_stat", "gauge", "Network device counters.");
	if (r == 0)
		r = netdev_each(netdev, &b);
	if (r == 0)
		r = buf_take_str(&b, &text);
	buf_fini(&b);
	if (r < 0) {
		rpc_end(call, error_errno(&err, r, "collect metrics"), &err);
		return;
	}
	rsp.metrics = text;
	ttrpc_reply_msg(call, &rsp.base);
}

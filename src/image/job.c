/* One request: its options, progress reports and cancellation. */
#include "image/internal.h"

#include <time.h>

#define REPORT_INTERVAL_NS (50ull * 1000 * 1000)

int image_job_init(struct image_job *job, struct image_store *store,
		   const struct image_options *opt, struct error *err)
{
	static const struct image_options defaults = { 0 };
	int r;

	*job = (struct image_job){ .store = store, .opt = opt ? opt : &defaults };
	job->progress.digest = "";
	if (job->opt->platform)
		return image_platform_parse(job->opt->platform, &job->platform, err);
	r = image_platform_host(&job->platform);
	return r < 0 ? error_errno(err, r, "find this host's platform") : 0;
}

int image_job_report(struct image_job *job, bool often, struct error *err)
{
	struct timespec ts;
	uint64_t now;

	if (!job->opt->progress)
		return 0;
	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	now = (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
	if (often && now - job->last_ns < REPORT_INTERVAL_NS)
		return 0;
	job->last_ns = now;
	job->progress.name = job->familiar ? job->familiar : "";
	if (job->opt->progress(job->opt->progress_ctx, &job->progress) != 0)
		return error_set(err, -ECANCELED, "cancelled");
	return 0;
}

int image_job_phase(struct image_job *job, enum image_phase phase, unsigned index, unsigned count,
		    uint64_t total, struct error *err)
{
	job->progress = (struct image_progress){
		.phase = phase,
		.digest = "",
		.index = index,
		.count = count,
		.total = total,
	};
	return image_job_report(job, false, err);
}

#include "vmm/record.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/fsutil.h"
#include "base/str.h"

#define RECORD_MAX 2048

static int read_boot_id(char *dst, size_t size)
{
	auto_free char *text = NULL;
	int r = fd_read_file(AT_FDCWD, "/proc/sys/kernel/random/boot_id", 64, &text, NULL);

	if (r < 0)
		return r;
	text[strcspn(text, "\n")] = '\0';
	return str_format(dst, size, "%s", text);
}

int record_init(struct record *rec, struct error *err)
{
	int r;

	*rec = (struct record){ 0 };
	r = read_boot_id(rec->boot_id, sizeof(rec->boot_id));
	return r < 0 ? error_errno(err, r, "read the boot id") : 0;
}

int record_write(int dirfd, const struct record *rec, struct error *err)
{
	char text[RECORD_MAX];
	int r;

	r = str_format(text, sizeof(text),
		       "boot %s\ncgroup %s\npid %d\nstart %" PRIu64 "\nlater %s\ngroups %s\n"
		       "uid %u\nclaim %s\n",
		       rec->boot_id, *rec->cgroup ? rec->cgroup : "-", rec->vmm.pid,
		       rec->vmm.start_time, *rec->later ? rec->later : "-",
		       *rec->groups ? rec->groups : "-", rec->uid, *rec->claim ? rec->claim : "-");
	if (r == 0)
		r = fsutil_write_volatile(dirfd, RECORD_NAME, text, strlen(text), 0600);
	return r < 0 ? error_errno(err, r, "write '%s'", RECORD_NAME) : 0;
}

int record_read(int dirfd, struct record *ret_rec, struct error *err)
{
	struct record rec = { 0 };
	auto_free char *text = NULL;
	int r = fd_read_file(dirfd, RECORD_NAME, RECORD_MAX, &text, NULL), n;

	if (r < 0)
		return error_errno(err, r, "read '%s'", RECORD_NAME);
	/* Earlier versions wrote the first four, or six. */
	n = sscanf(text,
		   "boot %39s\ncgroup %255s\npid %d\nstart %" SCNu64 "\nlater %255s\ngroups %255s"
		   "\nuid %" SCNu32 "\nclaim %511[^\n]",
		   rec.boot_id, rec.cgroup, &rec.vmm.pid, &rec.vmm.start_time, rec.later,
		   rec.groups, &rec.uid, rec.claim);
	if ((n != 4 && n != 6 && n != 8) || rec.vmm.pid < 0)
		return error_set(err, -EBADMSG, "'%s' is damaged", RECORD_NAME);
	if (str_eq(rec.cgroup, "-"))
		rec.cgroup[0] = '\0';
	if (str_eq(rec.later, "-"))
		rec.later[0] = '\0';
	if (str_eq(rec.groups, "-"))
		rec.groups[0] = '\0';
	if (str_eq(rec.claim, "-"))
		rec.claim[0] = '\0';
	*ret_rec = rec;
	return 0;
}

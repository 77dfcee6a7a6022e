/* Between source_local.c and archive.c. */
#pragma once

#include "image/internal.h"

struct local_source {
	struct image_source base;
	struct source_listing listing;
	char *tag;
	int blobs_fd; /* files named by the hex of their digest */
	bool spooled; /* blobs_fd is tmp/@spool_name, ours to remove */
	char spool_name[STORE_TMP_NAME];
};

__must_check int local_add_entry(struct local_source *l, const struct image_descriptor *desc,
				 struct source_entry **ret);
__must_check int local_list_index(struct local_source *l, const char *text, size_t n,
				  struct error *err);
/* Reads all of an archive. @size is of the file, for progress; 0 = unknown. */
__must_check int local_open_archive(struct local_source *l, int fd, uint64_t size,
				    struct error *err);

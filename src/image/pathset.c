/* A set of path names: a balanced tree, so that no choice of names makes it slow. */
#include "image/internal.h"

#include <search.h>
#include <string.h>

static int compare(const void *a, const void *b)
{
	return strcmp(a, b);
}

bool pathset_has(const struct pathset *set, const char *path)
{
	return tfind(path, &set->tree, compare) != NULL;
}

int pathset_add(struct pathset *set, const char *path)
{
	auto_free char *copy = strdup(path);
	char *slash;

	if (!copy)
		return -ENOMEM;
	/* Parents of what is there are there, too. */
	while (!pathset_has(set, copy)) {
		auto_free char *key = strdup(copy);

		if (!key || !tsearch(key, &set->tree, compare))
			return -ENOMEM;
		(void)take_ptr(&key);
		slash = strrchr(copy, '/');
		if (!slash)
			break;
		*slash = '\0';
	}
	return 0;
}

void pathset_clear(struct pathset *set)
{
	tdestroy(set->tree, free);
	set->tree = NULL;
}
